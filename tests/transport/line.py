"""Two ways to speak to the lane byte by byte: over its socket, and in the hand of a test."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hpack import Decoder, Encoder

from extproc.transport import EXT_PROC, frames
from extproc.transport.bounds import Bounds
from extproc.transport.frames import frame
from extproc.transport.lane import LaneTransport
from extproc.transport.peer import Peer

from .scenarios import PATIENCE_S, Inbox, Opened
from .wire import BOUNDS, ENDS, GRPC, HELLO, WHOLE, D, H


class Line:
    """A connection to the lane, as bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.encoder, self.decoder = Encoder(), Decoder()
        self.last = -1
        writer.write(HELLO)

    def call(
        self, path: str = f"/{EXT_PROC}/Process", *fields: tuple[str, str], flags: int = 0
    ) -> int:
        """Open a stream."""
        self.last += 2
        head = [*GRPC[:3], (":path", path), *(fields or GRPC[4:])]
        self.writer.write(frame(H, WHOLE | flags, self.last, self.encoder.encode(head)))
        return self.last

    def data(self, stream: int, raw: bytes, flags: int = 0) -> None:
        """Send bytes in one DATA frame."""
        self.writer.write(frame(D, flags, stream, raw))

    async def frame(self) -> tuple[int, int, int, bytes]:
        """Read the next frame that is not about the connection."""
        while True:
            async with asyncio.timeout(PATIENCE_S):
                head = await self.reader.readexactly(9)
                payload = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
            if any(head[5:]) or head[3] == frames.GOAWAY:
                return head[3], head[4], int.from_bytes(head[5:], "big"), payload

    async def answer(self, stream: int) -> tuple[dict[str, str], list[bytes], dict[str, str]]:
        """Read a stream to its end: headers, messages, trailers (trailers alone come first)."""
        heads: list[dict[str, str]] = []
        data = b""
        while True:
            kind, flags, number, payload = await self.frame()
            assert number == stream
            if kind == H:
                heads.append(dict(self.decoder.decode(payload)))
            elif kind == D:
                data += payload
            else:
                raise AssertionError((kind, payload))
            if flags & ENDS:
                break
        messages = []
        while data:
            size = int.from_bytes(data[1:5], "big")
            messages.append(data[5 : 5 + size])
            data = data[5 + size :]
        return heads[0], messages, heads[-1]

    async def status(self, stream: int) -> tuple[str, str]:
        """Read a stream to its end and return its status and message."""
        ends = (await self.answer(stream))[2]
        return ends["grpc-status"], ends.get("grpc-message", "")


class Socket:
    """Stands for the transport of a connection: keeps what is written, checks how it is paused."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.paused = False
        self.closed = False
        self.aborted = asyncio.Event()
        self.unsent = 0

    @property
    def out(self) -> bytes:
        """Return everything that was written."""
        return b"".join(self.written)

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written.append(data)

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True
        self.aborted.set()


@dataclass
class Hand:
    """A connection of the lane without a socket; its callbacks run as the loop runs them."""

    opened: Opened
    inbox: Inbox
    peer: Peer
    socket: Socket

    async def give(self, *pieces: bytes) -> None:
        """Let each piece be read in a callback of its own, as soon as reading goes on."""
        loop = asyncio.get_running_loop()
        for piece in pieces:
            while self.socket.paused:
                await asyncio.sleep(0)
            loop.call_soon(self.peer.data_received, piece)
            await asyncio.sleep(0)
        while self.socket.paused and not self.socket.closed:
            await asyncio.sleep(0)

    def lose(self) -> None:
        """End the connection."""
        self.socket.closed = True
        self.peer.connection_lost(None)


def hand(limit: int = 1024 * 1024, bounds: Bounds = BOUNDS) -> Hand:
    """Make a connection; the first words of the server are taken."""
    opened, inbox = Opened(), Inbox()
    lane = LaneTransport("unix:/nowhere", opened, inbox, limit, bounds=bounds)
    peer, socket = Peer(lane, lambda: 1000.0), Socket()
    peer.connection_made(socket)  # type: ignore[arg-type]
    socket.written.clear()
    return Hand(opened, inbox, peer, socket)
