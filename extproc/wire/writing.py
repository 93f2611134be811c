"""Protobuf written by hand: fields of messages, and google.protobuf.Struct by its members.

Knows: the encoding. Must not know: which messages there are.
By hand, because the Python wrappers cost more than the rest of a reply; the tests read what is
written with two other implementations.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

_VARINT_BITS: Final = 0x7F  # seven bits a byte, the eighth says that more follow
_TWO_BYTES: Final = 1 << 14
_BYTES: Final = [bytes((number,)) for number in range(256)]


def varint(number: int) -> bytes:
    """Encode a whole number, not negative."""
    out = bytearray()
    while number > _VARINT_BITS:
        out.append(number & _VARINT_BITS | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def size_of(size: int) -> bytes:
    """Encode the size of a field, as `varint` does."""
    if size <= _VARINT_BITS:
        return _BYTES[size]
    if size < _TWO_BYTES:  # most messages are a few KB
        return _BYTES[size & _VARINT_BITS | 0x80] + _BYTES[size >> 7]
    return varint(size)


def sized(data: bytes) -> bytes:
    """Encode bytes with their size before them."""
    return size_of(len(data)) + data


def message(field: int, content: bytes) -> bytes:
    """Encode a field of bytes, text or a message; `field` at most 15."""
    return bytes((field << 3 | 2,)) + sized(content)


@lru_cache(maxsize=16384)  # a few dozen keys by the sizes of their values
def before(key: bytes, tag: bytes, size: int) -> bytes:
    """Encode what stands before a value of so many bytes: map entry, key, and the value's tag."""
    inner = tag + varint(size) if tag else b""
    start = b"\x0a" + sized(key) + b"\x12" + varint(len(inner) + size) + inner
    return b"\x0a" + varint(len(start) + size) + start


def entry(key: bytes, value: bytes) -> bytes:
    """Encode an entry of a Struct, or of a map of them, from an encoded value."""
    return before(key, b"", len(value)) + value


def string_entry(key: bytes, value: bytes) -> bytes:
    """Encode an entry that is text, given in UTF-8."""
    return before(key, b"\x1a", len(value)) + value


def bool_entry(key: bytes, value: bool) -> bytes:
    """Encode an entry that is true or false."""
    return entry(key, b"\x20\x01" if value else b"\x20\x00")


def number_entry(key: bytes, value: float) -> bytes:
    """Encode an entry that is a number."""
    return entry(key, b"\x11" + struct.pack("<d", value))


def list_entry(key: bytes, values: list[bytes]) -> bytes:
    """Encode an entry that is a list of encoded values."""
    return entry(key, b"\x32" + sized(b"".join(b"\x0a" + sized(value) for value in values)))


def text_value(value: str) -> bytes:
    """Encode a value that is text."""
    return b"\x1a" + sized(value.encode())


def struct_entry(namespace: bytes, fields: bytes) -> bytes:
    """Encode an entry that is a Struct, from its entries one after the other."""
    return before(namespace, b"\x2a", len(fields)) + fields
