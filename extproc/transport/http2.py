"""HTTP/2, the server's side of one connection, as far as a gRPC client needs it.

Knows: streams, flow control, what each frame may do when (RFC 9113). Must not know: gRPC, services
or sockets. Fed with bytes, it calls its `Handler` and collects what to send; whoever owns the
socket writes `take()` once per read. A fault of one stream is answered by RST_STREAM and the rest
goes on; a fault of the connection is raised.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from extproc.transport import frames
from extproc.transport.bounds import Bounds, Meter
from extproc.transport.control import STREAM_WINDOW, Control
from extproc.transport.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADER_BYTES,
    HEADERS,
    MAX_FRAME_BYTES,
    MAX_WINDOW,
    PADDED,
    PING,
    PREFACE,
    PRIORITIZED,
    PRIORITY,
    PRIORITY_BYTES,
    PROTOCOL_ERROR,
    PUSH,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW,
    ConnectionFault,
    frame,
    unpadded,
)
from extproc.transport.headers import Blocks, Head
from extproc.transport.sending import Sender
from extproc.transport.stream import Handler, Stream

REPLENISH_BYTES: Final = STREAM_WINDOW // 2
TURN_BUDGET: Final = 1024  # frames read before others get a turn: about 2 ms
MAX_SKIPPED: Final = 100  # remembered gaps in the stream numbers; an honest client leaves none


class Connection:
    """The state of one connection. `feed` raises ConnectionFault."""

    def __init__(
        self,
        handler: Handler,
        bounds: Bounds = Bounds(),  # noqa: B008 (frozen)
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.streams: dict[int, Stream] = {}
        self.budget = TURN_BUDGET
        self._handler = handler
        self._bounds = bounds
        self._blocks = Blocks(bounds.header_list_bytes, bounds.header_table_bytes, self._spend)
        self._rest = b""
        self._greeted = False
        self._skipped: deque[range] = deque(maxlen=MAX_SKIPPED)
        self._lingering: dict[int, None] = {}  # ended by us alone: what still comes is passed over
        self._block: tuple[int, int, bytes, int] | None = None
        self._consumed = 0
        self.sender = Sender(self._forget, handler.drained, self._spend)
        self._control = control = Control(self.sender, self.streams, bounds, clock)
        self.send = self.sender.send
        self.take = self.sender.take
        self.refuse_new = control.refuse_new
        self.finish = control.finish
        self.fail = control.fail
        self._readers: dict[int, Callable[[int, int, bytes], None]] = {
            DATA: self._data,
            HEADERS: self._headers,
            PRIORITY: self._priority,
            RST_STREAM: self._reset,
            SETTINGS: control.settings,
            PUSH: control.push,
            PING: control.ping,
            GOAWAY: control.goaway,
            WINDOW: self._window,
            CONTINUATION: self._continuation,
        }
        self._resets = Meter(bounds.resets, "resets", clock)
        self._faults = Meter(bounds.faults, "stream errors", clock)
        self._empty = Meter(bounds.empty, "empty frames", clock)
        self._ignored = Meter(bounds.ignored, "frames without meaning", clock)
        self._windows = Meter(bounds.windows, "WINDOW_UPDATE", clock)

    @property
    def refusing(self) -> bool:
        """Say whether the last stream has been named: the peer opens no more here."""
        return self._control.refusing

    def feed(self, data: bytes) -> bool:
        """Read bytes as they come, cut anywhere; say whether all whole frames were read.

        Each frame costs one of `budget`; when it is used up the rest waits for the next call.
        """
        if self._rest:
            data = self._rest + data
            self._rest = b""
        position, end = 0, len(data)
        if not self._greeted:
            if not data.startswith(PREFACE[:end]):
                raise ConnectionFault(PROTOCOL_ERROR, "not HTTP/2")
            if end < len(PREFACE):
                self._rest = data
                return True
            self._greeted = True
            position = len(PREFACE)
        unpack = frames.header.unpack_from
        while end - position >= HEADER_BYTES:
            if self.budget <= 0:
                self._rest = data[position:]
                return False
            head, flags, number = unpack(data, position)
            size = head >> 8
            if size > MAX_FRAME_BYTES:
                raise ConnectionFault(FRAME_SIZE_ERROR, "frame too large")
            start = position + HEADER_BYTES
            if start + size > end:
                break
            position = start + size
            self.budget -= 1
            kind = head & 0xFF
            if kind == DATA and self._block is None:
                self._data(flags, number & MAX_WINDOW, data[start:position])
            else:
                self._frame(kind, flags, number & MAX_WINDOW, data[start:position])
        if position < end:
            self._rest = data[position:] if position else data
        return True

    # What the owner asks for.

    def release(self, stream: Stream) -> None:
        """Take data again: what was held has been used."""
        stream.held = False
        if stream.open and not stream.ended and stream.consumed >= REPLENISH_BYTES:
            self._replenish(stream)

    def cancel(self, stream: Stream) -> None:
        """End a stream at once, without what it would still have sent."""
        if stream.open:
            reset = frames.number.pack(frames.CANCEL)
            self.sender.out.append(frame(RST_STREAM, 0, stream.number, reset))
            self._forget(stream)
            self._handler.reset(stream)

    def _spend(self, cost: int) -> None:
        """Take of the turn's budget what a frame costs beyond the one that every frame does."""
        self.budget -= cost

    # Streams.

    def _forget(self, stream: Stream) -> None:
        """Close our side; until the peer closes its own, its frames are passed over (5.1)."""
        number = stream.number
        stream.open = False
        del self.streams[number]
        self.sender.forget(stream)
        if not stream.ended:
            self._linger(number)

    def _linger(self, number: int) -> None:
        self._lingering[number] = None
        if len(self._lingering) > self._bounds.lingering:
            del self._lingering[next(iter(self._lingering))]

    def _refuse(self, number: int, code: int, ended: bool) -> None:
        """End a stream whose rules were broken (5.4.2)."""
        self._faults.count()
        self.sender.out.append(frame(RST_STREAM, 0, number, frames.number.pack(code)))
        stream = self.streams.get(number)
        if stream is not None:
            stream.ended |= ended
            self._forget(stream)
            self._handler.reset(stream)
        elif not ended:
            self._linger(number)

    def _replenish(self, stream: Stream) -> None:
        if not stream.held:
            update = frames.number.pack(stream.consumed)
            self.sender.out.append(frame(WINDOW, 0, stream.number, update))
            stream.consumed = 0
        elif stream.consumed > STREAM_WINDOW:
            self._refuse(stream.number, FLOW_CONTROL_ERROR, ended=False)

    # Frames.

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None and kind != CONTINUATION:
            raise ConnectionFault(PROTOCOL_ERROR, "a header block was interrupted")
        self._control.check_settled(kind)
        read = self._readers.get(kind)
        if read is None:  # a kind nobody has defined (5.5)
            self._ignored.count()
        else:
            read(flags, number, payload)

    def _check_not_idle(self, number: int, what: str) -> None:
        """Raise when the peer never opened the stream; one that crossed our GOAWAY is not idle."""
        if (
            number == 0
            or (number > self._control.last and not self._control.refusing)
            or number % 2 == 0
        ):
            raise ConnectionFault(PROTOCOL_ERROR, f"{what} on an idle stream")

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)  # with its padding (6.9.1)
        self._consumed += size
        if self._consumed >= REPLENISH_BYTES:
            self.sender.out.append(frame(WINDOW, 0, 0, frames.number.pack(self._consumed)))
            self._consumed = 0
        if flags & PADDED:
            payload = unpadded(payload)
        ends = flags & END_STREAM
        stream = self.streams.get(number)
        if stream is None or stream.ended:
            self._stray_data(number, bool(ends), bool(payload))
            return
        if stream.expected is not None:
            stream.expected -= len(payload)
            if stream.expected < 0 or (ends and stream.expected):
                self._refuse(number, PROTOCOL_ERROR, bool(ends))  # 8.1.1
                return
        if ends:
            stream.ended = True
            if payload:
                self._handler.received(stream, payload)
            if stream.open:
                self._handler.half_closed(stream)
            return
        stream.consumed += size
        if payload:
            self._handler.received(stream, payload)
        else:
            self._empty.count()
        if stream.consumed >= REPLENISH_BYTES and stream.open:
            self._replenish(stream)

    def _stray_data(self, number: int, ends: bool, full: bool) -> None:
        self._check_not_idle(number, "DATA")
        if number > self._control.last:
            self._ignored.count()
        elif number in self._lingering:
            if ends:
                del self._lingering[number]
            elif not full:
                self._empty.count()
        else:
            self._refuse(number, STREAM_CLOSED, ended=True)

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        if number % 2 == 0:
            raise ConnectionFault(PROTOCOL_ERROR, "not a client's stream")
        if flags & PADDED:
            payload = unpadded(payload)
        if flags & PRIORITIZED:
            if len(payload) < PRIORITY_BYTES:
                raise ConnectionFault(FRAME_SIZE_ERROR, "no room for the priority")
            if _depends_on(payload) != number:
                flags &= ~PRIORITIZED  # the flag stays for a stream that depends on itself
            payload = payload[PRIORITY_BYTES:]
        if flags & END_HEADERS:
            self._block_done(flags, number, payload)
        else:
            self._block = (number, flags, payload, 0)

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != number:
            raise ConnectionFault(PROTOCOL_ERROR, "CONTINUATION of nothing")
        _, opening, block, count = self._block
        block += payload
        if count >= self._bounds.continuations or len(block) > self._bounds.header_list_bytes:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "header block too large")
        self._block = (number, opening, block, count + 1)
        if flags & END_HEADERS:
            self._block = None
            self._block_done(opening, number, block)

    def _block_done(self, flags: int, number: int, block: bytes) -> None:
        head = self._blocks.read(block)
        ends, broken = bool(flags & END_STREAM), bool(flags & PRIORITIZED)
        stream = self.streams.get(number)
        if stream is not None:
            if stream.ended:
                self._refuse(number, STREAM_CLOSED, ended=True)
            elif not ends or broken or head.trailer_fault or stream.expected:
                self._refuse(number, PROTOCOL_ERROR, ends)
            else:
                stream.ended = True
                self._handler.half_closed(stream)
        elif number in self._lingering:
            if ends:
                del self._lingering[number]
            else:
                self._ignored.count()
        elif number <= self._control.last:
            skipped = any(number in numbers for numbers in self._skipped)
            raise ConnectionFault(PROTOCOL_ERROR if skipped else STREAM_CLOSED, "an old stream")
        elif self._control.refusing:
            self._ignored.count()  # above the last stream of our GOAWAY: the peer asks elsewhere
        else:
            self._open(number, head, ends, broken)

    def _open(self, number: int, head: Head, ends: bool, broken: bool) -> None:
        control = self._control
        if number > control.last + 2:
            self._skipped.append(range(control.last + 1, number))
        control.last = number
        if len(self.streams) >= self._bounds.streams:
            self._refuse(number, REFUSED_STREAM, ends)
        elif broken or head.fault or (ends and head.length):
            self._refuse(number, PROTOCOL_ERROR, ends)
        else:
            stream = Stream(number, self.sender.initial_window, head.length, ends)
            self.streams[number] = stream
            self._handler.opened(stream, head.fields)
            if ends and stream.open:
                self._handler.half_closed(stream)

    def _priority(self, _flags: int, number: int, payload: bytes) -> None:
        self._ignored.count()
        if number == 0:
            raise ConnectionFault(PROTOCOL_ERROR, "PRIORITY on stream 0")
        wrong = 0
        if len(payload) != PRIORITY_BYTES:
            wrong = FRAME_SIZE_ERROR
        elif _depends_on(payload) == number:
            wrong = PROTOCOL_ERROR
        if wrong and number > self._control.last:  # RST_STREAM is not for idle streams (6.4)
            raise ConnectionFault(wrong, "bad PRIORITY")
        if wrong and number in self.streams:
            self._refuse(number, wrong, ended=False)

    def _reset(self, _flags: int, number: int, payload: bytes) -> None:
        if len(payload) != frames.number.size:
            raise ConnectionFault(FRAME_SIZE_ERROR, "bad RST_STREAM")
        self._check_not_idle(number, "RST_STREAM")
        stream = self.streams.get(number)
        if stream is not None:
            self._resets.count()
            stream.ended = True
            self._forget(stream)
            self._handler.reset(stream)
        elif number in self._lingering:
            del self._lingering[number]
        else:
            self._ignored.count()

    def _window(self, _flags: int, number: int, payload: bytes) -> None:
        if len(payload) != frames.number.size:
            raise ConnectionFault(FRAME_SIZE_ERROR, "bad WINDOW_UPDATE")
        self._windows.count()
        more = int.from_bytes(payload, "big") & MAX_WINDOW
        if number == 0:
            if not more:
                raise ConnectionFault(PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self.sender.more(more)
            return
        self._check_not_idle(number, "WINDOW_UPDATE")
        stream = self.streams.get(number)
        if stream is None:
            return
        if not more:
            self._refuse(number, PROTOCOL_ERROR, ended=False)
        elif not self.sender.more_for(stream, more):
            self._refuse(number, FLOW_CONTROL_ERROR, ended=False)


def _depends_on(payload: bytes) -> int:
    return int.from_bytes(payload[:4], "big") & MAX_WINDOW
