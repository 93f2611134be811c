"""The lane against real gRPC clients: what the reference shows, and what is the lane's own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.transport import EXT_PROC, HEALTH
from extproc.transport.lane import LaneTransport
from tests.transport.scenarios import *  # noqa: F403
from tests.transport.scenarios import (
    PATIENCE_S,
    UNLIMITED,
    Bench,
    Serve,
    ask,
    failure,
    running,
    within,
)

MIB = 1024 * 1024


@pytest.fixture
def serve() -> Serve:
    return LaneTransport


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


async def test_five_hundred_streams_are_open_at_once(bench: Bench) -> None:
    streams = [bench.process() for _ in range(500)]
    names = [b"%d" % number for number in range(500)]
    assert await asyncio.gather(*map(ask, streams, names)) == names
    assert len(bench.opened.exchanges) == 500
    assert await asyncio.gather(*(ask(s, b"end") for s in reversed(streams))) == [b"end"] * 500
    assert [exchange.closes for exchange in bench.opened.exchanges] == [1] * 500


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


@pytest.mark.parametrize("raw", [b"bug", b"late bug"], ids=str)
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


async def test_a_synchronous_client_is_served(bench: Bench, tmp_path: Path) -> None:
    def talk() -> list[bytes]:
        with grpc.insecure_channel(f"unix:{tmp_path}/s.sock", options=UNLIMITED) as channel:
            process = channel.stream_stream(f"/{EXT_PROC}/Process")
            return list(process(iter([b"one", b"thread", b"end"]), timeout=PATIENCE_S))

    assert await asyncio.to_thread(talk) == [b"one", b"THREAD", b"end"]
