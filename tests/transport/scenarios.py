"""What every transport shows over a real Unix socket: streams that end do not end each other.

A test module imports these tests and has a fixture `serve`, which builds its transport.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.service import ProtocolError
from extproc.transport import ACCESS_LOG, EXT_PROC, MESSAGE_OVERHEAD_BYTES, Transport

MAX_BODY_BYTES = 64 * 1024
LIMIT_BYTES = MAX_BODY_BYTES + MESSAGE_OVERHEAD_BYTES
IMPATIENT_S = 0.05  # of an exchange that waits for nobody
PATIENCE_S = 30  # no test waits so long unless it fails
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass
class Echo:
    """Answers every message with itself; `end` ends it, `bad` breaks the protocol."""

    ended: bool = False
    closes: int = 0
    broken_close: bool = False
    patience_s: float | None = None
    received: list[bytes] = field(default_factory=list)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)  # a message that would hang

    async def receive(self, raw: bytes, say: Any = None) -> bytes:
        self.entered.set()
        self.received.append(raw)
        if raw == b"bad":
            self.ended = True
            raise ProtocolError("bad in state new")
        if raw == b"hang":
            try:
                await asyncio.Event().wait()
            finally:
                self.left.set()
        self.patience_s = IMPATIENT_S if raw.startswith(b"impatient") else self.patience_s
        if raw.startswith(b"wait"):
            await say(b"a moment")
        if raw.startswith((b"later", b"wait and later")):
            await self.released.wait()
        if raw == b"late":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.Event().wait()
            return b"timed out"
        if raw == b"thread":
            async with asyncio.timeout(PATIENCE_S):
                return await asyncio.to_thread(bytes.upper, raw)
        if raw == b"bug":
            raise ZeroDivisionError
        if raw == b"late bug":
            await asyncio.to_thread(divmod, 1, 0)
        if raw.endswith(b"cancelled"):
            if raw.startswith(b"late"):
                await asyncio.sleep(0)
            raise asyncio.CancelledError  # as a shared task that was cancelled would
        if raw == b"late bad":
            await asyncio.sleep(0)
            raise ProtocolError("bad later")
        self.ended = raw == b"end"
        return raw

    def overdue(self) -> bytes:
        if self.received[-1] == b"impatient bug":
            raise ZeroDivisionError
        return b"overdue"

    def close(self) -> None:
        self.closes += 1
        self.closed.set()
        if self.broken_close:
            raise ZeroDivisionError


@dataclass
class Opened:
    """Every exchange there was."""

    exchanges: list[Echo] = field(default_factory=list)
    broken_close: bool = False

    def open(self) -> Echo:
        self.exchanges.append(Echo(broken_close=self.broken_close))
        return self.exchanges[-1]


@dataclass
class Inbox:
    """Every access-log message there was."""

    messages: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)

    def receive(self, raw: bytes) -> None:
        self.messages.put_nowait(raw)


Serve = Callable[[Path, Opened, Inbox, int], Transport]


@dataclass
class Bench:
    """A running transport, what is behind it and a channel to it."""

    transport: Transport
    opened: Opened
    inbox: Inbox
    channel: grpc.aio.Channel

    def process(self) -> Any:
        return self.channel.stream_stream(f"/{EXT_PROC}/Process")(timeout=PATIENCE_S)

    def logs(self) -> Any:
        return self.channel.stream_unary(f"/{ACCESS_LOG}/StreamAccessLogs")(timeout=PATIENCE_S)

    async def health(self, service: str) -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        request = health_pb2.HealthCheckRequest(service=service)
        status: int = (await stub.Check(request, timeout=PATIENCE_S)).status
        return status


@asynccontextmanager
async def running(serve: Serve, path: Path, limit: int = MAX_BODY_BYTES) -> AsyncIterator[Bench]:
    """Run a transport and leave nothing behind."""
    opened, inbox = Opened(), Inbox()
    transport = serve(path, opened, inbox, limit)
    await transport.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{path}", options=UNLIMITED) as channel:
            yield Bench(transport, opened, inbox, channel)
    finally:
        await transport.stop(0)


@pytest.fixture
async def bench(serve: Serve, tmp_path: Path) -> AsyncIterator[Bench]:
    async with running(serve, tmp_path / "s.sock") as started:
        yield started


async def ask(stream: Any, raw: bytes) -> Any:
    """Send one message and read its reply."""
    await stream.write(raw)
    return await stream.read()


async def within(event: asyncio.Event) -> None:
    """Wait for an event that must come."""
    async with asyncio.timeout(PATIENCE_S):
        await event.wait()


async def _to_the_end(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


async def failure(stream: Any) -> grpc.StatusCode:
    """Read what ended a stream."""
    with pytest.raises(grpc.aio.AioRpcError):
        await _to_the_end(stream)
    code: grpc.StatusCode = await stream.code()
    return code


async def test_garbage_ends_its_stream_alone(bench: Bench) -> None:
    good, bad = bench.process(), bench.process()
    assert await ask(good, b"one") == b"one"
    await bad.write(b"bad")
    assert await failure(bad) is grpc.StatusCode.INVALID_ARGUMENT
    assert await bad.details() == "bad in state new"
    assert await ask(good, b"end") == b"end"
    assert await good.code() is grpc.StatusCode.OK
    for exchange in bench.opened.exchanges:
        await within(exchange.closed)
    assert [exchange.closes for exchange in bench.opened.exchanges] == [1, 1]


async def test_a_message_over_the_limit_ends_its_stream_alone(bench: Bench) -> None:
    good, big = bench.process(), bench.process()
    assert await ask(good, b"one") == b"one"
    await big.write(b"x" * (LIMIT_BYTES + 1))
    assert await failure(big) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await ask(good, b"end") == b"end"
    await within(bench.opened.exchanges[-1].closed)


async def test_a_message_at_the_limit_passes(bench: Bench) -> None:
    stream = bench.process()
    largest = b"x" * LIMIT_BYTES
    assert await ask(stream, largest) == largest
    assert await ask(stream, b"end") == b"end"


@pytest.mark.parametrize("moment", ["between messages", "while one is worked on"])
async def test_a_client_that_leaves_closes_its_exchange_once(bench: Bench, moment: str) -> None:
    stream = bench.process()
    assert await ask(stream, b"one") == b"one"
    (exchange,) = bench.opened.exchanges
    if moment == "while one is worked on":
        exchange.entered.clear()
        await stream.write(b"hang")
        await within(exchange.entered)
    stream.cancel()
    await within(exchange.closed)
    await bench.transport.stop(0)
    assert exchange.closes == 1


async def test_messages_are_answered_in_order_until_the_exchange_ends(bench: Bench) -> None:
    stream = bench.process()
    assert [await ask(stream, raw) for raw in (b"one", b"", b"end")] == [b"one", b"", b"end"]
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK
    (exchange,) = bench.opened.exchanges
    await within(exchange.closed)
    assert exchange.closes == 1


@pytest.mark.parametrize("raw", [b"wait", b"wait and later"], ids=["at once", "suspended"])
async def test_what_is_said_meanwhile_comes_before_the_answer(bench: Bench, raw: bytes) -> None:
    """And without waiting for it."""
    stream = bench.process()
    assert await ask(stream, b"one") == b"one"
    assert await ask(stream, raw) == b"a moment"
    (exchange,) = bench.opened.exchanges
    exchange.released.set()
    assert await stream.read() == raw
    assert await ask(stream, b"end") == b"end"


async def test_what_is_said_first_begins_the_stream(bench: Bench) -> None:
    stream = bench.process()
    assert [await ask(stream, b"wait"), await stream.read()] == [b"a moment", b"wait"]
    assert await ask(stream, b"end") == b"end"
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_client_that_is_done_ends_the_stream(bench: Bench) -> None:
    stream = bench.process()
    assert await ask(stream, b"one") == b"one"
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK
    (exchange,) = bench.opened.exchanges
    await within(exchange.closed)


async def test_a_peer_that_is_silent_for_too_long_gets_the_last_word(bench: Bench) -> None:
    """Counted from the last reply, however many there were; the call ends with an error."""
    stream, loop = bench.process(), asyncio.get_running_loop()
    assert await ask(stream, b"impatient") == b"impatient"
    assert await ask(stream, b"late") == b"timed out"  # 10 ms later
    heard = loop.time()
    assert await stream.read() == b"overdue"
    assert loop.time() - heard >= IMPATIENT_S * 0.9
    assert await failure(stream) is grpc.StatusCode.ABORTED
    (exchange,) = bench.opened.exchanges
    await within(exchange.closed)
    assert exchange.closes == 1


async def test_patience_ends_with_its_exchange(bench: Bench) -> None:
    """One that has ended is not asked, and others are waited for."""
    other, stream = bench.process(), bench.process()
    assert await ask(other, b"one") == b"one"
    assert [await ask(stream, raw) for raw in (b"impatient", b"end")] == [b"impatient", b"end"]
    assert await stream.read() is grpc.aio.EOF
    silent = bench.process()
    await ask(silent, b"impatient")
    assert await failure(silent) is grpc.StatusCode.ABORTED
    assert await ask(other, b"end") == b"end"


async def test_many_streams_share_a_channel(bench: Bench) -> None:
    streams = [bench.process() for _ in range(50)]
    names = [b"%d" % number for number in range(50)]
    assert await asyncio.gather(*map(ask, streams, names)) == names
    assert await asyncio.gather(*(ask(s, b"end") for s in reversed(streams))) == [b"end"] * 50


async def test_an_unknown_method_is_unimplemented(bench: Bench) -> None:
    stream = bench.channel.stream_stream(f"/{EXT_PROC}/Other")(timeout=PATIENCE_S)
    assert await failure(stream) is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("service", ["", EXT_PROC, ACCESS_LOG], ids="service {!r}".format)
async def test_health_says_whether_it_serves(bench: Bench, service: str) -> None:
    await bench.transport.set_serving(True)
    assert await bench.health(service) == health_pb2.HealthCheckResponse.SERVING
    await bench.transport.set_serving(False)
    assert await bench.health(service) == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_access_log_messages_arrive_and_their_streams_are_counted(bench: Bench) -> None:
    assert (bench.transport.log_streams, bench.transport.detached) == (0, False)
    first, second = bench.logs(), bench.logs()
    async with asyncio.timeout(PATIENCE_S):
        for stream, raw in ((first, b"a"), (second, b"b"), (first, b"c")):
            await stream.write(raw)
            assert await bench.inbox.messages.get() == raw
        assert bench.transport.log_streams == 2
        await first.done_writing()
        assert await first == b""
        assert (bench.transport.log_streams, bench.transport.detached) == (1, False)
    second.cancel()
    await bench.transport.stop(PATIENCE_S)
    assert (bench.transport.log_streams, bench.transport.detached) == (0, True)


async def test_stopping_lets_an_open_stream_end(bench: Bench) -> None:
    stream = bench.process()
    assert await ask(stream, b"one") == b"one"
    stopping = asyncio.create_task(bench.transport.stop(PATIENCE_S))
    assert await ask(stream, b"end") == b"end"
    await stopping
    assert await stream.code() is grpc.StatusCode.OK
    assert [exchange.closes for exchange in bench.opened.exchanges] == [1]


async def test_stopping_cuts_a_stream_that_outlives_the_grace(bench: Bench) -> None:
    stream = bench.process()
    assert await ask(stream, b"one") == b"one"
    await bench.transport.stop(0)
    assert await failure(stream) in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    (exchange,) = bench.opened.exchanges
    await within(exchange.closed)
    assert exchange.closes == 1


async def test_a_stopped_transport_takes_no_stream(bench: Bench) -> None:
    await bench.transport.stop(0)
    assert await failure(bench.process()) is grpc.StatusCode.UNAVAILABLE
    assert bench.opened.exchanges == []


async def test_the_socket_of_a_dead_process_is_taken_over(serve: Serve, tmp_path: Path) -> None:
    for _ in range(2):
        async with running(serve, tmp_path / "s.sock") as bench:
            assert await ask(bench.process(), b"end") == b"end"


async def test_a_socket_that_cannot_be_had_is_an_os_error(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(OSError):  # noqa: PT011 (the transport words it)
        await serve(tmp_path / "none" / "s.sock", Opened(), Inbox(), 1).start()
