"""Limits and keys on a real Redis Cluster: any node will do, a slot may move, its master may die."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import Any

import pytest

from extproc.answers import Role
from extproc.errors import Denied
from extproc.limits import Grant, Settlement
from extproc.policies.keys import KeyRequest
from extproc.stores import breaker, redis_ledger
from extproc.stores.cluster import slot_of
from extproc.stores.keys import KeyStoreError
from extproc.stores.redis_flights import RedisFlights
from extproc.stores.redis_keys import RedisKeys
from extproc.stores.redis_ledger import PREFIX, RedisLedger
from tests.kept import TieredBench, key, until
from tests.ledgers import Clock, Errors, ask, rules
from tests.redis_cluster import RedisCluster
from tests.redis_server import RedisServer

SLOT = slot_of(PREFIX.encode())
# A budget of money, because it is closed while the slot's node is away, where a rate would go on.
LIMIT = 100  # calls of 30,000 pico-USD
BUDGET = rules(usd_per_day="0.000003", requests_per_day=LIMIT)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    """Start three masters."""
    made = RedisCluster()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask a Redis that failed again at once."""
    monkeypatch.setattr(breaker, "OPEN_S", 0.05)
    monkeypatch.setattr(redis_ledger, "START_S", 0.2)
    monkeypatch.setattr(redis_ledger, "CLOSE_S", 0.1)


@asynccontextmanager
async def ledger_at(url: str, **more: Any) -> AsyncIterator[tuple[RedisLedger, Errors]]:
    errors = Errors()
    values: dict[str, Any] = {"timeout_s": 0.5, "replicas": 1, "clock": time.time, "cluster": True}
    made = RedisLedger(url, **{**values, **more}, observer=errors)
    await made.start()
    try:
        yield made, errors
    finally:
        await made.close()


async def admitted(ledger: RedisLedger, name: str, ids: Iterator[str]) -> dict[str, Grant]:
    """Admit calls one by one until one is over its limit; wait while the store is away."""
    got: dict[str, Grant] = {}
    async with asyncio.timeout(20):
        while True:
            call_id = next(ids)
            try:
                got[call_id] = await ledger.admit(ask(call_id, (name, BUDGET)))
            except Denied as denied:
                if denied.code != "store_unavailable":
                    return got
                await asyncio.sleep(0.01)


def ids_of(prefix: str) -> Iterator[str]:
    return (f"{prefix}-{number}" for number in range(1_000_000))


async def settled(ledger: RedisLedger, grants: dict[str, Grant], done: Callable[[], Any]) -> None:
    for call_id, grant in grants.items():
        ledger.settle(Settlement(call_id, (1, 1, 1), certain=True, hold=grant.hold))
    async with asyncio.timeout(10):
        while not done():
            ledger.flush()
            await asyncio.sleep(0.01)


async def test_any_node_of_it_will_do(cluster: RedisCluster) -> None:
    """Ledgers that were told different nodes share one account, which is in one of them."""
    owner = cluster.owner(SLOT)
    together: dict[str, Grant] = {}
    for at, node in enumerate(cluster.masters):
        async with ledger_at(node.url) as (ledger, errors):
            for number in range(5):
                call_id = f"any-{at}-{number}"
                together[call_id] = await ledger.admit(ask(call_id, ("key:any", BUDGET)))
            assert errors.failures == []
    used = owner.client.hget(f"{PREFIX}a:key:any", "u0")
    assert int(used) == len(together) == 15
    async with ledger_at(cluster.masters[0].url) as (ledger, errors):
        rest = await admitted(ledger, "key:any", ids_of("rest"))
        assert len(together) + len(rest) == LIMIT

        def all_settled() -> bool:
            return int(owner.client.hget(f"{PREFIX}a:key:any", "u3")) == LIMIT

        await settled(ledger, together | rest, all_settled)
        assert errors.failures == []
    assert owner.client.keys(f"{PREFIX}r:any-*") == owner.client.keys(f"{PREFIX}r:rest-*") == []


async def test_answers_are_shared_through_any_node(cluster: RedisCluster) -> None:
    """Put through one, found through another, purged through a third; leases as well."""
    clock = Clock()
    benches = [TieredBench(node.url, clock=clock, cluster=True) for node in cluster.masters]
    async with AsyncExitStack() as stack:
        flights = []
        for bench in benches:
            await bench.start()
            stack.push_async_callback(bench.stop)
            far = bench.store.far
            flights.append(
                RedisFlights(far.link, far.writer, bench.store, clock=clock, draw=lambda: 0.5)
            )
            stack.push_async_callback(flights[-1].close)
        first, second, third = benches
        one, other, _ = flights
        assert await one.join(key("a"), "1", lease_s=60.0, patience_s=60.0) is Role.LEAD
        follower = asyncio.ensure_future(other.join(key("a"), "2", lease_s=60.0, patience_s=60.0))
        await until(lambda: other.stats().waiting == 1)
        made = first.put("a")
        one.finish(key("a"), "1", made)
        assert await asyncio.wait_for(follower, 10) == made
        await third.store.purge(tenant="acme")
        assert await third.get("a") is None
        await until(lambda: second.store.near.stats().entries == 0)
        assert [bench.errors.failures for bench in benches] == [[], [], []]


async def test_a_slot_may_move(cluster: RedisCluster) -> None:
    """Its new master is found by itself; what was counted went with it, nothing counts twice."""
    source = cluster.owner(SLOT)
    target = next(node for node in cluster.masters if node is not source)
    async with ledger_at(source.url) as (ledger, _):
        before = {}
        for number in range(10):
            call_id = f"moves-{number}"
            before[call_id] = await ledger.admit(ask(call_id, ("key:moves", BUDGET)))
        task = asyncio.create_task(admitted(ledger, "key:moves", ids_of("moving")))
        await asyncio.to_thread(cluster.move, SLOT, target)
        after = await task
        # One whose reply was lost on the way is charged until it is given back.
        assert 0 < len(before) + len(after) <= LIMIT
        grants = before | after

        def all_settled() -> bool:
            return int(target.client.hget(f"{PREFIX}a:key:moves", "u3")) == len(grants)

        await settled(ledger, grants, all_settled)
        assert int(target.client.hget(f"{PREFIX}a:key:moves", "u0")) == len(grants)
    assert source.client.keys(f"{PREFIX}*") == []


async def test_its_master_may_die(cluster: RedisCluster) -> None:
    """The replica that takes over is found, though the node of the URL is gone."""
    owner = cluster.owner(SLOT)
    replica = cluster.add_replica(owner)
    async with ledger_at(owner.url) as (ledger, errors):
        first = await ledger.admit(ask("dies-1", ("key:dies", BUDGET)))
        # WAIT asks for what its own connection wrote; what came before that has arrived too.
        owner.client.set(f"{PREFIX}written", "after")
        assert owner.client.wait(1, 10_000) == 1
        owner.kill()
        with pytest.raises(Denied, match="cannot be read"):
            await ledger.admit(ask("dies-2", ("key:dies", BUDGET)))
        rest = await admitted(ledger, "key:dies", ids_of("dying"))
        assert cluster.owner(SLOT) is replica
        assert len(rest) == LIMIT - 1
        assert ("redis", "admit") in errors.failures

        def all_settled() -> bool:
            return int(replica.client.hget(f"{PREFIX}a:key:dies", "u3")) == LIMIT

        await settled(ledger, {"dies-1": first, **rest}, all_settled)


def test_keys_in_a_cluster(cluster: RedisCluster) -> None:
    """What is made through one node is there through another, and ends there too."""
    urls = [node.url for node in cluster.living]
    with (
        closing(RedisKeys(urls[0], cluster=True)) as one,
        closing(RedisKeys(urls[1], cluster=True)) as two,
    ):
        record, _ = one.create(KeyRequest("ci", "free"), now=1.0, token=b"t" * 32)
        assert two.changed()
        assert two.directory().keys[record.digest] == record
        two.revoke(record.key_id, now=2.0)
        assert one.get(record.key_id).revoked_at == 2.0
        one.write_used({record.key_id: 3.0})
        assert [known.last_used_at for known in two.list()] == [3.0]


def test_a_cluster_that_is_away_is_an_outage() -> None:
    """Not a crash, and no key: as any Redis that cannot be reached."""
    with closing(RedisKeys("redis://127.0.0.1:1", cluster=True)) as keys:
        with pytest.raises(KeyStoreError, match=r"redis 127\.0\.0\.1:1/0"):
            keys.changed()


async def test_what_is_no_cluster_says_so(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the setting; nobody is let in by a budget that cannot be read."""
    async with ledger_at(redis_server.url) as (ledger, _):
        with pytest.raises(Denied, match="cannot be read"):
            await ledger.admit(ask("none-1", ("key:none", BUDGET)))
    assert "redis is no cluster: take state.redis.cluster away" in caplog.text
    assert caplog.text.count("no cluster") == 1


async def test_a_cluster_that_is_called_none_says_so(
    cluster: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """A node that has not the slot names the one that has: the log names the setting."""
    owner = cluster.owner(SLOT)
    other = next(node for node in cluster.living if node is not owner)
    async with ledger_at(other.url, cluster=False) as (ledger, _):
        with pytest.raises(Denied, match="cannot be read"):
            await ledger.admit(ask("called-1", ("key:called", BUDGET)))
    (told, *_) = [record for record in caplog.records if record.message.startswith("redis refuses")]
    assert told.__dict__["hint"] == "write state.redis.cluster: true"
