"""Dynamic metadata as messages bring it: google.protobuf.Struct, read as it is needed.

Knows: the message class. Must not know: what any namespace holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError

from extproc.pb import core_pb2
from extproc.wire.fields import Fields, fields

_FIRST: Final = 1 << 3 | 2  # a member; of a member its name
_SECOND: Final = 2 << 3 | 2  # and its value
_STRING: Final = 3 << 3 | 2  # of a value, where it is text
_OTHERS: Final = (2 << 3 | 1, 4 << 3)  # a number, true or false


def fields_of(raw: bytes) -> Mapping[str, Any]:
    """Read the members of a google.protobuf.Struct; none where it is not one."""
    struct = core_pb2.Struct()
    try:
        struct.ParseFromString(raw)
    except DecodeError:
        return {}
    fields: Mapping[str, Any] = struct.fields
    return fields


def texts_of(raw: bytes) -> dict[bytes, bytes]:
    """Read the members of a google.protobuf.Struct by hand, with their text; none that is no text.

    None of them where it is not one.
    """
    found: dict[bytes, bytes] = {}
    try:
        members = fields(raw)
        while members.more():
            if members.tag != _FIRST:
                continue
            name = text = b""
            pair = members.inside()
            while pair.more():
                if pair.tag == _FIRST:
                    name = pair.value()
                elif pair.tag == _SECOND:
                    text = _text(pair.inside(), text)
            found[name] = text
    except ValueError:
        return {}
    return found


def _text(value: Fields, text: bytes) -> bytes:
    """Return a google.protobuf.Value that is text, of several the last, `text` where it is none."""
    while value.more():
        if value.tag == _STRING:
            text = value.value()
        elif value.tag in _OTHERS:
            text = b""
    return text


def text_of(fields: Mapping[str, Any], name: str) -> str:
    """Return a member that is text, empty where there is none; what is not UTF-8 is replaced."""
    if name not in fields:
        return ""
    text: bytes = fields[name].string_value
    return text.decode("utf-8", "replace")
