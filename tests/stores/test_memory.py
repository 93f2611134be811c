"""What is the memory ledger's own: bounded memory, restarts, slots while calls wait."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from extproc.limits import US_PER_S, Scope, Settlement
from extproc.policies import quota
from extproc.stores import memory
from extproc.stores.journal import Journal
from extproc.stores.memory import MemoryLedger
from extproc.stores.remembered import EACH, MAX_SETTLED
from tests.ledgers import LEASE_S, NOON, MemoryBench, rules

DAY_S = 86_400


async def test_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns a million addresses gets no more memory than the first thousand."""
    monkeypatch.setattr(memory, "MAX_ADDRESSES", 1_000)
    bench = MemoryBench()
    rule = rules(Scope.IP, requests_per_second=1, burst=1)
    for number in range(20_000):
        call_id, grant = await bench.admit((f"ip:{number}", rule))
        await bench.settle(call_id, grant, 1, 0, 0)
    assert repr(bench.ledger) == "MemoryLedger(accounts=1000, open=0)"
    await bench.refused(("ip:19999", rule))


async def test_accounts_that_say_nothing_are_forgotten() -> None:
    """A rate is forgotten when it is full again, a day's count at midnight, a running call never."""
    bench = MemoryBench()
    for number in range(5_000):
        call_id, grant = await bench.admit((f"key:{number}", rules(requests_per_second=1)))
        await bench.settle(call_id, grant, 1, 0, 0)
    held = await bench.admit(("key:held", rules(concurrent_requests=1)), lease_us=10**15)
    call_id, grant = await bench.admit(("key:daily", rules(requests_per_day=5)))
    await bench.settle(call_id, grant, 1, 0, 0)
    for _ in range(5):
        await bench.advance(2)
    assert repr(bench.ledger) == "MemoryLedger(accounts=2, open=1)"
    await bench.advance(DAY_S)
    assert repr(bench.ledger) == "MemoryLedger(accounts=1, open=1)"
    await bench.settle(*held, 1, 0, 0)
    await bench.advance(1)
    assert repr(bench.ledger) == "MemoryLedger(accounts=0, open=0)"


async def test_a_restart_remembers_what_is_open(tmp_path: Path) -> None:
    """A call that ends after the restart is settled, one that does not keeps its estimate."""
    path = tmp_path / "limits.journal"
    bench = MemoryBench(Journal(path))
    key = ("key:a", rules(concurrent_requests=2, tokens_per_day=1000, requests_per_day=9))
    first, second = await bench.admit(key), await bench.admit(key)
    await bench.stop()
    again = MemoryBench(Journal(path))
    assert again.slots("key:a") == 2
    await again.settle(*first, 1, 3, 0)
    assert again.counters("key:a")[2] == 18
    await again.advance(LEASE_S)
    await again.settle(*second, 0, 0, 0)
    assert again.counters("key:a") == (2, 0, 18, 0, 0)
    assert again.slots("key:a") == 0
    await again.stop()


async def test_what_one_flush_settles_is_remembered_call_by_call(tmp_path: Path) -> None:
    """More calls than a record takes, of two callers, at once; what is not settled stays open."""
    path = tmp_path / "limits.journal"
    bench = MemoryBench(Journal(path))
    subjects = [(f"key:{name}", rules(tokens_per_day=10**6, usd_per_day=5)) for name in "ab"]
    ids = [(await bench.admit(subjects[n % 2]))[0] for n in range(MAX_SETTLED // EACH + 3)]
    for id_ in ids[1:]:
        bench.ledger.settle(Settlement(id_, (1, 3, 7), certain=True))
    bench.ledger.flush()
    read = MemoryLedger.as_written(bench.clock, bench.errors, path)
    assert repr(read) == "MemoryLedger(accounts=2, open=1)"
    assert bench.errors.failures == []
    found = {name: read._accounts[name].used for name, _ in subjects}
    assert found == {name: list(bench.counters(name)) for name, _ in subjects}
    assert found["key:b"][2:4] == [len(ids) // 2 * 3, len(ids) // 2 * 7]
    await bench.stop()


async def test_records_as_they_were_written_before_are_read(tmp_path: Path) -> None:
    path = tmp_path / "limits.journal"
    windows = quota.windows_at(NOON * US_PER_S)
    account, lease_us = ["key:a", 0b101, 17], (NOON + LEASE_S) * US_PER_S
    journal = Journal(path)
    journal.append(
        msgspec.msgpack.encode(("A", "one", lease_us, (1, 30, 0), windows, [account])),
        msgspec.msgpack.encode(("A", "two", lease_us, (1, 30, 0), windows, [account])),
        msgspec.msgpack.encode(("S", "one", (0, -27, 0))),
    )
    journal.close()
    bench = MemoryBench(Journal(path))
    assert bench.errors.failures == []
    assert bench.counters("key:a") == (2, 0, 33, 0, 0)
    assert bench.slots("key:a") == 1
    await bench.stop()


async def test_a_restarted_caller_still_waits_for_its_own_last_call(tmp_path: Path) -> None:
    path = tmp_path / "limits.journal"
    bench = MemoryBench(Journal(path))
    key = ("key:a", rules(concurrent_requests=1))
    held = await bench.admit(key)
    await bench.stop()
    again = MemoryBench(Journal(path))
    again.ids = bench.ids
    waiting = asyncio.create_task(again.admit(key))
    await again.waiting(1)
    await again.settle(*held, 1, 0, 0)
    await waiting
    await again.stop()


def test_an_admission_is_one_step() -> None:
    """It does not suspend, so that the lane answers it where it reads."""
    bench = MemoryBench()
    key = ("key:a", rules(requests_per_second=1, concurrent_requests=1, usd_per_day=1))
    with pytest.raises(StopIteration):
        bench.admit(key).send(None)
