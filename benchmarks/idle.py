"""What an open RPC costs in memory: thousands are opened on a processor's socket and left open.

Knows the socket, gRPC's frames and one request's headers. Knows no rung by number.
"""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from hpack import Encoder

from benchmarks.processes import Child, rss_mib
from extproc.pb import core_pb2
from extproc.pb import ext_proc_pb2 as pb
from extproc.transport import EXT_PROC, frames
from extproc.transport.frames import END_HEADERS, END_STREAM, PREFACE, frame

CALLS = 10_000
UNANSWERED = 200
CONNECTIONS = 2  # as many as Envoy has workers
PATIENCE_SECONDS = 60.0
WINDOW = 2**31 - 1 - frames.DEFAULT_WINDOW
CALL = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", f"/{EXT_PROC}/Process"),
    (":authority", "ext_proc"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


class IdleError(RuntimeError):
    """The calls did not stay open."""


def headers_message(headers: Mapping[str, str]) -> bytes:
    """Return the ProcessingRequest that Envoy sends for the headers of one chat completion."""
    fields = {
        ":method": "POST",
        ":path": "/v1/chat/completions",
        ":scheme": "http",
        ":authority": "127.0.0.1",
        "content-type": "application/json",
        "content-length": "1024",
        "x-request-id": "7a1f3f1c-6f0b-4a70-9a3e-2f6a0a5d8f10",
        **headers,
    }
    request = pb.ProcessingRequest()
    headers = core_pb2.HeaderMap()
    for name, value in fields.items():
        headers.headers.add(key=name, raw_value=value.encode())
    request.request_headers.headers = headers.SerializeToString()
    return bytes(request.SerializeToString())


class Caller(asyncio.Protocol):
    """Opens calls on one connection and counts the answers."""

    def __init__(self, calls: int, message: bytes) -> None:
        self.answered = 0
        self.all_answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls = calls
        self._message = b"\x00" + len(message).to_bytes(4, "big") + message
        self._rest = b""
        self._opened = 0
        self._encoder = Encoder()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        write = transport.write  # type: ignore[attr-defined]
        write(PREFACE + frame(frames.SETTINGS, 0, 0))
        write(frame(frames.WINDOW, 0, 0, frames.number.pack(WINDOW)))
        self._open()

    def _open(self) -> None:
        """Open calls until a few hundred are unanswered: grpcio cancels what waits beyond those."""
        out = []
        while self._opened < min(self._calls, self.answered + UNANSWERED):
            number = 2 * self._opened + 1
            out.append(frame(frames.HEADERS, END_HEADERS, number, self._encoder.encode(CALL)))
            out.append(frame(frames.DATA, 0, number, self._message))
            self._opened += 1
        self.transport.write(b"".join(out))  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        while len(data) >= frames.HEADER_BYTES:
            head, flags, _ = frames.header.unpack_from(data)
            stop = frames.HEADER_BYTES + (head >> 8)
            if len(data) < stop:
                break
            if flags & END_STREAM and head & 0xFF in {frames.DATA, frames.HEADERS}:
                self._end(IdleError("a call was ended, not answered"))
            if head & 0xFF == frames.SETTINGS and not flags:
                self.transport.write(frame(frames.SETTINGS, frames.ACK, 0))  # type: ignore[attr-defined]
            if head & 0xFF == frames.DATA:
                self.answered += 1
            data = data[stop:]
        self._rest = data
        self._open()
        if self.answered == self._calls:
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(IdleError(f"the connection was closed: {exc}"))

    def _end(self, problem: Exception | None) -> None:
        if not self.all_answered.done():
            if problem is None:
                self.all_answered.set_result(None)
            else:
                self.all_answered.set_exception(problem)


async def _grown(socket: Path, processor: Child, message: bytes, calls: int) -> float:
    before = rss_mib(processor)
    loop = asyncio.get_running_loop()
    callers: list[Caller] = []
    for _ in range(CONNECTIONS):
        _, caller = await loop.create_unix_connection(
            lambda: Caller(calls // CONNECTIONS, message), os.path.relpath(socket)
        )
        callers.append(caller)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            for caller in callers:
                await caller.all_answered
        return rss_mib(processor) - before
    finally:
        for caller in callers:
            caller.transport.close()


def grown_mib(
    socket: Path, processor: Child, headers: Mapping[str, str], calls: int = CALLS
) -> float:
    """Open `calls` RPCs, have each answered once, and return by how many MiB the process grew.

    Raises `IdleError` or TimeoutError when they are not all open at the end.
    """
    return grown_of(socket, processor, headers_message(headers), calls)


def grown_of(socket: Path, processor: Child, message: bytes, calls: int) -> float:
    """Do the same with a message of one's own."""
    return asyncio.run(_grown(socket, processor, message, calls))
