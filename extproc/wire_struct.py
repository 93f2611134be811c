"""Dynamic metadata as messages bring it: google.protobuf.Struct, read as it is needed.

Knows: the message class. Must not know: what any namespace holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError

from extproc.pb import core_pb2


def fields_of(raw: bytes) -> Mapping[str, Any]:
    """Read the members of a google.protobuf.Struct; none where it is not one."""
    struct = core_pb2.Struct()
    try:
        struct.ParseFromString(raw)
    except DecodeError:
        return {}
    fields: Mapping[str, Any] = struct.fields
    return fields


def text_of(fields: Mapping[str, Any], name: str) -> str:
    """Return a member that is text, empty where there is none; what is not UTF-8 is replaced."""
    if name not in fields:
        return ""
    text: bytes = fields[name].string_value
    return text.decode("utf-8", "replace")
