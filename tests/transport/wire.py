"""What the tests of one HTTP/2 connection share: bytes to feed, and an owner that remembers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import h2.config
import h2.connection
from hpack import Encoder

from extproc.transport import EXT_PROC, frames
from extproc.transport.bounds import Bounds
from extproc.transport.frames import PREFACE, frame
from extproc.transport.http2 import TURN_BUDGET, Connection
from extproc.transport.stream import Stream

REQUEST = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/s/M")]
GRPC = [*REQUEST[:3], (":path", f"/{EXT_PROC}/Process"), ("content-type", "application/grpc")]
RESPONSE = b"\x88"
TRAILERS = b"\x00\x0bgrpc-status\x010"
BLOCK = Encoder().encode(REQUEST)
ENDS = frames.END_STREAM
WHOLE = frames.END_HEADERS
H, C, D = frames.HEADERS, frames.CONTINUATION, frames.DATA
HELLO = PREFACE + frame(frames.SETTINGS, 0, 0)
BOUNDS = Bounds()
OPEN = HELLO + frame(H, WHOLE, 1, BLOCK)


@dataclass
class Clock:
    """A clock that a test sets."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Heard:
    """Every event there was, and the streams by their numbers."""

    events: list[tuple[object, ...]] = field(default_factory=list)
    streams: dict[int, Stream] = field(default_factory=dict)

    def opened(self, stream: Stream, headers: Mapping[str, str]) -> None:
        self.streams[stream.number] = stream
        self.events.append(("opened", stream.number, dict(headers)))

    def received(self, stream: Stream, data: bytes) -> None:
        self.events.append(("received", stream.number, data))

    def half_closed(self, stream: Stream) -> None:
        self.events.append(("half closed", stream.number))

    def reset(self, stream: Stream) -> None:
        self.events.append(("reset", stream.number))

    def drained(self, stream: Stream) -> None:
        self.events.append(("drained", stream.number))


def fed(
    *pieces: bytes, bounds: Bounds = BOUNDS, clock: Callable[[], float] = lambda: 1000.0
) -> tuple[Connection, Heard]:
    """Feed a new connection, each piece with a turn's budget; its first words are taken."""
    heard = Heard()
    connection = Connection(heard, bounds, clock)
    connection.take()
    for piece in pieces:
        feed(connection, piece)
    return connection, heard


def feed(connection: Connection, data: bytes) -> None:
    """Feed bytes, in as many turns as they take."""
    connection.budget = TURN_BUDGET
    while not connection.feed(data):
        connection.budget = TURN_BUDGET
        data = b""


def update(stream: int, more: int) -> bytes:
    """Encode WINDOW_UPDATE."""
    return frame(frames.WINDOW, 0, stream, frames.number.pack(more))


def setting(*pairs: tuple[int, int]) -> bytes:
    """Encode SETTINGS."""
    return frame(frames.SETTINGS, 0, 0, b"".join(frames.setting.pack(*pair) for pair in pairs))


def reset(stream: int, code: int = 0) -> bytes:
    """Encode RST_STREAM."""
    return frame(frames.RST_STREAM, 0, stream, frames.number.pack(code))


def goaway(last: int, code: int) -> bytes:
    """Encode GOAWAY."""
    return frame(frames.GOAWAY, 0, 0, frames.pair.pack(last, code))


def parsed(raw: bytes) -> list[tuple[int, int, int, bytes]]:
    """Read frames: kind, flags, stream, payload; what is no whole frame is a failure."""
    found = []
    while raw:
        size = int.from_bytes(raw[:3], "big")
        assert len(raw) >= 9 + size
        found.append((raw[3], raw[4], int.from_bytes(raw[5:9], "big"), raw[9 : 9 + size]))
        raw = raw[9 + size :]
    return found


def message(raw: bytes) -> bytes:
    """Put a message into gRPC's frame."""
    return b"\x00" + len(raw).to_bytes(4, "big") + raw


def client() -> h2.connection.H2Connection:
    """Start the `h2` library's client."""
    made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    made.initiate_connection()
    return made
