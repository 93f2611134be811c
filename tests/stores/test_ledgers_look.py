"""Looking at limits, on memory and on a real Redis: what an admission would find, left as it is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from extproc.limits import US_PER_S, Scope
from extproc.ports import Look
from extproc.stores.journal import Journal
from extproc.stores.memory import MemoryLedger
from extproc.stores.redis_ledger import RedisLedger
from tests.ledgers import LEASE_S, Bench, Clock, Errors, MemoryBench, RedisBench, ask, rules

KEY = (
    "key:a",
    rules(
        requests_per_second=2,
        burst=4,
        requests_per_day=9,
        tokens_per_day=100,
        usd_per_month=1,
        concurrent_requests=3,
    ),
)
ADDRESS = ("ip:1.2.3.4", rules(Scope.IP, requests_per_day=50))


def state(bench: Bench) -> Any:
    """Return all that a ledger keeps, in a form that can be compared."""
    if isinstance(bench, RedisBench):
        client = bench.server.client
        return sorted((name, client.dump(name)) for name in client.scan_iter())
    assert isinstance(bench, MemoryBench)
    ledger = bench.ledger
    return repr((ledger._accounts, ledger._addresses, sorted(ledger._open), ledger._settled))


def numbers(found: Look) -> dict[str, tuple[int, int, int, bool]]:
    """Return limit, used, left and the verdict by name."""
    return {s.label: (s.limit, s.used, s.left, s.refuses) for s in found.standings}


async def test_the_numbers_are_those_of_the_admissions(bench: Bench) -> None:
    """Two calls under way and one settled: 15 and 15 tokens held, 3 taken."""
    held = [await bench.admit(KEY, ADDRESS) for _ in range(3)]
    await bench.settle(*held[0], 1, 3, 7)
    found = await bench.ledger.look(ask("look", KEY, ADDRESS))
    money = 2 * 30_000 + 7
    assert numbers(found) == {
        "key/requests_per_second": (4, 3, 1, False),
        "key/requests_per_day": (9, 3, 6, False),
        "key/tokens_per_day": (100, 33, 67, False),
        "key/usd_per_month": (10**12, money, 10**12 - money, False),
        "key/concurrent_requests": (3, 2, 1, False),
        "ip/requests_per_day": (50, 3, 47, False),
    }
    assert (found.output, found.refusal) == (5, None)
    resets = {one.label: one.resets_us for one in found.standings}
    assert resets["key/requests_per_second"] == 3 * US_PER_S // 2
    assert resets["key/tokens_per_day"] == 43_200 * US_PER_S


async def test_looking_changes_nothing(bench: Bench) -> None:
    """Also not an account that nobody has used yet, and a call that would be refused."""
    for _ in range(3):
        await bench.admit(KEY)
    before = state(bench)
    for _ in range(3):
        await bench.ledger.look(ask("look", KEY, ADDRESS, ("tenant:new", KEY[1])))
    assert state(bench) == before
    assert bench.errors.limits == []
    await bench.admit(("key:b", rules(requests_per_day=1)))


@pytest.mark.parametrize(
    ("limits", "before", "more"),
    [
        pytest.param({"requests_per_second": 4, "burst": 1}, 1, {}, id="a rate"),
        pytest.param({"requests_per_day": 2}, 2, {}, id="a day"),
        pytest.param({"tokens_per_minute": 20}, 1, {}, id="a minute's tokens"),
        pytest.param({"tokens_per_day": 20}, 1, {}, id="a day's tokens"),
        pytest.param({"usd_per_day": 1}, 1, {"fixed": (1, 0, 10**12)}, id="money"),
        pytest.param({"concurrent_requests": 1}, 1, {}, id="slots"),
        pytest.param({"tokens_per_minute": 20}, 0, {"fixed": (1, 99, 0)}, id="too large alone"),
        pytest.param({"tokens_per_day": 28}, 1, {}, id="admitted with a lower bound"),
        pytest.param({"requests_per_day": 2}, 1, {}, id="admitted"),
    ],
)
async def test_it_foretells_the_admission(
    bench: Bench, impatient: None, limits: dict[str, Any], before: int, more: dict[str, Any]
) -> None:
    """The same refusal in the same words, or the same bound of the answer."""
    key = ("key:a", rules(**limits))
    for _ in range(before):
        await bench.admit(key)
    found = await bench.ledger.look(ask("look", key, **more))
    assert any(one.refuses for one in found.standings) is (found.refusal is not None)
    if found.refusal is None:
        _, grant = await bench.admit(key, **more)
        assert found.output == grant.output
        return
    denied, told = await bench.refused(key, **more), found.refusal
    assert (told.status, told.code, told.message) == (denied.status, denied.code, denied.message)
    assert told.retry_after_s == denied.retry_after_s


async def test_a_lease_that_ended_holds_no_slot(bench: Bench) -> None:
    """As the next admission would find."""
    key = ("key:a", rules(concurrent_requests=1))
    await bench.admit(key)
    await bench.advance(LEASE_S - 1)
    assert (await bench.ledger.look(ask("look", key))).standings[0].used == 1
    await bench.advance(1)
    assert (await bench.ledger.look(ask("look", key))).standings[0].used == 0


async def test_without_redis_a_process_tells_its_own_share() -> None:
    """As calls would be limited then; a budget of money cannot be read; no failure is counted."""
    errors = Errors()
    ledger = RedisLedger(
        "redis://127.0.0.1:1/0", timeout_s=0.05, replicas=4, clock=time.time, observer=errors
    )
    counted = ("key:a", rules(requests_per_day=40))
    found = await ledger.look(ask("look", counted))
    assert numbers(found) == {"key/requests_per_day": (10, 0, 10, False)}
    assert found.refusal is None
    refused = await ledger.look(ask("look", counted, ("tenant:a", rules(usd_per_month=5))))
    assert refused.refusal is not None
    assert refused.refusal.code == "store_unavailable"
    assert errors.failures == []
    await ledger.close()


async def test_a_journal_in_use_is_read_as_it_is(tmp_path: Path) -> None:
    """Another process may look at what a gateway has written so far, and leaves it alone."""
    path = tmp_path / "limits.journal"
    bench = MemoryBench(Journal(path))
    held = [await bench.admit(KEY, ADDRESS) for _ in range(3)]
    await bench.settle(*held[0], 1, 3, 7)
    before = path.read_bytes()
    other = MemoryLedger.as_written(bench.clock, Errors(), path)
    call = ask("look", KEY, ADDRESS)
    assert await other.look(call) == await bench.ledger.look(call)
    late = MemoryLedger.as_written(Clock(bench.clock.now + LEASE_S), Errors(), path)
    assert {s.label: s.used for s in (await late.look(call)).standings}[
        "key/concurrent_requests"
    ] == 0
    await other.close()
    assert path.read_bytes() == before
    await bench.stop()


async def test_where_there_is_no_journal_nothing_is_used(tmp_path: Path) -> None:
    """And none is made."""
    ledger = MemoryLedger.as_written(Clock(), Errors(), tmp_path / "limits.journal")
    (one,) = (await ledger.look(ask("look", ADDRESS))).standings
    assert one.used == 0
    assert list(tmp_path.iterdir()) == []
