"""How the simulated provider behaves: what was set to stick, and what one request's headers say.

Knows the names, types and ranges of the behaviours. Knows no dialect, no HTTP and no time.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

HEADER_PREFIX = "x-sim-"
STICKY_ONLY = frozenset({"statuses"})
MAX_DELAY_MS = 3_600_000  # an hour: more is a typing error, not a test
MAX_OUTPUT_TOKENS = 1_000_000
MAX_TOOL_CALLS = 128  # what OpenAI allows
OK = 200
FIRST_ERROR = 400

# What msgspec raises for a body it cannot read: not JSON or not the type, not UTF-8, nested deeply.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

Status = Annotated[int, Meta(ge=OK, le=599)]
DelayMs = Annotated[float, Meta(ge=0, le=MAX_DELAY_MS)]
Chunks = Annotated[int, Meta(ge=0)]
Tokens = Annotated[int, Meta(ge=0, le=MAX_OUTPUT_TOKENS)]


class BadBehaviourError(ValueError):
    """A behaviour that does not exist or is out of range; the message says which."""


class Behaviour(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One complete set of behaviours; the default is a provider that is fast and well.

    `tool_calls` says how many tools are called where the request offers some; None: only where it
    forces one. `cache_read_tokens` and `cache_creation_tokens` are the parts of the prompt that
    usage reports as read from and written to the provider's prompt cache.
    `status` 200 means answer normally, so that a header can undo a sticky error. `statuses` is used
    up from the left, one for each POST that sets no status of its own.
    """

    status: Status | None = None
    latency_ms: DelayMs = 0
    output_tokens: Annotated[int, Meta(ge=0, le=MAX_OUTPUT_TOKENS)] | None = None
    chunk_ms: DelayMs = 0
    tokens_per_chunk: Annotated[int, Meta(ge=1, le=MAX_OUTPUT_TOKENS)] = 1
    abort_after_chunks: Chunks | None = None
    stall_after_chunks: Chunks | None = None
    usage: Literal["normal", "missing", "twice", "huge"] = "normal"
    retry_after: Annotated[float, Meta(ge=0)] | None = None
    tool_calls: Annotated[int, Meta(ge=0, le=MAX_TOOL_CALLS)] | None = None
    cache_read_tokens: Tokens = 0
    cache_creation_tokens: Tokens = 0
    framing: Literal["event", "byte", "random"] = "event"
    newline: Literal["lf", "crlf"] = "lf"
    digest: bool = False
    statuses: tuple[Status, ...] = ()

    def __post_init__(self) -> None:
        for status in (self.status, *self.statuses):
            if status is not None and OK < status < FIRST_ERROR:
                message = f"status {status} is neither 200 nor an error (400 to 599)"
                raise ValueError(message)

    @property
    def ending(self) -> tuple[Literal["abort", "stall"], int] | None:
        """Return how an answer breaks and after how many chunks, the earlier of the two."""
        abort, stall = self.abort_after_chunks, self.stall_after_chunks
        if abort is not None and (stall is None or abort <= stall):
            return "abort", abort
        return None if stall is None else ("stall", stall)


def parse(body: bytes) -> Behaviour:
    """Read the sticky behaviour from JSON; what is not named is back at its default.

    Raises `BadBehaviourError` for anything that is not a legal behaviour.
    """
    try:
        return msgspec.json.decode(body, type=Behaviour)
    except UNREADABLE as error:
        raise BadBehaviourError(str(error)) from None


def merge(sticky: Behaviour, headers: Mapping[str, str]) -> Behaviour:
    """Return `sticky` with what the request's `x-sim-*` headers (lower-case names) say instead.

    Raises `BadBehaviourError` naming the header that is unknown or out of range.
    """
    asked = tuple(item for item in headers.items() if item[0].startswith(HEADER_PREFIX))
    return _merge(sticky, asked) if asked else sticky


@lru_cache(maxsize=256)  # load tests send the same few combinations thousands of times a second
def _merge(sticky: Behaviour, asked: tuple[tuple[str, str], ...]) -> Behaviour:
    fields = msgspec.structs.asdict(sticky)
    for name, value in asked:
        field = name.removeprefix(HEADER_PREFIX).replace("-", "_")
        if field not in fields or field in STICKY_ONLY:
            legal = ", ".join(HEADER_PREFIX + f.replace("_", "-") for f in sorted(fields))
            message = f"unknown header {name}; known: {legal}"
            raise BadBehaviourError(message)
        fields[field] = value
    try:
        return msgspec.convert(fields, Behaviour, strict=False)
    except msgspec.ValidationError as error:
        message = f"{error} (from an {HEADER_PREFIX} header)"
        raise BadBehaviourError(message) from None
