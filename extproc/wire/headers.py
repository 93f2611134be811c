"""Headers as messages bring them: envoy.config.core.v3.HeaderMap, read by hand.

Knows: the encoding. Must not know: which message they came in, or what any header means.
"""

from __future__ import annotations

from typing import Final

from extproc.wire.fields import varint

_FIRST: Final = 0x0A  # field 1 with a length: a header in the map, a name in a header
_VALUE: Final = 0x12  # field 2 with a length, which Envoy leaves empty
_RAW_VALUE: Final = 0x1A  # field 3 with a length
_KIND: Final = 0x07  # of a tag: 0 a number, 2 bytes with a length
_SIZED: Final = 2
_MORE: Final = 0x80  # set in each byte of a varint but the last


def read_pairs(raw: bytes) -> list[tuple[str, str]]:
    """Return names and values in their order; what is not UTF-8 in a value is replaced.

    Numbers and bytes that a later Envoy may add to a header are left out. Raises ValueError for
    anything else.
    """
    found = []
    at, end = 0, len(raw)
    while at < end:
        if raw[at] != _FIRST:
            raise ValueError("not a header")
        size, at = varint(raw, at + 1, end)
        stop = at + size
        if stop > end:
            raise ValueError("cut short")
        name = value = b""
        while at < stop:
            tag, size = raw[at], raw[at + 1] if at + 1 < stop else _MORE
            if (tag | size) < _MORE:  # of one byte each, as nearly all are
                at += 2
            else:
                tag, at = varint(raw, at, stop)
                size, at = varint(raw, at, stop)
            if not tag & _KIND:
                continue  # a number, of a later Envoy
            start, at = at, at + size
            if tag & _KIND != _SIZED or at > stop:
                raise ValueError("cut short")
            if tag == _FIRST:
                name = raw[start:at]
            elif tag == _RAW_VALUE or (tag == _VALUE and not value):
                value = raw[start:at]
        found.append((name.decode(), value.decode("utf-8", "replace")))
    return found
