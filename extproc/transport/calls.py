"""The calls of one connection: gRPC's rules, and what is served.

Knows: asyncio's tasks and timers, gRPC's shape, the exchanges. Must not know: frames, sockets or
what messages mean. A coroutine that does not suspend is answered where it is called; a task is
made only when one really waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Protocol

from google.protobuf.message import DecodeError
from grpc_health.v1.health_pb2 import HealthCheckRequest

from extproc.service import ProtocolError
from extproc.transport import ACCESS_LOG, EXT_PROC, SILENT, Exchange, Logs, Streams
from extproc.transport.bounds import Bounds
from extproc.transport.call import Call
from extproc.transport.http2 import Connection
from extproc.transport.rpc import (
    ABORTED,
    DEADLINE_EXCEEDED,
    INTERNAL,
    INVALID_ARGUMENT,
    METHODS,
    NOT_FOUND,
    OK,
    PREFIX_BYTES,
    RESOURCE_EXHAUSTED,
    RESPONSE,
    TRAILERS_OK,
    UNIMPLEMENTED,
    Method,
    prefix,
    refusal,
    timeout_s,
    trailers,
)
from extproc.transport.step import Rest, begin
from extproc.transport.stream import Stream

log: Final = logging.getLogger(__name__)

SERVICES: Final = frozenset({"", EXT_PROC, ACCESS_LOG})  # what health is told of
SERVING: Final = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse
NOT_SERVING: Final = b"\x08\x02"
SERVICE_UNKNOWN: Final = b"\x08\x03"
MESSAGE_COST: Final = 16  # of a turn's budget: 64 messages, some 5 ms of the product


class Lane(Protocol):
    """What the calls of all connections share."""

    streams: Streams
    logs: Logs
    max_message_bytes: int
    bounds: Bounds
    serving: bool

    def exchanges(self, change: int) -> None: ...

    def log_streams_changed(self, change: int) -> None: ...

    def quiet(self) -> None:
        """Nothing waits for this connection's windows any more."""


class Calls:
    """Handles the streams of one connection. `later` gives a call another turn, `flush` writes."""

    def __init__(
        self,
        lane: Lane,
        clock: Callable[[], float],
        later: Callable[[Call], None],
        flush: Callable[[], None],
    ) -> None:
        self.http = Connection(self, lane.bounds, clock)
        self._lane = lane
        self._loop = asyncio.get_running_loop()
        self._later = later
        self._flush = flush
        self._held_bytes = 0  # in the buffers of all calls

    def close(self) -> None:
        """Clean up after every call: the connection has gone."""
        for stream in list(self.http.streams.values()):
            self.reset(stream)
        self.http.streams.clear()

    def tell_watchers(self) -> None:
        """Send the health status to whoever watches it and has not been told."""
        for stream in list(self.http.streams.values()):
            call: Call = stream.owner
            if call.service is not None and not call.done:
                self._tell(call)

    # What the HTTP/2 connection reports.

    def opened(self, stream: Stream, headers: Mapping[str, str]) -> None:
        call = stream.owner = Call(stream, METHODS.get(headers.get(":path", "")))
        refused = refusal(headers)
        if refused:
            self.http.send(stream, b"", b"", refused)
            self._forget(call)
            return
        timeout = headers.get("grpc-timeout")
        if timeout is not None:
            try:
                call.timer = self._loop.call_later(timeout_s(timeout), self._expire, call)
            except ValueError as error:
                self._end(call, INTERNAL, str(error))
                return
        if call.method is Method.PROCESS:
            self._open_exchange(call)
        elif call.method is Method.LOGS:
            call.logs = True
            self._lane.log_streams_changed(1)
        elif call.method is None:
            self._end(call, UNIMPLEMENTED, "unknown method")

    def received(self, stream: Stream, data: bytes) -> None:
        call: Call = stream.owner
        if call.done:
            return
        if not call.buffer and call.task is None and stream.queue is None and not call.ready:
            size = len(data) - PREFIX_BYTES
            if (
                size >= 0
                and prefix.unpack_from(data) == (0, size)
                and size <= self._lane.max_message_bytes
            ):  # one whole message, which is the rule for small ones
                self._message(call, data[PREFIX_BYTES:])
                return
        call.buffer += data
        self._held_bytes += len(data)
        if self._held_bytes > self._lane.bounds.held_bytes:
            self._end(call, RESOURCE_EXHAUSTED, "too many bytes under way")
        else:
            self.proceed(call)

    def half_closed(self, stream: Stream) -> None:
        call: Call = stream.owner
        call.half_closed = True
        if call.done:
            return
        if call.task is None and stream.queue is None and not call.ready:
            self._complete(call)

    def reset(self, stream: Stream) -> None:
        self._forget(stream.owner)
        if not self.http.sender.queued:
            self._lane.quiet()

    def drained(self, stream: Stream) -> None:
        call: Call | None = stream.owner
        if call is not None and not call.done:
            self._later(call)
        if not self.http.sender.queued:
            self._lane.quiet()

    # Calls.

    def proceed(self, call: Call) -> None:
        """Take the whole messages out of a call's buffer, as far as its turn goes."""
        buffer, stream = call.buffer, call.stream
        while call.task is None and stream.queue is None and not call.done:
            if len(buffer) < PREFIX_BYTES:
                break
            compressed, size = prefix.unpack_from(buffer)
            if compressed:
                self._end(call, UNIMPLEMENTED, "compressed messages are not taken")
                return
            if size > self._lane.max_message_bytes:
                self._end(call, RESOURCE_EXHAUSTED, "message too large")
                return
            stop = PREFIX_BYTES + size
            if len(buffer) < stop:
                break
            if self.http.budget <= 0:
                stream.held = True
                self._later(call)
                return
            with memoryview(buffer) as view:
                message = bytes(view[PREFIX_BYTES:stop])
            del buffer[:stop]
            self._held_bytes -= stop
            self._message(call, message)
        if call.done:
            return
        if call.task is not None or stream.queue is not None:
            stream.held = True
            return
        if stream.held:
            self.http.release(stream)
        if call.half_closed and not call.done:
            self._complete(call)

    def _message(self, call: Call, message: bytes) -> None:
        self.http.budget -= MESSAGE_COST
        try:
            if call.exchange is not None:
                reply = begin(call.exchange.receive(message, partial(self._say, call)), self._loop)
                if isinstance(reply, Rest):
                    call.task = self._loop.create_task(self._rest(call, call.exchange, reply))
                else:
                    self._answer(call, call.exchange, reply)
            elif call.method is Method.LOGS:
                self._lane.logs.receive(message)
            else:
                self._health(call, HealthCheckRequest.FromString(message).service)
        except ProtocolError as error:
            self._end(call, INVALID_ARGUMENT, str(error))
        except DecodeError:
            self._end(call, INTERNAL, "the request is not readable")
        except (Exception, asyncio.CancelledError):
            # Because a bug in the processor must not take the connection with it.
            log.exception("stream failed")
            self._end(call, INTERNAL, "internal")

    async def _rest(self, call: Call, exchange: Exchange, rest: Rest) -> None:
        """Answer the message that suspended; those that came meanwhile have their turn then."""
        try:
            self._answer(call, exchange, await rest)
        except ProtocolError as error:
            self._end(call, INVALID_ARGUMENT, str(error))
        except (Exception, asyncio.CancelledError):  # as above
            if call.done:
                raise  # it was we who cancelled it
            log.exception("stream failed")
            self._end(call, INTERNAL, "internal")
        call.task = None
        if not call.done and (call.buffer or call.half_closed or call.stream.held):
            self._later(call)
        self._flush()

    def _open_exchange(self, call: Call) -> None:
        try:
            call.exchange = self._lane.streams.open()
        except Exception:  # as above
            log.exception("stream failed")
            self._end(call, INTERNAL, "internal")
        else:
            self._lane.exchanges(1)

    async def _say(self, call: Call, message: bytes) -> None:
        """Send a message before the answer, at once: the answer may be long in coming."""
        if not call.done:
            head = b"" if call.responded else RESPONSE
            call.responded = True
            self.http.send(call.stream, head, prefix.pack(0, len(message)) + message, b"")
            self._flush()

    def _answer(self, call: Call, exchange: Exchange, reply: bytes) -> None:
        if call.done:
            return  # its time was over while the reply was worked out
        head = b"" if call.responded else RESPONSE
        call.responded = True
        data = prefix.pack(0, len(reply)) + reply
        if exchange.ended:
            self.http.send(call.stream, head, data, TRAILERS_OK)
            self._forget(call)
        else:
            self.http.send(call.stream, head, data, b"")
            patience_s = exchange.patience_s
            if patience_s is not None:
                call.heard = self._loop.time()
                if call.silence is None:  # one timer a call, because a stream has many messages
                    call.silence = self._loop.call_later(patience_s, self._silent, call, exchange)

    def _silent(self, call: Call, exchange: Exchange) -> None:
        """Give an exchange the last word if its peer has been silent for all of its patience."""
        call.silence = None
        patience_s = exchange.patience_s
        if call.done or patience_s is None:
            return
        # Who does not read what was sent is not asked for more.
        busy = call.task is not None or call.stream.queue is not None
        left_s = patience_s if busy else call.heard + patience_s - self._loop.time()
        if left_s > 0:
            call.silence = self._loop.call_later(left_s, self._silent, call, exchange)
            return
        try:
            reply = exchange.overdue()
        except Exception:  # as above
            log.exception("stream failed")
            self._end(call, INTERNAL, "internal")
        else:
            data = prefix.pack(0, len(reply)) + reply
            self.http.send(call.stream, b"", data, trailers(ABORTED, SILENT))
            self._forget(call)
        self._flush()

    def _health(self, call: Call, service: str) -> None:
        if call.method is Method.WATCH:
            if call.service is None:
                call.service = service
                self._tell(call)
        elif service not in SERVICES:
            self._end(call, NOT_FOUND, "unknown service")
        else:
            status = SERVING if self._lane.serving else NOT_SERVING
            data = prefix.pack(0, len(status)) + status
            self.http.send(call.stream, RESPONSE, data, TRAILERS_OK)
            self._forget(call)

    def _tell(self, call: Call) -> None:
        status = SERVING if self._lane.serving else NOT_SERVING
        if call.service not in SERVICES:
            status = SERVICE_UNKNOWN
        if status != call.told:
            call.told = status
            head = b"" if call.responded else RESPONSE
            call.responded = True
            self.http.send(call.stream, head, prefix.pack(0, len(status)) + status, b"")

    def _complete(self, call: Call) -> None:
        """End a call whose client is done and whose messages are all answered."""
        asked = call.service is not None
        if call.buffer or (call.method in {Method.CHECK, Method.WATCH} and not asked):
            self._end(call, INTERNAL, "a message is missing or not whole")
        elif call.method is Method.LOGS:
            self.http.send(call.stream, RESPONSE, prefix.pack(0, 0), TRAILERS_OK)
            self._forget(call)
        elif not asked:  # because a watch goes on
            self._end(call, OK, "")

    def _expire(self, call: Call) -> None:
        if call.stream.queue is None:
            self._end(call, DEADLINE_EXCEEDED, "the call's time is over")
        else:  # because trailers would wait behind what the peer's windows hold back
            self.http.cancel(call.stream)
        self._flush()

    def _end(self, call: Call, status: int, reason: str) -> None:
        block = trailers(status, reason)
        self.http.send(call.stream, b"", b"", block if call.responded else RESPONSE + block)
        self._forget(call)

    def _forget(self, call: Call) -> None:
        """Clean up after a call, exactly once."""
        if not call.stream.open:
            call.stream.owner = None  # because a circle would wait for the garbage collector
        if call.done:
            return
        call.done = True
        self._held_bytes -= len(call.buffer)
        call.buffer.clear()
        for timer in (call.timer, call.silence):
            if timer is not None:
                timer.cancel()
        task, call.task = call.task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        if call.exchange is not None:
            self._lane.exchanges(-1)
            try:
                call.exchange.close()
            except Exception:  # as above
                log.exception("clean-up failed")
        elif call.logs:
            self._lane.log_streams_changed(-1)
