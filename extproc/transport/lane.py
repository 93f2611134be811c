"""The lane: gRPC for the sidecar's Unix socket on one event loop, without grpcio's second thread.

Knows: gRPC framing and the three services. Must not know: what messages mean. A coroutine that does
not suspend is answered inside the read callback, and every read is answered with one write.
Not for networks: no TLS, no TCP. Remote processors use `grpcio`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections import deque
from pathlib import Path
from typing import Final
from urllib.parse import quote

from extproc.service import ProtocolError
from extproc.transport import (
    ACCESS_LOG,
    EXT_PROC,
    HEALTH,
    MESSAGE_OVERHEAD_BYTES,
    Exchange,
    Logs,
    Streams,
)
from extproc.transport.http2 import Connection, ConnectionFault
from extproc.transport.step import Rest, begin

log: Final = logging.getLogger(__name__)

OK, INVALID_ARGUMENT, NOT_FOUND, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = 0, 3, 5, 8, 12, 13
SERVING: Final = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse
NOT_SERVING: Final = b"\x08\x02"
_prefix = struct.Struct(">BL")
PREFIX_BYTES: Final = _prefix.size


def _literal(name: bytes, value: bytes) -> bytes:
    """Encode a header field that no table keeps (RFC 7541 6.2.2); both under 127 bytes."""
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


RESPONSE: Final = b"\x88" + _literal(b"content-type", b"application/grpc")  # :status 200
TRAILERS_OK: Final = _literal(b"grpc-status", b"0")
MAX_REASON_BYTES: Final = 100  # fits one length byte


def trailers(status: int, reason: str) -> bytes:
    """Encode the trailers of a call that failed."""
    message = quote(reason.encode()[: MAX_REASON_BYTES // 3], safe=" ").encode()
    return _literal(b"grpc-status", b"%d" % status) + _literal(b"grpc-message", message)


class _Call:
    """One RPC: its bytes so far, and its exchange when it is an ext_proc stream."""

    __slots__ = (
        "buffer",
        "exchange",
        "half_closed",
        "logs",
        "responded",
        "task",
        "waiting",
        "watch",
    )

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.exchange: Exchange | None = None
        self.logs = False
        self.watch = False
        self.responded = False
        self.half_closed = False
        self.task: asyncio.Task[None] | None = None
        self.waiting: deque[bytes] = deque()


class _Peer(asyncio.Protocol):
    """One connection from Envoy."""

    def __init__(self, lane: LaneTransport) -> None:
        self._lane = lane
        self._calls: dict[int, _Call] = {}
        self._http = Connection(self)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        self._lane.peers.add(self)
        self._flush()

    def connection_lost(self, _: Exception | None) -> None:
        self._lane.peers.discard(self)
        for stream in list(self._calls):
            self.reset(stream)
        self._transport = None

    def data_received(self, data: bytes) -> None:
        try:
            self._http.feed(data)
        except ConnectionFault as fault:
            log.warning("connection refused", extra={"reason": str(fault)})
            self._http.fail(fault)
            self._flush()
            if self._transport is not None:
                self._transport.close()
            return
        self._flush()

    def pause_writing(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def refuse_new(self) -> None:
        """Send GOAWAY; open streams go on."""
        self._http.refuse_new()
        self._flush()

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def tell_watchers(self) -> None:
        """Send the health status to whoever watches it."""
        for stream, call in self._calls.items():
            if call.watch:
                self._reply(stream, call, self._lane.status())
        self._flush()

    # What the HTTP/2 connection reports.

    def opened(self, stream: int, headers: dict[str, str]) -> None:
        call = self._calls[stream] = _Call()
        service, _, method = headers.get(":path", "")[1:].partition("/")
        if (service, method) == (EXT_PROC, "Process"):
            call.exchange = self._lane.streams.open()
            self._lane.count_exchange(1)
        elif (service, method) == (ACCESS_LOG, "StreamAccessLogs"):
            call.logs = True
            self._lane.log_streams += 1
            self._lane.attached = True
        elif service != HEALTH or method not in {"Check", "Watch"}:
            self._end(stream, call, UNIMPLEMENTED, "unknown method")
        else:
            call.watch = method == "Watch"

    def received(self, stream: int, data: bytes) -> None:
        call = self._calls.get(stream)
        if call is None:
            return
        buffer = call.buffer
        buffer += data
        while len(buffer) >= PREFIX_BYTES:
            compressed, size = _prefix.unpack_from(buffer)
            if compressed:
                self._end(stream, call, UNIMPLEMENTED, "compressed messages are not taken")
                return
            if size > self._lane.max_message_bytes:
                self._end(stream, call, RESOURCE_EXHAUSTED, "message too large")
                return
            if len(buffer) < PREFIX_BYTES + size:
                return
            message = bytes(buffer[PREFIX_BYTES : PREFIX_BYTES + size])
            del buffer[: PREFIX_BYTES + size]
            self._message(stream, call, message)
            if stream not in self._calls:
                return

    def half_closed(self, stream: int) -> None:
        call = self._calls.get(stream)
        if call is None or call.watch:
            return
        call.half_closed = True
        if call.task is None:
            if call.logs:
                self._reply(stream, call, b"")
            self._end(stream, call, OK, "")

    def reset(self, stream: int) -> None:
        call = self._calls.pop(stream, None)
        if call is not None:
            self._forget(call)

    # Calls.

    def _message(self, stream: int, call: _Call, message: bytes) -> None:
        if call.exchange is not None:
            if call.task is not None:
                call.waiting.append(message)
            else:
                self._step(stream, call, call.exchange, message)
        elif call.logs:
            self._lane.logs.receive(message)
        else:
            known = message[2:].decode("utf-8", "replace") in {"", EXT_PROC, ACCESS_LOG}
            if not known and not call.watch:
                self._end(stream, call, NOT_FOUND, "unknown service")
                return
            self._reply(stream, call, self._lane.status())
            if not call.watch:
                self._end(stream, call, OK, "")

    def _step(self, stream: int, call: _Call, exchange: Exchange, message: bytes) -> None:
        try:
            reply = begin(exchange.receive(message), self._loop)
        except ProtocolError as error:
            self._end(stream, call, INVALID_ARGUMENT, str(error))
        except Exception:  # a bug in the processor must not take the connection with it
            log.exception("stream failed")
            self._end(stream, call, INTERNAL, "internal")
        else:
            if isinstance(reply, Rest):
                finish = self._finish_step(stream, call, exchange, reply)
                call.task = self._loop.create_task(finish)
            else:
                self._answer(stream, call, exchange, reply)

    async def _finish_step(self, stream: int, call: _Call, exchange: Exchange, rest: Rest) -> None:
        """Answer the message that suspended and, in this task, those that came meanwhile."""
        try:
            self._answer(stream, call, exchange, await rest)
            while call.waiting and stream in self._calls:
                self._flush()
                reply = await exchange.receive(call.waiting.popleft())
                self._answer(stream, call, exchange, reply)
        except ProtocolError as error:
            self._end(stream, call, INVALID_ARGUMENT, str(error))
        except Exception:  # as above
            log.exception("stream failed")
            self._end(stream, call, INTERNAL, "internal")
        else:
            call.task = None
            if call.half_closed and stream in self._calls:
                self._end(stream, call, OK, "")
        self._flush()

    def _answer(self, stream: int, call: _Call, exchange: Exchange, reply: bytes) -> None:
        if self._calls.get(stream) is not call:
            return  # reset while the reply was worked out
        if not call.responded:
            call.responded = True
            self._http.respond(stream, RESPONSE)
        data = _prefix.pack(0, len(reply)) + reply
        if exchange.ended:
            self._http.send(stream, data, TRAILERS_OK)
            del self._calls[stream]
            self._forget(call)
        else:
            self._http.send(stream, data)

    def _reply(self, stream: int, call: _Call, message: bytes) -> None:
        if not call.responded:
            call.responded = True
            self._http.respond(stream, RESPONSE)
        self._http.send(stream, _prefix.pack(0, len(message)) + message)

    def _end(self, stream: int, call: _Call, status: int, reason: str) -> None:
        if self._calls.pop(stream, None) is None:
            return
        block = TRAILERS_OK if status == OK else trailers(status, reason)
        self._http.send(stream, b"", block if call.responded else RESPONSE + block)
        self._forget(call)

    def _forget(self, call: _Call) -> None:
        """Clean up after a call, exactly once: it has been taken out of the table."""
        task, call.task = call.task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        if call.exchange is not None:
            self._lane.count_exchange(-1)
            call.exchange.close()
        if call.logs:
            self._lane.log_streams -= 1

    def _flush(self) -> None:
        if self._transport is not None:
            out = self._http.take()
            if out:
                self._transport.write(out)


class LaneTransport:
    """Serves on a Unix socket."""

    def __init__(self, path: Path, streams: Streams, logs: Logs, max_body_bytes: int) -> None:
        self.streams = streams
        self.logs = logs
        self.max_message_bytes = max_body_bytes + MESSAGE_OVERHEAD_BYTES
        self.peers: set[_Peer] = set()
        self.log_streams = 0
        self.attached = False
        self._path = path
        self._serving = False
        self._exchanges = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._server: asyncio.Server | None = None

    @property
    def detached(self) -> bool:
        """Say whether every access-log stream there was has gone: no entry can come any more."""
        return self.attached and not self.log_streams

    def count_exchange(self, change: int) -> None:
        """Count the open ext_proc streams."""
        self._exchanges += change
        if self._exchanges:
            self._idle.clear()
        else:
            self._idle.set()

    def status(self) -> bytes:
        """Return the health answer."""
        return SERVING if self._serving else NOT_SERVING

    async def start(self) -> None:
        """Bind and serve. Raises OSError when the socket cannot be had."""
        self._path.unlink(missing_ok=True)  # a killed process leaves its socket behind
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Peer(self), str(self._path))
        self._path.chmod(0o600)

    async def set_serving(self, serving: bool) -> None:
        """Answer health checks with SERVING or NOT_SERVING."""
        self._serving = serving
        for peer in list(self.peers):
            peer.tell_watchers()

    async def stop(self, grace_s: float) -> None:
        """Refuse new streams, let open ones end within the grace, then close."""
        if self._server is not None:
            self._server.close()
        for peer in list(self.peers):
            peer.refuse_new()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        await asyncio.sleep(min(grace_s, 0.2))  # four access-log flushes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._idle.wait()
        for peer in list(self.peers):
            peer.close()
