"""One stream of an HTTP/2 connection, and what the connection tells its owner about it.

Knows: what is kept per stream. Must not know: frames or the order of anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol


class Stream:
    """An open stream. `owner` is the handler's; it sets `held` while it cannot take more data."""

    __slots__ = (
        "consumed",
        "ended",
        "expected",
        "held",
        "number",
        "open",
        "owner",
        "queue",
        "send_window",
    )

    def __init__(self, number: int, send_window: int, expected: int | None, ended: bool) -> None:
        self.number = number
        self.send_window = send_window
        self.expected = expected  # what content-length promises and has not come
        self.ended = ended  # by the peer
        self.open = True
        self.held = False
        self.consumed = 0  # bytes received since the peer's window was last replenished
        # Data, how much of it has gone, and the trailers behind it.
        self.queue: deque[tuple[bytes, int, bytes]] | None = None
        self.owner: Any = None

    def __repr__(self) -> str:
        state = "closed" if not self.open else "half-closed" if self.ended else "open"
        return f"<Stream {self.number} {state}, may send {self.send_window}>"


class Handler(Protocol):
    """What the connection tells its owner."""

    def opened(self, stream: Stream, headers: Mapping[str, str]) -> None: ...

    def received(self, stream: Stream, data: bytes) -> None: ...

    def half_closed(self, stream: Stream) -> None: ...

    def reset(self, stream: Stream) -> None:
        """The stream is gone, by the peer's wish or its fault."""

    def drained(self, stream: Stream) -> None:
        """Everything that waited for a window has been sent."""
