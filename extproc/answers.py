"""A kept answer, and what may become of a call that waits for one.

Knows: its own fields. Must not know: keys, stores, clocks, HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, Literal, TypeAlias

import msgspec

STATUS_HEADER: Final = "cache-status"  # RFC 9211
Form: TypeAlias = Literal["json", "sse"]
# Of the entry's other fields, its key and its places in the store: 0.6 to 1.1 KB were measured.
OVERHEAD_BYTES: Final = 1024


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One complete 200 answer, in the dialect of the endpoint it was given at.

    `form` is how it was recorded: a JSON document, or the events of a stream with the one that
    tells usage. `tenant` and `model` (the public name) are what it may be purged by. `usage` is
    input, output and cached input tokens as billed then. Times are unix milliseconds.
    """

    endpoint: str
    tenant: str
    model: str
    provider: str
    served_model: str
    stored_ms: int
    expires_ms: int
    form: Form
    usage: tuple[int, int, int]
    body: bytes

    @property
    def weight(self) -> int:
        """Return what keeping it costs, in bytes."""
        return len(self.body) + OVERHEAD_BYTES


class Role(Enum):
    """What a call is to do that got no answer of another one."""

    LEAD = "lead"  # go upstream; others wait for what becomes of it
    ALONE = "alone"  # go upstream; nobody does


class End(Enum):
    """What became of the call that leads, where it is no entry."""

    FAILED = "failed"  # another one is to lead
    UNSHARED = "unshared"  # complete, but not to be kept: nobody is to wait for the like


Landing: TypeAlias = Entry | Role


class PurgeFailed(Exception):
    """A store that could not be told to forget: what it holds may still be served until it ends."""


Told: TypeAlias = Literal["", "hit", "collapsed"]  # collapsed: it waited for another call's answer


# Makes the client's answer of one to a part of its call. Raises `cache.recorded.CannotTell`.
Complete: TypeAlias = Callable[[bytes], bytes]


class Inputs(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The inputs of a batch of embeddings, each of which is kept by itself.

    `digests` are those of calls for each alone, one after the other; `sizes` share out the tokens.
    """

    digests: bytes
    sizes: tuple[int, ...]


class Filling(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What keeping the answer of a call takes, beside what its record and its log entry say.

    `digest` is the call's, of which and of the model that served it its key is made. `ttl_ms` is
    how long the answer will be good for. `leads`: others may wait for it. `bounded`: the bound of
    its output is the gateway's. `inputs`: not the answer is kept but its parts, under their own.
    """

    digest: bytes
    ttl_ms: int
    leads: bool
    bounded: bool
    inputs: Inputs | None = None
