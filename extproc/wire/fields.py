"""Messages read by hand, field by field: what there is once per call, where objects cost too much.

Knows: the encoding of protobuf. Must not know: any message's fields.
Source: protobuf.dev, Encoding. Groups, which no message of Envoy has, are refused.
"""

from __future__ import annotations

from typing import Final

_MORE: Final = 0x80  # set in each byte of a varint but the last
_BITS: Final = 7
_MAX_SHIFT: Final = 63  # ten bytes, the last of one bit
_64_BITS: Final = (1 << 64) - 1
_KIND: Final = 0x07  # of a tag; the rest is the field's number
_NUMBER: Final = 0
_EIGHT_BYTES: Final = 1
_SIZED: Final = 2
_FOUR_BYTES: Final = 5


class Fields:
    """The fields of one message, one after the other, as `more` goes on to them.

    `tag` is a field's number times eight plus its kind. Of kind 0 `number` is the value; of kind 2
    it is the bytes from `start` to `stop`.
    """

    __slots__ = ("_at", "_end", "number", "raw", "start", "stop", "tag")

    def __init__(self, raw: bytes, start: int, stop: int) -> None:
        self.raw = raw
        self._at = start
        self._end = stop
        self.tag = 0
        self.number = 0
        self.start = start
        self.stop = start

    def more(self) -> bool:
        """Go on to the next field and say whether there is one. Raises ValueError."""
        raw, at, end = self.raw, self._at, self._end
        if at >= end:
            return False
        tag = raw[at]
        at += 1
        if tag >= _MORE:
            second = raw[at] if at < end else _MORE
            if second < _MORE:  # of two bytes, as every longer one here is
                tag = tag - _MORE + (second << _BITS)
                at += 1
            else:
                tag, at = varint(raw, at - 1, end)
        kind = tag & _KIND
        if kind == _SIZED:
            size = raw[at] if at < end else _MORE
            at += 1
            if size >= _MORE:
                second = raw[at] if at < end else _MORE
                if second < _MORE:  # up to 16 KB, as nearly all are
                    size = size - _MORE + (second << _BITS)
                    at += 1
                else:
                    size, at = varint(raw, at - 1, end)
            self.start = at
            at += size
            self.stop = at
        elif kind == _NUMBER:
            self.number, at = varint(raw, at, end)
        else:
            at += _fixed(kind)
        if at > end or tag <= _KIND:
            raise ValueError("cut short, or a field without a number")
        self.tag = tag
        self._at = at
        return True

    def value(self) -> bytes:
        """Return the bytes of a field of kind 2."""
        return self.raw[self.start : self.stop]

    def inside(self) -> Fields:
        """Return the fields of the message that a field of kind 2 is."""
        return Fields(self.raw, self.start, self.stop)


def fields(raw: bytes) -> Fields:
    """Return the fields of a message that is all of these bytes."""
    return Fields(raw, 0, len(raw))


def _fixed(kind: int) -> int:
    """Return how many bytes a field has whose kind says so. Raises ValueError."""
    if kind == _EIGHT_BYTES:
        return 8
    if kind == _FOUR_BYTES:
        return 4
    raise ValueError("a kind of field that is none")


def varint(raw: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the number that begins at `at` and where what follows it does. Raises ValueError."""
    number = shift = 0
    while True:
        if at >= end or shift > _MAX_SHIFT:
            raise ValueError("a number that does not end")
        byte = raw[at]
        at += 1
        number |= (byte & ~_MORE) << shift
        if byte < _MORE:
            # Because an operation with so large a number takes a hundred times as long.
            return (number & _64_BITS if shift == _MAX_SHIFT else number), at
        shift += _BITS
