"""What the retelling of kept answers shares: reading what was recorded, and writing events.

Knows: JSON objects, SSE framing, and when parts of one stream agree. Must not know: any API.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from extproc.dialects.sse import Reader, TooLong
from extproc.dialects.translation import Json

DONE: Final = b"[DONE]"
encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode


class CannotTell(Exception):
    """A kept answer that cannot be told as it is asked for without changing what it says.

    Whoever asked treats it as a miss. The reason is a constant: it quotes nothing that was kept.
    """


def document(data: bytes) -> Json:
    """Return the JSON object that these bytes are. Raises CannotTell."""
    try:
        found = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise CannotTell("what was recorded is not JSON") from None
    return an_object(found)


def events(body: bytes) -> list[bytes]:
    """Return the data of every event of a stream. Raises CannotTell."""
    reader = Reader()
    try:
        return [one.data for one in reader.feed(body) + reader.finish()]
    except TooLong:
        raise CannotTell("an event is too long") from None


def an_object(value: Any) -> Json:
    """Return the value, an object. Raises CannotTell."""
    if type(value) is dict:
        return value
    raise CannotTell("an object was expected")


def a_list(value: Any) -> list[Any]:
    """Return the value, a list. Raises CannotTell."""
    if type(value) is list:
        return value
    raise CannotTell("a list was expected")


def a_text(value: Any) -> str:
    """Return the value, a string. Raises CannotTell."""
    if type(value) is str:
        return value
    raise CannotTell("a string was expected")


def an_index(value: Any) -> int:
    """Return the value, a whole number from 0. Raises CannotTell."""
    if type(value) is int and value >= 0:
        return value
    raise CannotTell("an index was expected")


def says_nothing(value: Any) -> bool:
    """Say whether the value of a field is as good as its absence."""
    return value is None or (isinstance(value, list | dict) and not value)


def agree(kept: Json, found: Json) -> None:
    """Add to what parts of one stream say of the whole; null says nothing.

    Raises CannotTell where two parts differ: which of them the whole would have had is unknown.
    """
    for name, value in found.items():
        known = kept.get(name)
        if known is None:
            kept[name] = value
        elif value is not None and value != known:
            raise CannotTell("the parts of a stream do not agree")


def named(kind: str, fields: Json) -> bytes:
    """Return an event that carries its type as its name and as its first member."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode({"type": kind, **fields}))
