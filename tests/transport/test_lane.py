"""The lane against real gRPC clients: what the reference shows, and what is the lane's own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.transport import EXT_PROC, HEALTH
from extproc.transport.lane import LaneTransport
from tests.e2e.ports import free_port
from tests.transport.scenarios import *  # noqa: F403
from tests.transport.scenarios import (
    MAX_BODY_BYTES,
    PATIENCE_S,
    UNLIMITED,
    Bench,
    Inbox,
    Opened,
    Serve,
    ask,
    failure,
    running,
    within,
)

MIB = 1024 * 1024


@pytest.fixture
def serve() -> Serve:
    return lambda path, opened, inbox, limit: LaneTransport(f"unix:{path}", opened, inbox, limit)


@pytest.fixture
async def wide(serve: Serve, tmp_path: Path) -> AsyncIterator[Bench]:
    async with running(serve, tmp_path / "wide.sock", 10 * MIB) as started:
        yield started


@pytest.mark.parametrize("size", [1, 16_379, 16_384, 65_535, 65_536, MIB + 1, 10 * MIB])
async def test_a_message_of_any_size_goes_both_ways(wide: Bench, size: int) -> None:
    stream = wide.process()
    message = bytes(range(256)) * (size // 256) + bytes(size % 256)
    for _ in range(3):  # more than any first window
        assert await ask(stream, message) == message
    assert await ask(stream, b"end") == b"end"


async def test_large_messages_of_several_streams_share_the_connection(wide: Bench) -> None:
    streams = [wide.process() for _ in range(6)]
    messages = [bytes((number,)) * (2 * MIB + number) for number in range(6)]
    assert await asyncio.gather(*map(ask, streams, messages)) == messages


async def test_a_thousand_streams_are_open_at_once(bench: Bench) -> None:
    """On one connection, and each has its own bytes."""
    streams = [bench.process() for _ in range(1000)]
    names = [b"%d" % number for number in range(1000)]
    assert await asyncio.gather(*map(ask, streams, names)) == names
    assert len(bench.opened.exchanges) == 1000
    assert await asyncio.gather(*(ask(s, b"end") for s in reversed(streams))) == [b"end"] * 1000
    assert [exchange.closes for exchange in bench.opened.exchanges] == [1] * 1000


async def test_cancels_at_random_points_close_every_exchange_once(bench: Bench) -> None:
    """Before, while and after messages go, big ones included; those that stay are answered."""
    draw = random.Random(20260301)
    big = bytes(MAX_BODY_BYTES)

    async def play(number: int) -> None:
        stream = bench.process()
        mine = draw.random() < 0.5
        try:
            for turn in range(draw.randint(0, 4)):
                raw = draw.choice([b"%d" % number, b"thread", big, b"late"])
                await stream.write(raw)
                if mine and draw.random() < 0.3:
                    return
                reply = await stream.read()
                assert reply == {b"thread": b"THREAD", b"late": b"timed out"}.get(raw, raw), turn
            assert await ask(stream, b"end") == b"end"
        finally:
            stream.cancel()

    for _ in range(4):
        await asyncio.gather(*(play(number) for number in range(100)))
    last = bench.process()
    assert await ask(last, b"end") == b"end"
    for exchange in bench.opened.exchanges:
        await within(exchange.closed)
    assert {exchange.closes for exchange in bench.opened.exchanges} == {1}


async def test_a_deadline_is_kept_by_the_server_too(bench: Bench) -> None:
    """The exchange does not outlive what its caller would wait for."""
    stream = bench.channel.stream_stream(f"/{EXT_PROC}/Process")(timeout=0.1)
    await stream.write(b"hang")
    assert await failure(stream) is grpc.StatusCode.DEADLINE_EXCEEDED
    await within(bench.opened.exchanges[0].closed)
    assert await ask(bench.process(), b"end") == b"end"
    assert bench.opened.exchanges[0].closes == 1


async def test_metadata_of_any_shape_is_carried_and_passed_over(bench: Bench) -> None:
    """Long, binary, repeated, and more of it than one frame holds."""
    metadata = [("x-bin", bytes(range(256))), ("x", "1"), ("x", "2")]
    metadata += [(f"x-{number}", "v" * 200) for number in range(150)]
    method = bench.channel.stream_stream(f"/{EXT_PROC}/Process")
    for _ in range(3):
        stream = method(timeout=PATIENCE_S, metadata=metadata)
        assert await ask(stream, b"end") == b"end"
        assert dict(await stream.initial_metadata()) == {}
        assert await stream.code() is grpc.StatusCode.OK


async def test_a_unary_call_is_answered(bench: Bench) -> None:
    """One message and the end, in one go."""
    call = bench.channel.unary_unary(f"/{EXT_PROC}/Process")
    assert await call(b"end", timeout=PATIENCE_S) == b"end"


@pytest.mark.parametrize("before", [[], [b"one"], [b"thread"]], ids=str)
@pytest.mark.parametrize(
    ("raw", "reply"), [(b"late", b"timed out"), (b"thread", b"THREAD")], ids=["timeout", "thread"]
)
async def test_an_exchange_may_suspend(
    bench: Bench, before: list[bytes], raw: bytes, reply: bytes
) -> None:
    stream = bench.process()
    for other in before:
        await ask(stream, other)
    assert await ask(stream, raw) == reply
    assert await ask(stream, b"end") == b"end"
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_suspended_stream_answers_in_order_and_holds_up_no_other(bench: Bench) -> None:
    slow, quick = bench.process(), bench.process()
    sent = [b"later 1", b"two", b"late", b"thread", b"later 5", b"six", b"end"]
    await slow.write(sent[0])
    assert await ask(quick, b"end") == b"end"
    exchange = next(found for found in bench.opened.exchanges if not found.ended)
    await within(exchange.entered)
    for raw in sent[1:]:
        await slow.write(raw)
    await slow.done_writing()
    exchange.released.set()
    replies = [await slow.read() for _ in sent]
    assert replies == [b"later 1", b"two", b"timed out", b"THREAD", b"later 5", b"six", b"end"]
    assert await slow.read() is grpc.aio.EOF
    assert await slow.code() is grpc.StatusCode.OK
    assert exchange.closes == 1


async def test_a_client_that_is_done_still_gets_the_answer_under_way(bench: Bench) -> None:
    stream = bench.process()
    await stream.write(b"thread")
    await stream.done_writing()
    assert await stream.read() == b"THREAD"
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("raw", [b"later", b"hang"], ids=str)
async def test_cancelling_a_suspended_exchange_closes_it_once(bench: Bench, raw: bytes) -> None:
    stream = bench.process()
    await stream.write(raw)
    await stream.write(b"waiting")
    other = bench.process()
    assert await ask(other, b"one") == b"one"
    exchange = bench.opened.exchanges[0]
    await within(exchange.entered)
    stream.cancel()
    await within(exchange.closed)
    exchange.released.set()
    assert await ask(other, b"end") == b"end"
    await bench.transport.stop(0)
    assert [found.closes for found in bench.opened.exchanges] == [1, 1]


@pytest.mark.parametrize("raw", [b"bug", b"late bug", b"cancelled", b"late cancelled"], ids=str)
async def test_a_bug_ends_its_stream_alone(
    bench: Bench, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = bench.process(), bench.process()
    assert await ask(good, b"one") == b"one"
    with caplog.at_level(logging.CRITICAL + 1):
        await bad.write(raw)
        assert await failure(bad) is grpc.StatusCode.INTERNAL
    assert await ask(good, b"end") == b"end"
    assert [exchange.closes for exchange in bench.opened.exchanges] == [1, 1]


async def test_garbage_found_late_is_refused(bench: Bench) -> None:
    stream = bench.process()
    await stream.write(b"late bad")
    assert await failure(stream) is grpc.StatusCode.INVALID_ARGUMENT
    assert await stream.details() == "bad later"
    assert bench.opened.exchanges[0].closes == 1


async def test_a_compressed_message_is_unimplemented(bench: Bench) -> None:
    method = bench.channel.stream_stream(f"/{EXT_PROC}/Process")
    stream = method(timeout=PATIENCE_S, compression=grpc.Compression.Gzip)
    await stream.write(b"x" * 10_000)
    assert await failure(stream) is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("path", ["/other.Service/Do", f"/{EXT_PROC}/", f"/{HEALTH}/List"])
async def test_what_nobody_serves_is_unimplemented(bench: Bench, path: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.channel.unary_unary(path)(b"", timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_health_of_an_unknown_service_is_not_found(bench: Bench) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.health("other")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watching_health_tells_every_change(bench: Bench) -> None:
    serves = health_pb2.HealthCheckResponse
    stub = health_pb2_grpc.HealthStub(bench.channel)
    watch: Any = stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
    assert (await watch.read()).status == serves.NOT_SERVING
    for serving, status in ((True, serves.SERVING), (False, serves.NOT_SERVING)):
        await bench.transport.set_serving(serving)
        assert (await watch.read()).status == status
    watch.cancel()
    assert await bench.health("") == serves.NOT_SERVING


async def test_a_suspended_stream_ends_within_the_grace(bench: Bench) -> None:
    stream = bench.process()
    await stream.write(b"later")
    await ask(bench.process(), b"end")
    exchange = bench.opened.exchanges[0]
    await within(exchange.entered)
    stopping = asyncio.create_task(bench.transport.stop(PATIENCE_S))
    exchange.released.set()
    assert await stream.read() == b"later"
    assert await failure(bench.process()) is grpc.StatusCode.UNAVAILABLE
    assert await ask(stream, b"end") == b"end"
    await stopping
    assert await stream.code() is grpc.StatusCode.OK


async def test_bytes_that_are_not_http2_close_their_connection_alone(
    bench: Bench, tmp_path: Path
) -> None:
    stream = bench.process()
    assert await ask(stream, b"one") == b"one"
    reader, writer = await asyncio.open_unix_connection(tmp_path / "s.sock")
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(PATIENCE_S):
        assert b"\x00\x00\x08\x07" in await reader.read()  # GOAWAY, then the end
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    assert await ask(stream, b"end") == b"end"


@pytest.mark.parametrize("size", [1, 20_000, 10 * MIB])
async def test_a_synchronous_client_is_served(wide: Bench, tmp_path: Path, size: int) -> None:
    """grpcio's other client: streams, unary, metadata, a deadline and a cancel."""
    big = b"x" * size

    def talk() -> list[object]:
        with grpc.insecure_channel(f"unix:{tmp_path}/wide.sock", options=UNLIMITED) as channel:
            process = channel.stream_stream(f"/{EXT_PROC}/Process")
            said = iter([b"one", big, b"thread", b"end"])
            answers: list[object] = list(process(said, timeout=PATIENCE_S, metadata=[("x", "y")]))
            left = process(iter([b"hang"]), timeout=PATIENCE_S)
            left.cancel()
            unary = channel.unary_unary(f"/{EXT_PROC}/Process")
            answers.append(unary(b"end", timeout=PATIENCE_S))
            with pytest.raises(grpc.RpcError) as caught:
                unary(b"hang", timeout=0.05)
            return [*answers, caught.value.code(), left.code()]

    *answers, late, left = await asyncio.to_thread(talk)
    assert answers == [b"one", big, b"THREAD", b"end", b"end"]
    assert late is grpc.StatusCode.DEADLINE_EXCEEDED
    assert left is grpc.StatusCode.CANCELLED
    for exchange in wide.opened.exchanges:
        await within(exchange.closed)


async def test_a_new_worker_takes_over_and_no_call_is_lost(serve: Serve, tmp_path: Path) -> None:
    """GOAWAY: the stream under way ends where it began, the next ones go to the new worker."""
    path = tmp_path / "s.sock"
    async with running(serve, path) as old:
        stream = old.process()
        assert await ask(stream, b"one") == b"one"
        async with running(serve, path) as new:
            stopping = asyncio.create_task(old.transport.stop(PATIENCE_S))
            answers = 0
            while not new.opened.exchanges:
                assert await ask(old.process(), b"end") == b"end"
                answers += 1
            assert await ask(stream, b"two") == b"two"
            assert await ask(stream, b"end") == b"end"
            await stopping
            assert await ask(old.process(), b"end") == b"end"
            served = len(old.opened.exchanges) + len(new.opened.exchanges)
            assert served == answers + 2


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
async def test_the_loopback_interface_is_served_too(host: str) -> None:
    """By address or by name."""
    opened, port = Opened(), free_port()
    lane = LaneTransport(f"{host}:{port}", opened, Inbox(), MAX_BODY_BYTES)
    try:
        await lane.start()
    except OSError as error:
        pytest.skip(f"no such interface: {error}")
    async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
        stream = channel.stream_stream(f"/{EXT_PROC}/Process")(timeout=PATIENCE_S)
        assert await ask(stream, b"end") == b"end"
    await lane.stop(0)


def test_no_other_address_is_served() -> None:
    """There is no TLS here."""
    with pytest.raises(ValueError, match=r"not 10\.0\.0\.1:1"):
        LaneTransport("10.0.0.1:1", Opened(), Inbox(), 1)


async def test_its_socket_is_this_users_alone(bench: Bench, tmp_path: Path) -> None:
    """Because whoever may connect may decide for Envoy."""
    assert (tmp_path / "s.sock").stat().st_mode & 0o777 == 0o600
