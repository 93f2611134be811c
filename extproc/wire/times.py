"""Moments and spans as messages bring them: google.protobuf.Timestamp and Duration, read by hand.

Knows: the encoding. Must not know: which message they came in.
"""

from __future__ import annotations

from typing import Final

from extproc.wire.fields import varint

NS_PER_S: Final = 1_000_000_000
_SECONDS: Final = 0x08  # field 1, a varint
_NANOS: Final = 0x10  # field 2, a varint
_SIGN: Final = 63  # the bit of it, in two's complement


def nanoseconds(raw: bytes) -> int:
    """Return a Timestamp or Duration in nanoseconds. Raises ValueError where it is neither."""
    total = at = 0
    end = len(raw)
    while at < end:
        tag = raw[at]
        value, at = varint(raw, at + 1, end)
        if value >> _SIGN:
            value -= 1 << (_SIGN + 1)
        if tag == _SECONDS:
            total += value * NS_PER_S
        elif tag == _NANOS:
            total += value
        else:
            raise ValueError("not a time")
    return total
