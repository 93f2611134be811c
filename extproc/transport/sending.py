"""The sending half of an HTTP/2 connection: what is to be written, and what waits for a window.

Knows: flow control towards the peer (RFC 9113 5.2, 6.9). Must not know: what the peer sends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Final

from extproc.transport import frames
from extproc.transport.frames import (
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    HEADERS,
    MAX_FRAME_BYTES,
    MAX_WINDOW,
    ConnectionFault,
    frame,
)
from extproc.transport.stream import Stream

COST_SHIFT: Final = 10  # a KB of a large reply costs one of a turn's budget, after which the bounds
# on what is not taken are looked at: a turn makes little more than 1 MB of them
STREAMS_COST: Final = 8  # as many windows are changed for one of the budget
NO_TABLE: Final = b"\x20"  # dynamic table size update to 0 (RFC 7541 6.3): our blocks index nothing


class Sender:
    """Collects frames. `ended` is called with a stream whose trailers have been sent, `drained`
    with one whose queue is empty again; `spend` takes of the turn's budget.
    """

    def __init__(
        self,
        ended: Callable[[Stream], None],
        drained: Callable[[Stream], None],
        spend: Callable[[int], None],
    ) -> None:
        self.out: list[bytes] = []
        self.queued = 0  # bytes that wait for a window
        self.initial_window = DEFAULT_WINDOW
        self.largest_frame = MAX_FRAME_BYTES
        self._window = DEFAULT_WINDOW
        self._waiting: dict[int, Stream] = {}  # for the connection's window
        self._opening = b""
        self._ended = ended
        self._drained = drained
        self._spend = spend

    def take(self) -> bytes:
        """Return what is to be written and forget it."""
        out = b"".join(self.out)
        self.out.clear()
        return out

    def send(self, stream: Stream, head: bytes, data: bytes, trailers: bytes) -> None:
        """Send a header block, data as the windows allow, and trailers; each may be empty.

        Trailers end and forget the stream. Blocks are encoded without indexing.
        """
        if not stream.open:
            return
        number, out = stream.number, self.out
        if head:
            if self._opening:
                head, self._opening = self._opening + head, b""
            out.append(frames.header.pack(len(head) << 8 | HEADERS, END_HEADERS, number))
            out.append(head)
        size = len(data)
        if (
            stream.queue is None
            and size <= self._window
            and size <= stream.send_window
            and size <= MAX_FRAME_BYTES
        ) or not (size or stream.queue):
            if size:
                self._window -= size
                stream.send_window -= size
                out.append(frames.header.pack(size << 8 | DATA, 0, number))
                out.append(data)
            if trailers:
                self._finish(stream, trailers)
            return
        if stream.queue is None:
            stream.queue = deque()
        stream.queue.append((data, 0, trailers))
        self.queued += size
        self._spend(size >> COST_SHIFT)
        self._pump(stream)

    def forget(self, stream: Stream) -> None:
        """Drop what a stream that is closed would still have sent."""
        if stream.queue is not None:
            self.queued -= sum(len(data) - sent for data, sent, _ in stream.queue)
            stream.queue = None
            self._waiting.pop(stream.number, None)

    def more(self, size: int) -> None:
        """Widen the connection's window. Raises ConnectionFault."""
        self._window += size
        if self._window > MAX_WINDOW:
            raise ConnectionFault(FLOW_CONTROL_ERROR, "window overflow")
        while self._waiting and self._window > 0:
            self._pump(self._waiting.pop(next(iter(self._waiting))))

    def more_for(self, stream: Stream, size: int) -> bool:
        """Widen a stream's window; say whether it is one still."""
        stream.send_window += size
        if stream.send_window > MAX_WINDOW:
            return False
        if stream.queue is not None:
            self._pump(stream)
        return True

    def resize(self, window: int, streams: Collection[Stream]) -> None:
        """Change the window of every open stream, also below nothing (6.9.2)."""
        change = window - self.initial_window
        self.initial_window = window
        self._spend(len(streams) // STREAMS_COST)
        for stream in list(streams):
            if stream.open and not self.more_for(stream, change):
                raise ConnectionFault(FLOW_CONTROL_ERROR, "window overflow")

    def acknowledge_table(self) -> None:
        """Begin the next block with the end of the table (RFC 7541 4.2): the peer changed it."""
        self._opening = NO_TABLE

    def _finish(self, stream: Stream, trailers: bytes) -> None:
        if self._opening:  # only now, because other blocks may have gone out while these waited
            trailers, self._opening = self._opening + trailers, b""
        self.out.append(frame(HEADERS, END_HEADERS | END_STREAM, stream.number, trailers))
        self._ended(stream)

    def _pump(self, stream: Stream) -> None:
        """Send of a stream's queue what the windows allow."""
        queue = stream.queue
        assert queue is not None
        while queue:
            data, sent, trailers = queue[0]
            size = len(data)
            while sent < size:
                piece = min(self.largest_frame, self._window, stream.send_window, size - sent)
                if piece <= 0:
                    # Copied only now and then, or windows of a byte would copy all that waits for
                    # each; but no more is kept than twice what is counted.
                    if sent > size // 2:
                        data, sent = data[sent:], 0
                    queue[0] = (data, sent, trailers)
                    if stream.send_window > 0:
                        self._waiting[stream.number] = stream
                    return
                self.out.append(frame(DATA, 0, stream.number, data[sent : sent + piece]))
                self._window -= piece
                stream.send_window -= piece
                self.queued -= piece
                sent += piece
            queue.popleft()
            if trailers:
                self._finish(stream, trailers)
        stream.queue = None
        self._drained(stream)
