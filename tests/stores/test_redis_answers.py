"""The shared answers when Redis is killed, hangs, is slow, full, emptied or holds nonsense; several
processes at one Redis."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from extproc.answers import PurgeFailed
from extproc.stores import breaker, writer
from extproc.stores.redis_answers import ENTRY, MAX_ASKED, PURGED
from tests.kept import Bench, RedisBench, TieredBench, entry, key, until
from tests.ledgers import Clock
from tests.redis_server import RedisServer

TIMEOUT_S = 0.05
AT_ONCE_S = 0.03  # without waiting for anything, at the best of three
IN_TIME_S = 0.5  # the timeout, and a machine that others use
TEXT = b'{"role": "assistant", "content": "words and words and words"}' * 100


@asynccontextmanager
async def opened(bench: Bench) -> AsyncIterator[Any]:
    await bench.start()
    try:
        yield bench
    finally:
        await bench.stop()


@asynccontextmanager
async def two(server: RedisServer) -> AsyncIterator[tuple[TieredBench, TieredBench]]:
    """Two processes at one Redis, with one clock."""
    clock = Clock()
    async with opened(TieredBench(server.url, clock=clock)) as one:
        async with opened(TieredBench(server.url, clock=clock)) as other:
            yield one, other


async def timed(work: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    found = await work
    return found, time.perf_counter() - began


async def test_what_is_stored_is_small_and_ends_by_itself(redis_server: RedisServer) -> None:
    """Its body by zlib, its time as Redis counts it, its name in the one slot."""
    async with opened(RedisBench(redis_server.url)) as bench:
        bench.put("a", body=TEXT)
        await bench.quiet()
        name = ENTRY + key("a")
        assert set(redis_server.client.keys("*")) == {name, PURGED}
        assert 299_000 < redis_server.client.pttl(name) <= 300_000
        raw = redis_server.client.get(name)
        assert len(raw) < len(TEXT) / 10
        assert zlib.compress(TEXT, 1) in raw


async def test_another_process_finds_it(redis_server: RedisServer) -> None:
    """And keeps it in front: then nobody is asked."""
    async with two(redis_server) as (one, other):
        made = one.put("a")
        await one.quiet()
        assert await other.get("a") == made
        redis_server.client.flushall()
        assert await other.get("a") == made
        assert (other.store.far.stats().hits, other.store.near.stats().hits) == (1, 1)


async def test_nothing_is_put_before_the_data_has_an_id(redis_server: RedisServer) -> None:
    """What nobody could purge is not written."""
    bench = RedisBench(redis_server.url)
    bench.put("a")
    async with opened(bench):
        await bench.quiet()
        assert redis_server.client.keys("*") == [PURGED]


@pytest.mark.parametrize("asked", [{}, {"tenant": "acme"}, {"model": "small"}])
async def test_a_purge_reaches_every_process(
    redis_server: RedisServer, asked: dict[str, str]
) -> None:
    """What each holds in front as well, and what is under way there, within half a second."""
    async with two(redis_server) as (one, other):
        one.put("a")
        await one.quiet()
        assert await other.get("a")
        one.clock.now += 1
        call = "acme", "small", one.now_ms
        assert not other.store.purged_since(*call)
        await one.store.purge(**asked)
        assert await one.get("a") is None
        await until(lambda: other.store.near.stats().purged == 1, 2.0)
        assert await other.get("a") is None
        assert one.store.purged_since(*call)
        assert other.store.purged_since(*call)
        assert other.store.purged_since("beta", "large", one.now_ms) is (not asked)
        assert not other.store.purged_since("acme", "small", one.now_ms + 1)


async def test_a_put_of_a_process_that_does_not_know_of_a_purge_yet(
    redis_server: RedisServer,
) -> None:
    """It carries the number that its process knew."""
    async with two(redis_server) as (one, other):
        other.store.far._watcher.cancel()
        await one.store.purge(tenant="acme")
        other.put("a")
        other.put("b", tenant="beta")
        await other.quiet()
        assert await one.get("a") is None
        assert await one.get("b")


async def test_a_put_that_waits_while_its_tenant_is_purged(redis_server: RedisServer) -> None:
    """It is written after the purge and with the number from before."""
    async with opened(TieredBench(redis_server.url)) as bench:
        made = bench.put("a", body=b"x" * writer.BIG_BYTES)  # on its way through a thread
        await bench.store.far.purge(tenant="acme")
        await bench.quiet()
        assert redis_server.client.exists(ENTRY + key("a"))
        assert await bench.get("a") is None
        assert await bench.store.far.get(key("a"), bench.now_ms) is None
        bench.clock.now += 1
        bench.store.put(key("a"), made)  # settled late
        await bench.quiet()
        assert await bench.get("a") is None


async def test_a_flush_takes_what_is_kept_in_front(redis_server: RedisServer) -> None:
    """Because a purge may have been lost in it; what is put then is kept."""
    async with opened(TieredBench(redis_server.url)) as bench:
        bench.put("a")
        await bench.quiet()
        redis_server.client.flushall()
        bench.clock.now += 1
        await until(lambda: bench.store.near.stats().entries == 0, 2.0)
        bench.clock.now += 1
        made = bench.put("b")
        await bench.quiet()
        assert await bench.store.far.get(key("b"), bench.now_ms) == made
        assert bench.errors.failures == []


def another_key(client: Any, name: bytes) -> None:
    client.copy(ENTRY + key("other"), name, replace=True)


def cut(client: Any, name: bytes) -> None:
    client.set(name, client.get(name)[:-10])


def no_form(client: Any, name: bytes) -> None:
    client.set(name, b"\xc1nonsense")


def broken_body(client: Any, name: bytes) -> None:
    raw = client.get(name)
    at = raw.index(zlib.compress(TEXT, 1)) + 20
    client.set(name, raw[:at] + bytes([raw[at] ^ 255]) + raw[at + 1 :])


def another_size(client: Any, name: bytes) -> None:
    form = msgspec.msgpack.decode(client.get(name))
    form[3] += 1
    client.set(name, msgspec.msgpack.encode(form))


@pytest.mark.parametrize(
    ("spoil", "counted"),
    [
        pytest.param(another_key, "cache_foreign", id="another key's answer"),
        pytest.param(cut, "cache_unreadable", id="cut off"),
        pytest.param(no_form, "cache_unreadable", id="nonsense"),
        pytest.param(broken_body, "cache_unreadable", id="a body that zlib refuses"),
        pytest.param(another_size, "cache_unreadable", id="a body of another size"),
    ],
)
async def test_what_is_not_ours_is_a_miss(
    redis_server: RedisServer, spoil: Callable[[Any, bytes], None], counted: str
) -> None:
    """Counted, never raised, never served."""
    async with opened(RedisBench(redis_server.url)) as bench:
        for name in ("a", "other"):
            bench.put(name, body=TEXT)
        await bench.quiet()
        spoil(redis_server.client, ENTRY + key("a"))
        assert await bench.get("a") is None
        assert bench.errors.failures == [("redis", counted)]
        assert await bench.get("other")


async def test_many_take_one_round_trip_and_no_more_than_are_allowed(
    redis_server: RedisServer,
) -> None:
    """However many inputs a batch has, Redis is asked once, and for a bounded number."""
    async with opened(RedisBench(redis_server.url)) as bench:
        names = range(MAX_ASKED + 3)
        for name in (0, MAX_ASKED - 1, MAX_ASKED):
            bench.put(name)
        await bench.quiet()
        before = redis_server.client.info("commandstats")
        found = await bench.store.get_many([key(name) for name in names], bench.now_ms)
        after = redis_server.client.info("commandstats")
    assert [name for name in names if found[name]] == [0, MAX_ASKED - 1]
    assert len(found) == len(names)
    calls = [stats.get("cmdstat_mget", {"calls": 0})["calls"] for stats in (before, after)]
    assert calls[1] - calls[0] == 1


async def test_a_key_of_another_type_is_a_miss(redis_server: RedisServer) -> None:
    """Nobody here wrote it, so it is as good as absent."""
    async with opened(RedisBench(redis_server.url)) as bench:
        redis_server.client.rpush(ENTRY + key("a"), "x")
        assert await bench.get("a") is None
        assert bench.errors.failures == []


async def test_a_redis_that_is_full_still_answers(own_redis: RedisServer) -> None:
    """Puts are refused and counted, lookups go on."""
    async with opened(RedisBench(own_redis.url)) as bench:
        made = bench.put("a")
        await bench.quiet()
        own_redis.client.config_set("maxmemory", 1)
        for name in range(20):
            bench.put(("more", name))
        await until(lambda: ("redis", "cache_put") in bench.errors.failures)
        assert await bench.get("a") == made


async def test_answers_leave_room_for_limits(own_redis: RedisServer) -> None:
    """From half of what Redis may hold on no more are put, until there is room again."""
    async with opened(RedisBench(own_redis.url)) as bench:
        kept = bench.put("a")
        await bench.quiet()
        used = own_redis.client.info("memory")["used_memory"]
        own_redis.client.config_set("maxmemory", int(used * 1.5))
        await until(lambda: bench.store._crowded)
        bench.put("b")
        await bench.quiet()
        assert await bench.get("b") is None
        assert await bench.get("a") == kept
        assert bench.errors.failures == [("redis", "cache_crowded")]
        own_redis.client.config_set("maxmemory", used * 100)
        await until(lambda: not bench.store._crowded)
        made = bench.put("b")
        await bench.quiet()
        assert await bench.get("b") == made


def kill(server: RedisServer) -> None:
    server.kill()


def pause(server: RedisServer) -> None:
    server.pause()


def slow(server: RedisServer) -> None:
    server.client.execute_command("CLIENT", "PAUSE", "2000", "ALL")


@pytest.mark.parametrize("trouble", [kill, pause, slow])
async def test_without_redis_a_lookup_is_a_miss_in_time(
    own_redis: RedisServer,
    trouble: Callable[[RedisServer], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within the timeout first, at once when it is known; counted each time; what is in front stays."""
    bench = TieredBench(own_redis.url, timeout_s=TIMEOUT_S)  # its clock stands still: no probe
    async with opened(bench):
        made = bench.put("near")
        await bench.quiet()
        monkeypatch.setattr(writer, "CLOSE_S", 0.01)
        trouble(own_redis)
        for name in range(breaker.FAILURES):
            found, seconds = await timed(bench.get(name))
            assert found is None
            assert seconds < IN_TIME_S
        tries = [await timed(bench.get("far")) for _ in range(3)]
        assert [found for found, _ in tries] == [None] * 3
        assert min(seconds for _, seconds in tries) < AT_ONCE_S
        assert bench.errors.failures.count(("redis", "cache_get")) == breaker.FAILURES + 3
        assert await bench.get("near") == made
        with pytest.raises(PurgeFailed):
            await bench.store.purge(tenant="acme")
        assert await bench.get("near") is None


@pytest.mark.parametrize(
    ("trouble", "mend"),
    [
        pytest.param(kill, RedisServer.start, id="killed and started"),
        pytest.param(pause, RedisServer.resume, id="hung and gone on"),
    ],
)
async def test_redis_comes_back(
    own_redis: RedisServer,
    trouble: Callable[[RedisServer], None],
    mend: Callable[[RedisServer], None],
) -> None:
    """By itself, and what was put meanwhile is written."""
    bench = RedisBench(own_redis.url, timeout_s=TIMEOUT_S)
    async with opened(bench):
        trouble(own_redis)
        for _ in range(breaker.FAILURES):
            await bench.get("a")
        assert not bench.store.link.usable
        mend(own_redis)
        bench.clock.now += breaker.OPEN_S
        await until(lambda: bench.store.link.usable)
        await until(lambda: bench.store._id == own_redis.client.hget(PURGED, "id"))
        made = bench.put("a")
        await bench.quiet()
        assert await bench.get("a") == made


async def test_what_waits_for_redis_is_bounded(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By bytes; what is too much is lost and counted."""
    monkeypatch.setattr(writer, "MAX_QUEUED_BYTES", 10_000)
    monkeypatch.setattr(writer, "CLOSE_S", 0.01)
    bench = RedisBench(own_redis.url, timeout_s=TIMEOUT_S)
    async with opened(bench):
        own_redis.kill()
        await until(lambda: not bench.store.link.usable)
        for name in range(20):
            bench.store.put(key(name), entry(bench.now_ms, body=b"x" * 1_000))
        assert bench.store.writer._queued_bytes <= 10_000
        assert bench.errors.failures.count(("redis", "cache_put_lost")) == 16


async def test_a_cancelled_lookup_leaves_its_reply_to_nobody(redis_server: RedisServer) -> None:
    """Of a hundred at once every third is cancelled, and the others get their own."""
    async with opened(RedisBench(redis_server.url)) as bench:
        made = {n: bench.put(n, body=b"%d" % n) for n in range(100)}
        await bench.quiet()
        calls = {n: asyncio.ensure_future(bench.get(n)) for n in range(100)}
        await asyncio.sleep(0)
        for n in range(0, 100, 3):
            calls[n].cancel()
        await asyncio.wait(calls.values())
        for n, call in calls.items():
            assert call.cancelled() if n % 3 == 0 else call.result() == made[n]


async def test_a_gateway_starts_without_redis(own_redis: RedisServer) -> None:
    """And uses it once it is there."""
    own_redis.kill()
    bench = RedisBench(own_redis.url, timeout_s=TIMEOUT_S)
    async with opened(bench):
        assert await bench.get("a") is None
        own_redis.start()
        await until(lambda: bench.store._id)
        made = bench.put("a")
        await bench.quiet()
        assert await bench.get("a") == made


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"tenant": "\ud800"}, id="half a surrogate pair, which a token may claim"),
        pytest.param({"usage": (2**64, 0, 0)}, id="a count of more than 64 bits"),
    ],
)
async def test_an_entry_that_cannot_be_written(
    redis_server: RedisServer, fields: dict[str, Any]
) -> None:
    """It is kept by this process alone, and counted; the next one is written."""
    async with opened(TieredBench(redis_server.url)) as bench:
        made = bench.put("a", **fields)
        bench.put("b")
        await bench.quiet()
        assert bench.errors.failures == [("redis", "cache_unwritable")]
        assert await bench.get("a") == made
        assert ENTRY + key("b") in redis_server.client.keys("*")
