"""What is written behind the calls' backs: in order, again where it is vital, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from extproc.stores import writer as module
from extproc.stores.guarded import Command, GuardedLink
from extproc.stores.writer import Writer
from tests.ledgers import Clock, Errors
from tests.redis_server import RedisServer


@asynccontextmanager
async def writing(server: RedisServer, timeout_s: float = 5.0) -> AsyncIterator[Writer]:
    errors = Errors()
    made = Writer(GuardedLink(server.url, timeout_s, clock=Clock(), observer=errors), errors)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def push(word: str) -> Command:
    return b"RPUSH", b"list", word.encode()


def words(server: RedisServer) -> list[str]:
    return [one.decode() for one in server.client.lrange("list", 0, -1)]


async def test_order_is_kept(redis_server: RedisServer) -> None:
    """Also where one is packed in a thread and the next one is not."""
    async with writing(redis_server) as one:
        wanted = [str(n) for n in range(300)]
        for word in wanted:
            weight = module.BIG_BYTES if int(word) % 10 == 0 else 1
            one.submit("op", weight, lambda word=word: push(word))
        await asyncio.wait_for(one.drained(), 10)
        assert words(redis_server) == wanted


async def test_what_turns_out_to_be_nothing_is_not_sent(redis_server: RedisServer) -> None:
    """An answer that is over by the time its turn comes."""
    async with writing(redis_server) as one:
        one.submit("op", 1, lambda: ())
        one.submit("op", 1, lambda: push("a"))
        await asyncio.wait_for(one.drained(), 10)
        assert words(redis_server) == ["a"]


@pytest.mark.parametrize(
    ("vital", "times"),
    [
        pytest.param(True, module.MAX_TRIES, id="what is vital is tried again"),
        pytest.param(False, 1, id="the rest is not"),
    ],
)
async def test_what_redis_refuses(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, vital: bool, times: int
) -> None:
    """So many times, then it is given up; each is counted."""
    monkeypatch.setattr(module, "MAX_SENT", 1)
    async with writing(redis_server) as one:
        errors = one._observer
        assert isinstance(errors, Errors)
        redis_server.client.set("list", "no list")
        one.submit("op", 1, lambda: push("a"), vital=vital)
        for _ in range(module.MAX_TRIES):
            one.submit("well", 1, lambda: (b"PING",))  # so that the breaker stays closed
        await asyncio.wait_for(one.drained(), 10)
        assert errors.failures == [("redis", "op")] * times


async def test_what_is_sent_at_once_is_bounded(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that hangs holds so many bytes of this process and no more."""
    monkeypatch.setattr(module, "MAX_SENT_BYTES", 1_000)
    async with writing(redis_server) as one:
        most = 0

        def pack(word: str) -> Command:
            nonlocal most
            most = max(most, one._sent_bytes)
            return push(word)

        for n in range(50):
            one.submit("op", 400, lambda n=n: pack(str(n)))
        await asyncio.wait_for(one.drained(), 10)
        assert words(redis_server) == [str(n) for n in range(50)]
        assert most <= 1_000


async def test_what_waits_survives_an_outage(own_redis: RedisServer) -> None:
    """Queued while Redis is away, written in order when it is back."""
    async with writing(own_redis) as one:
        own_redis.kill()
        while one._link.usable:
            await asyncio.sleep(0.001)
        for word in "abc":
            one.submit("op", 1, lambda word=word: push(word))
        own_redis.start()
        await asyncio.wait_for(one.drained(), 10)
        assert words(own_redis) == ["a", "b", "c"]
