"""Frames about the connection itself: SETTINGS, PING, GOAWAY, and saying goodbye.

Knows: RFC 9113 6.5, 6.7, 6.8 and the sending half. Must not know: what a stream is doing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from extproc.transport import frames
from extproc.transport.bounds import Bounds, Meter
from extproc.transport.frames import (
    ACK,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    MAX_FRAME_BYTES,
    MAX_WINDOW,
    PING,
    PROTOCOL_ERROR,
    SETTINGS,
    WINDOW,
    ConnectionFault,
    frame,
)
from extproc.transport.sending import Sender
from extproc.transport.stream import Stream

STREAM_WINDOW: Final = 16 * 1024 * 1024  # a whole request body without waiting
FAREWELL: Final = b"farewell"  # the PING whose answer has seen our first GOAWAY


class Control:
    """The connection's own state. `last` is the highest stream that was opened to us."""

    def __init__(
        self,
        sender: Sender,
        streams: Mapping[int, Stream],
        bounds: Bounds,
        clock: Callable[[], float],
    ) -> None:
        self.last = 0
        self.refusing = False
        self._settled = False
        self._sender = sender
        self._streams = streams
        self._pings = Meter(bounds.pings, "PING", clock)
        self._changes = Meter(bounds.settings, "SETTINGS", clock)
        self._farewells = Meter(bounds.goaways, "GOAWAY", clock)
        offered = (
            (frames.MAX_CONCURRENT_STREAMS, bounds.streams),
            (frames.INITIAL_WINDOW_SIZE, STREAM_WINDOW),
            (frames.MAX_HEADER_LIST_SIZE, bounds.header_list_bytes),
        )
        sender.out += (
            frame(SETTINGS, 0, 0, b"".join(frames.setting.pack(*one) for one in offered)),
            # Because bodies under way on all streams share it, a bound here could stop them all:
            # `held_bytes` is the bound, and costs one stream.
            frame(WINDOW, 0, 0, frames.number.pack(MAX_WINDOW - frames.DEFAULT_WINDOW)),
        )

    def check_settled(self, kind: int) -> None:
        """Raise ConnectionFault when another frame comes before the first SETTINGS (3.4)."""
        if not self._settled and kind != SETTINGS:
            raise ConnectionFault(PROTOCOL_ERROR, "SETTINGS must come first")

    def refuse_new(self) -> None:
        """Announce the end in two steps (6.8): streams that are under way to us are still served.

        The second GOAWAY names the last stream, once the answer to a PING shows that the peer has
        seen the first.
        """
        self._sender.out.append(frame(GOAWAY, 0, 0, frames.pair.pack(MAX_WINDOW, frames.NO_ERROR)))
        self._sender.out.append(frame(PING, 0, 0, FAREWELL))

    def finish(self) -> None:
        """Name the last stream now if that has not been done: later ones may be tried elsewhere."""
        if not self.refusing:
            self.refusing = True
            self.fail(frames.NO_ERROR)

    def fail(self, code: int) -> None:
        """Announce the end of the connection and its reason."""
        self._sender.out.append(frame(GOAWAY, 0, 0, frames.pair.pack(self.last, code)))

    def settings(self, flags: int, number: int, payload: bytes) -> None:
        """Read SETTINGS and acknowledge them (6.5)."""
        if number:
            raise ConnectionFault(PROTOCOL_ERROR, "SETTINGS on a stream")
        if len(payload) % frames.setting.size or (flags & ACK and payload):
            raise ConnectionFault(FRAME_SIZE_ERROR, "bad SETTINGS")
        self._changes.count()
        if flags & ACK:
            self.check_settled(frames.DATA)
            return
        self._settled = True
        # Because a frame has room for 2,730 values, each stream's window is changed once, by the
        # last of them.
        window = self._sender.initial_window
        for identifier, value in frames.setting.iter_unpack(payload):
            if identifier == frames.INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW:
                    raise ConnectionFault(FLOW_CONTROL_ERROR, "window too large")
                window = value
            elif identifier == frames.MAX_FRAME_SIZE:
                if not MAX_FRAME_BYTES <= value <= frames.LARGEST_FRAME_BYTES:
                    raise ConnectionFault(PROTOCOL_ERROR, "frame size out of range")
                self._sender.largest_frame = value
            elif identifier == frames.ENABLE_PUSH and value > 1:
                raise ConnectionFault(PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
            elif identifier == frames.HEADER_TABLE_SIZE:
                self._sender.acknowledge_table()
        self._sender.out.append(frame(SETTINGS, ACK, 0))
        if window != self._sender.initial_window:
            self._sender.resize(window, self._streams.values())

    def ping(self, flags: int, number: int, payload: bytes) -> None:
        """Answer PING (6.7); the answer to ours completes the goodbye."""
        if number:
            raise ConnectionFault(PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != frames.PING_BYTES:
            raise ConnectionFault(FRAME_SIZE_ERROR, "bad PING")
        self._pings.count()
        if not flags & ACK:
            self._sender.out.append(frame(PING, ACK, 0, payload))
        elif payload == FAREWELL:
            self.finish()

    def goaway(self, _flags: int, number: int, payload: bytes) -> None:
        """Pass over GOAWAY (6.8): the peer takes no streams of ours, and there are none."""
        self._farewells.count()
        if number:
            raise ConnectionFault(PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < frames.GOAWAY_BYTES:
            raise ConnectionFault(FRAME_SIZE_ERROR, "bad GOAWAY")

    def push(self, _flags: int, _number: int, _payload: bytes) -> None:
        """Refuse PUSH_PROMISE (8.4). Raises ConnectionFault."""
        raise ConnectionFault(PROTOCOL_ERROR, "a client cannot push")
