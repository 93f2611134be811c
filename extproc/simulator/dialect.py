"""What a dialect gives the simulator: read a request, write its answer.

Knows the types every dialect shares. Knows no dialect's field names, no sockets and no pacing.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from extproc.simulator.behaviour import Behaviour

Usage = dict[str, Any]  # the usage object exactly as the dialect writes it


class Event(NamedTuple):
    """Bytes of a streamed answer that are handed over at once, and what they are worth.

    `paced` bytes wait for `chunk_ms` first. `chunks` counts the SSE events that end in these bytes,
    `tokens` the output tokens of those events.
    """

    data: bytes
    tokens: int = 0
    paced: bool = False
    usage: Usage | None = None
    chunks: int = 1


class Whole(NamedTuple):
    """An answer in one JSON body."""

    body: bytes
    output_tokens: int = 0
    usage: Usage | None = None


class Script(NamedTuple):
    """A streamed answer: its SSE events in order, lines ended by LF."""

    events: Iterator[Event]


class Stamp(NamedTuple):
    """What makes one answer unique: an ASCII token for its ids, and its unix time in seconds."""

    token: str
    created: int


class Call(msgspec.Struct, frozen=True, gc=False):
    """A request the dialect understood; `render` writes its answer."""

    render: Callable[[Behaviour, Stamp], Whole | Script]
    model: str | None = None
    stream: bool = False
    include_usage: bool = False
    prompt_tokens: int = 0


class Fault(msgspec.Struct, frozen=True, gc=False):
    """An answer with an error status; `type` and `code` are the dialect's own words."""

    status: int
    message: str
    type: str
    code: str | None = None
    param: str | None = None


class Dialect(Protocol):
    """One provider's wire format; all methods are pure."""

    def credential(self, headers: Mapping[str, str]) -> str | None:
        """Return the API key the request presents, if any."""

    def check(self, headers: Mapping[str, str]) -> Fault | None:
        """Return what is wrong with the headers of a request whose key is good, if anything."""

    def read(self, method: str, path: str, body: bytes) -> Call | Fault:
        """Understand a request, or say in the provider's words what is wrong with it."""

    def fault(self, status: int) -> Fault:
        """Return the error this provider sends with `status`."""

    def bad_request(self, message: str) -> Fault:
        """Return a 400 that says `message`."""

    def encode(self, fault: Fault, token: str) -> bytes:
        """Return the JSON body of an error."""

    def identify(self, token: str, elapsed_ms: int) -> bytes:
        """Return the header lines (each ended by CRLF) every answer carries."""
