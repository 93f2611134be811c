"""Identical calls in several processes: one of all goes upstream, whoever hears how it ended."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from extproc.answers import End, Entry, Landing, Role
from extproc.stores import redis_flights as module
from extproc.stores import writer
from extproc.stores.redis_flights import LEASE, RedisFlights
from tests.kept import TieredBench, entry, key, until
from tests.ledgers import Clock
from tests.redis_server import RedisServer

KEY = key("a")
LONG_S = 600.0
ROUNDS = int(os.environ.get("LLM_EDGE_CANCELLATIONS", "300"))  # `make crash` sets 100,000


class Process:
    """One process's store and flights, and the calls that joined there."""

    def __init__(self, url: str, clock: Clock, timeout_s: float) -> None:
        self.bench = TieredBench(url, timeout_s=timeout_s, clock=clock)
        store = self.bench.store
        self.flights = RedisFlights(
            store.far.link, store.far.writer, store, clock=clock, draw=lambda: 0.5
        )
        self.calls: dict[str, asyncio.Task[Landing]] = {}

    def join(self, *ids: str, patience_s: float = LONG_S, lease_s: float = LONG_S) -> None:
        for call_id in ids:
            work = self.flights.join(KEY, call_id, lease_s=lease_s, patience_s=patience_s)
            self.calls[call_id] = asyncio.ensure_future(work)

    def settle(self, call_id: str, end: Entry | End) -> None:
        """Do what settlement does with a leader's answer."""
        if isinstance(end, Entry):
            self.bench.store.put(KEY, end)
        self.flights.finish(KEY, call_id, end)

    def answer(self) -> Entry:
        return entry(self.bench.now_ms, body=b"the answer")


@asynccontextmanager
async def processes(
    server: RedisServer, count: int = 2, timeout_s: float = 5.0
) -> AsyncIterator[list[Process]]:
    """So many processes at one Redis."""
    clock = Clock()
    made = [Process(server.url, clock, timeout_s) for _ in range(count)]
    async with AsyncExitStack() as stack:
        for one in made:
            await one.bench.start()
            stack.push_async_callback(one.bench.stop)
            stack.push_async_callback(one.flights.close)
        yield made
        for one in made:
            for call in one.calls.values():
                call.cancel()
            await asyncio.gather(*one.calls.values(), return_exceptions=True)


async def leader_of(*all_: Process) -> tuple[Process, str]:
    """Return where one call leads and which, once the others wait."""

    def led() -> list[tuple[Process, str]]:
        return [
            (one, call_id)
            for one in all_
            for call_id, call in one.calls.items()
            if call.done() and not call.cancelled() and call.result() is Role.LEAD
        ]

    def open_() -> int:
        return sum(not call.done() for one in all_ for call in one.calls.values())

    await until(lambda: led() and sum(one.flights.stats().waiting for one in all_) == open_())
    (found,) = led()
    return found


def results(*all_: Process) -> list[Landing]:
    return [c.result() for one in all_ for c in one.calls.values() if c.done()]


@pytest.mark.parametrize("settled_at", [0, 1, 2], ids=["its own", "one that waits", "a third"])
async def test_five_hundred_at_once_in_two_processes(
    redis_server: RedisServer, settled_at: int
) -> None:
    """One upstream call, whichever process hears of its end."""
    async with processes(redis_server, 3) as (one, other, third):
        one.join(*[f"one-{n}" for n in range(250)])
        other.join(*[f"other-{n}" for n in range(250)])
        where, call_id = await leader_of(one, other)
        order = [where, other if where is one else one, third]
        answer = one.answer()
        order[settled_at].settle(call_id, answer)
        await asyncio.wait_for(asyncio.gather(*one.calls.values(), *other.calls.values()), 10)
        found = results(one, other)
        assert found.count(Role.LEAD) == 1
        assert found.count(answer) == 499


async def test_a_leader_that_fails_has_one_successor(redis_server: RedisServer) -> None:
    """In any process; two failures, three upstream calls."""
    async with processes(redis_server) as (one, other):
        one.join(*[f"one-{n}" for n in range(10)])
        other.join(*[f"other-{n}" for n in range(10)])
        for _ in range(2):
            where, call_id = await leader_of(one, other)
            del where.calls[call_id]
            where.settle(call_id, End.FAILED)
        where, call_id = await leader_of(one, other)
        answer = one.answer()
        where.settle(call_id, answer)
        await asyncio.wait_for(asyncio.gather(*one.calls.values(), *other.calls.values()), 10)
        assert sorted(map(str, results(one, other))).count(str(Role.LEAD)) == 1
        assert results(one, other).count(answer) == 17


async def test_an_answer_not_to_be_kept_releases_all(redis_server: RedisServer) -> None:
    """In every process."""
    async with processes(redis_server) as (one, other):
        one.join("1", "2")
        other.join("3", "4")
        where, call_id = await leader_of(one, other)
        where.settle(call_id, End.UNSHARED)
        await asyncio.wait_for(asyncio.gather(*one.calls.values(), *other.calls.values()), 10)
        assert results(one, other).count(Role.ALONE) == 3


@pytest.mark.parametrize(
    ("end", "told"),
    [
        pytest.param("answer", Entry, id="an answer is found"),
        pytest.param(End.UNSHARED, Role, id="or that there is none to be had"),
    ],
)
async def test_who_looked_a_moment_before_the_end(
    redis_server: RedisServer, end: Any, told: type
) -> None:
    """And joins a moment after it is told at once, without leading."""
    async with processes(redis_server) as (one, other):
        one.join("1")
        await leader_of(one)
        one.settle("1", one.answer() if end == "answer" else end)
        await one.bench.quiet()
        other.join("2")
        landing = await asyncio.wait_for(other.calls["2"], 10)
        assert isinstance(landing, told)
        assert landing is not Role.LEAD


async def test_a_lease_that_is_never_ended(redis_server: RedisServer) -> None:
    """Its process died: a call of another one leads when the lease is over."""
    async with processes(redis_server) as (one, other):
        one.join("1", lease_s=0.1)
        await leader_of(one)
        other.join("2")
        assert await asyncio.wait_for(other.calls["2"], 10) is Role.LEAD


async def test_a_caller_that_leaves_while_it_asks(redis_server: RedisServer) -> None:
    """Takes nothing with it: the next one leads at once."""
    async with processes(redis_server) as (one, other):
        one.join("1", "2")
        await asyncio.sleep(0)
        one.calls["1"].cancel()
        assert await asyncio.wait_for(one.calls["2"], 10) is Role.LEAD
        one.settle("2", End.FAILED)
        other.join("3")
        assert await asyncio.wait_for(other.calls["3"], 10) is Role.LEAD


async def test_the_lease_of_another_call_is_left_alone(redis_server: RedisServer) -> None:
    """Whoever ends late ends nobody else's."""
    async with processes(redis_server) as (one, other):
        one.join("1")
        await leader_of(one)
        for end in (End.FAILED, End.UNSHARED, other.answer()):
            other.flights.finish(KEY, "late", end)
        await other.bench.quiet()
        assert redis_server.client.get(LEASE + KEY) == b"1"


async def test_patience_ends_without_an_answer(redis_server: RedisServer) -> None:
    """Of a call in another process than the leader's."""
    async with processes(redis_server) as (one, other):
        one.join("1")
        await leader_of(one)
        other.join("2", patience_s=0.05)
        assert await asyncio.wait_for(other.calls["2"], 10) is Role.ALONE
        assert other.flights.stats().waiting == 0


async def test_what_is_stored_and_cannot_be_found(redis_server: RedisServer) -> None:
    """Evicted at once: those who wait go themselves, instead of one after the other."""
    async with processes(redis_server) as (one, other):
        one.join("1")
        await leader_of(one)
        other.join("2", "3")
        await until(lambda: other.flights.stats().waiting == 2)
        one.flights.finish(KEY, "1", one.answer())  # but never put
        await asyncio.wait_for(asyncio.gather(*other.calls.values()), 10)
        assert results(other) == [Role.ALONE, Role.ALONE]


async def test_nobody_asks_when_nobody_waits(redis_server: RedisServer) -> None:
    """The task that asks is there as long as somebody waits."""
    async with processes(redis_server) as (one, other):
        one.join("1")
        await leader_of(one)
        assert one.flights._poller is None
        other.join("2")
        await until(lambda: other.flights._poller is not None)
        other.calls["2"].cancel()
        await asyncio.wait_for(other.flights._poller, 10)
        other.join("3")
        await until(lambda: not other.flights._poller.done())


def kill(server: RedisServer) -> None:
    server.kill()


def pause(server: RedisServer) -> None:
    server.pause()


@pytest.mark.parametrize("trouble", [kill, pause])
async def test_without_redis_each_process_lets_one_go(
    own_redis: RedisServer,
    trouble: Callable[[RedisServer], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also when it goes away while calls wait for another process."""
    monkeypatch.setattr(writer, "CLOSE_S", 0.01)
    async with processes(own_redis, timeout_s=0.05) as (one, other):
        one.join("1", "2")
        await leader_of(one)
        other.join("3", "4")
        await until(lambda: other.flights.stats().waiting == 2)
        trouble(own_redis)
        assert await asyncio.wait_for(other.calls["3"], 10) is Role.LEAD
        other.settle("3", other.answer())
        assert isinstance(await asyncio.wait_for(other.calls["4"], 10), Entry)
        assert not one.calls["2"].done()
        one.settle("1", End.FAILED)
        assert await asyncio.wait_for(one.calls["2"], 10) is Role.LEAD


async def test_any_order_in_three_processes(redis_server: RedisServer) -> None:
    """Callers that leave, leaders that fail, answers: everybody ends, and no lease is left."""
    draw = random.Random(6)
    upstream = 0

    async def call(one: Process, every: list[Process], call_id: str) -> None:
        nonlocal upstream
        work = asyncio.ensure_future(
            one.flights.join(KEY, call_id, lease_s=LONG_S, patience_s=LONG_S)
        )
        if draw.random() < 0.3:
            for _ in range(draw.randrange(6)):
                await asyncio.sleep(0)
            work.cancel()
        landing = (await asyncio.gather(work, return_exceptions=True))[0]
        if landing is Role.LEAD:
            upstream += 1
            await asyncio.sleep(0)
            end = draw.choice([End.FAILED, End.FAILED, End.UNSHARED, one.answer()])
            draw.choice(every).settle(call_id, end)
        else:
            assert isinstance(landing, (Entry, asyncio.CancelledError)) or landing is Role.ALONE

    async with processes(redis_server, 3) as every:
        for turn in range(max(1, ROUNDS // 100)):
            calls = [call(draw.choice(every), every, f"{turn}-{n}") for n in range(100)]
            await asyncio.wait_for(asyncio.gather(*calls), 30)
            assert all(one.flights.stats().waiting == 0 for one in every)
            for one in every:
                await one.bench.quiet()
            held = redis_server.client.get(LEASE + KEY)
            assert held in {None, module.STORED, module.UNSHARED}
            redis_server.client.delete(LEASE + KEY)
            assert all(one.flights.stats().flights <= 1 for one in every)
        assert upstream > 0
