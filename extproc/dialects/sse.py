"""Server-sent events out of bytes that may be cut anywhere.

Knows: the event stream format (WHATWG HTML, 9.2.6). Must not know: what the events mean.
Bytes stay bytes: a cut inside a character is as good as any other.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024  # a tool's whole arguments in one event; more is no event
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_BOM: Final = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One dispatched event; `data` lines are joined by LF, `name` is empty where none was given."""

    name: bytes
    data: bytes


class TooLong(Exception):
    """An event that does not end within `MAX_EVENT_BYTES`."""


class Reader:
    """Reads events incrementally: any chunking of the same bytes gives the same events."""

    __slots__ = ("_after_cr", "_data", "_name", "_pieces", "_size", "_started")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of the line that has not ended
        self._data: list[bytes] = []
        self._name = b""
        self._size = 0
        self._after_cr = False  # an LF that comes next belongs to the line end before it
        self._started = False

    def feed(self, chunk: bytes) -> list[Event]:
        """Take in a chunk and return the events that ended in it. Raises TooLong."""
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        if not chunk:
            return []
        self._size += len(chunk)
        if b"\n" not in chunk and b"\r" not in chunk:
            self._pieces.append(chunk)
            self._bound()
            return []
        self._after_cr = chunk.endswith(b"\r")
        lines = _LINE_END.split(chunk) if b"\r" in chunk else chunk.split(b"\n")
        self._pieces.append(lines[0])
        lines[0] = b"".join(self._pieces)
        rest = lines.pop()
        self._pieces = [rest] if rest else []
        events: list[Event] = []
        for line in lines:
            self._line(line, events)
        self._bound()
        return events

    def finish(self) -> list[Event]:
        """Return the last event where the stream ended without its blank line.

        The format would drop it; providers that forget the blank line mean it.
        """
        events: list[Event] = []
        self._line(b"".join(self._pieces), events)
        self._pieces = []
        self._line(b"", events)
        return events

    def _line(self, line: bytes, events: list[Event]) -> None:
        if not self._started:
            self._started = True
            line = line.removeprefix(_BOM)
        if not line:
            if self._data:
                events.append(Event(self._name, b"\n".join(self._data)))
            self._data, self._name = [], b""
            self._size = 0
            return
        field, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value

    def _bound(self) -> None:
        if self._size > MAX_EVENT_BYTES:
            raise TooLong
