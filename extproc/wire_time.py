"""Moments and spans as messages bring them: google.protobuf.Timestamp and Duration, read by hand.

Knows: the encoding. Must not know: which message they came in.
"""

from __future__ import annotations

from typing import Final

NS_PER_S: Final = 1_000_000_000
_SECONDS: Final = 0x08  # field 1, a varint
_NANOS: Final = 0x10  # field 2, a varint
_MORE: Final = 0x80  # set in each byte of a varint but the last
_BITS: Final = 7
_MAX_SHIFT: Final = 63  # ten bytes, the last of one bit


def nanoseconds(raw: bytes) -> int:
    """Return a Timestamp or Duration in nanoseconds. Raises ValueError where it is neither."""
    total = at = 0
    end = len(raw)
    while at < end:
        tag = raw[at]
        at += 1
        value = shift = 0
        while True:
            if at >= end or shift > _MAX_SHIFT:
                raise ValueError("a number that does not end")
            byte = raw[at]
            at += 1
            value |= (byte & ~_MORE) << shift
            if byte < _MORE:
                break
            shift += _BITS
        if value >> _MAX_SHIFT:  # negative: two's complement in 64 bits
            value -= 1 << (_MAX_SHIFT + 1)
        if tag == _SECONDS:
            total += value * NS_PER_S
        elif tag == _NANOS:
            total += value
        else:
            raise ValueError("not a time")
    return total
