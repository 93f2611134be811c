"""The journal: whole records or none, whatever was cut; and processes killed while they write it."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from extproc.stores import journal as module
from extproc.stores.journal import Journal
from extproc.stores.memory import MemoryLedger
from tests.ledgers import MemoryBench, rules
from tests.redis_server import RedisServer

KILLS = int(os.environ.get("LLM_EDGE_KILLS", "4"))  # `make crash` sets 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "limits.journal"


def contents(path: Path) -> list[bytes]:
    opened = Journal(path)
    try:
        return opened.read()
    finally:
        opened.close()


def written(path: Path, *records: bytes) -> None:
    opened = Journal(path)
    opened.read()
    opened.append(*records)
    opened.close()


def test_what_was_written_is_read(path: Path) -> None:
    written(path, b"one", b"", b"three")
    written(path, b"x" * 100_000)
    assert contents(path) == [b"one", b"", b"three", b"x" * 100_000]


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_record_cut_short_is_dropped_and_written_over(path: Path, cut: int) -> None:
    """A machine that lost power left half a record; what follows is not read as its rest."""
    written(path, b"whole", b"cut")
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    written(path, b"next")
    assert contents(path) == [b"whole", b"next"]


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\xff" * 40, id="a length that none has"),
        pytest.param(b"\x03\x00\x00\x00\x00\x00\x00\x00abc", id="a checksum of something else"),
        pytest.param(b"\x00" * 7, id="less than a frame"),
    ],
)
def test_what_follows_garbage_is_dropped(path: Path, garbage: bytes) -> None:
    written(path, b"whole")
    with path.open("ab") as file:
        file.write(garbage)
    assert contents(path) == [b"whole"]
    assert contents(path) == [b"whole"]


def test_rewritten_it_is_short_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_REWRITE_BYTES", 1_000)
    opened = Journal(path)
    opened.append(b"x" * 2_000)
    assert opened.is_long
    opened.rewrite([b"state", b"more"])
    assert not opened.is_long
    opened.append(b"after")
    opened.sync()
    opened.close()
    assert contents(path) == [b"state", b"more", b"after"]
    assert not path.with_suffix(".new").exists()


def test_a_state_of_nothing_is_a_state(path: Path) -> None:
    """A gateway's first start writes down that there is nothing yet."""
    opened = Journal(path)
    opened.rewrite([])
    opened.append(b"first")
    opened.close()
    assert contents(path) == [b"first"]


def test_one_process_at_a_time(path: Path) -> None:
    first = Journal(path)
    with pytest.raises(BlockingIOError, match="in use by another processor"):
        Journal(path)
    first.close()
    Journal(path).close()


def test_nobody_else_may_read_it(path: Path) -> None:
    written(path, b"one")
    assert path.stat().st_mode & 0o777 == 0o600


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_whole_records(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What found no room is not there in part, and the next one is whole."""
    monkeypatch.setattr(module, "RESERVE_BYTES", 32)
    opened = Journal(path)
    opened.append(b"before")
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space left"):
            opened.append(b"fits", b"lost, because all or none are written")
        opened.append(b"in reserve")
    opened.append(b"after")
    opened.close()
    assert contents(path) == [b"before", b"in reserve", b"after"]


def test_what_was_reserved_and_not_used_is_no_record(path: Path) -> None:
    """A killed process leaves the reserve behind; an empty record is something else."""
    opened = Journal(path)
    opened.append(b"one", b"")
    assert path.stat().st_size == module.RESERVE_BYTES
    left = path.with_name("left")
    left.write_bytes(path.read_bytes())
    opened.close()
    assert path.stat().st_size == left.stat().st_size - module.RESERVE_BYTES + 8 + 3 + 8
    assert contents(left) == [b"one", b""]


async def test_limits_hold_on_when_the_disk_is_full(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal fails open: counted, and the limit in memory is what it was."""
    monkeypatch.setattr(module, "RESERVE_BYTES", 32)
    bench = MemoryBench(Journal(path))
    key = ("key:a", rules(requests_per_day=2))

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "posix_fallocate", full)
        await bench.admit(key)
        await bench.admit(key)
        await bench.refused(key)
        bench.ledger.flush()
    assert set(bench.errors.failures) == {("journal", "write")}
    await bench.stop()  # writes the state as it is, now that it can
    again = MemoryBench(Journal(path))
    await again.refused(key)
    await again.stop()


async def test_a_rate_is_remembered(path: Path) -> None:
    bench = MemoryBench(Journal(path))
    key = ("key:a", rules(requests_per_second=1, burst=2))
    await bench.admit(key)
    await bench.admit(key)
    assert bench.ledger._journal is not None
    bench.ledger._journal.close()  # as a kill leaves it
    again = MemoryBench(Journal(path))
    assert (await again.refused(key)).retry_after_s == 1
    await again.stop()


async def test_a_record_of_another_version_is_counted_and_passed_over(path: Path) -> None:
    bench = MemoryBench(Journal(path))
    key = ("key:a", rules(requests_per_day=1))
    await bench.admit(key)
    journal = bench.ledger._journal
    assert journal is not None
    journal.append(b"\x93\xa1A\x01\x02", b"not msgpack \xc1")
    journal.close()
    again = MemoryBench(Journal(path))
    assert again.errors.failures == [("journal", "read")] * 2
    await again.refused(key)
    await again.stop()


NOON_S = 1_750_075_200.0
WORKER = """
import asyncio, sys, time
from pathlib import Path
from extproc.limits import Ask, Scope, Settlement
from extproc.ports import SilentObserver
from extproc.schema import Tier
from extproc.stores.journal import Journal
from extproc.stores.memory import MemoryLedger
from extproc.stores.redis_ledger import RedisLedger
from extproc.tiers import rules_of

LIMITS = Tier(requests_per_day=10**9, tokens_per_day=10**9, concurrent_requests=10**6)
KEY = ("key:a", rules_of(Scope.KEY, LIMITS))
CALL = ((1, 10, 0), (0, 1, 0), 5)

async def work():
    place, run, ahead_s = sys.argv[1], sys.argv[2], float(sys.argv[4])
    def now():
        return time.time() + ahead_s
    if place.startswith("unix:"):
        ledger = RedisLedger(
            place, timeout_s=30.0, replicas=1, clock=now, observer=SilentObserver()
        )
    else:
        ledger = MemoryLedger(now, SilentObserver(), Journal(Path(place)))
    await ledger.start()
    async def one(number):
        while True:
            call_id = f"{run}-{number}-{time.monotonic_ns()}"
            grant = await ledger.admit(Ask(call_id, "openai", b"", (KEY,), *CALL, int(sys.argv[3])))
            print("A", call_id, flush=True)
            await asyncio.sleep(0)
            ledger.settle(Settlement(call_id, (1, 12, 0), certain=True, hold=grant.hold))
            ledger.flush()
            print("S", call_id, flush=True)
            await asyncio.sleep(0.0005)
    await asyncio.gather(*(one(n) for n in range(8)))

asyncio.run(work())
"""


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_killed_again_and_again_it_charges_each_call_once(
    kind: str, path: Path, request: pytest.FixtureRequest
) -> None:
    """`kill -9` during load: what was admitted is charged, by its truth or estimate, never twice."""
    draw = random.Random(9)
    server: RedisServer | None = None
    place, lease_us = str(path), 3_600_000_000
    ahead_s = NOON_S - time.time()  # because a lease later it must still be the same day
    if kind == "redis":
        server = request.getfixturevalue("redis_server")
        place, lease_us, ahead_s = server.url, 1_500_000, 0.0
    admitted, settled = set(), set()
    for run in range(KILLS):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, place, str(run), str(lease_us), str(ahead_s)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        )
        assert worker.stdout is not None
        for _ in range(draw.randint(20, 400)):
            line = worker.stdout.readline().split()
            assert line, "the worker ended by itself"
            (admitted if line[0] == "A" else settled).add(line[1])
        worker.kill()
        for line in map(str.split, worker.stdout.read().splitlines()):
            if len(line) == 2:  # the last line may be cut
                (admitted if line[0] == "A" else settled).add(line[1])
        worker.stdout.close()
        worker.wait()
    if server is None:
        bench = MemoryBench()
        bench.clock.now = time.time() + ahead_s + 3_700
        bench.ledger = MemoryLedger(bench.clock, bench.errors, Journal(path))
        bench.ledger.sweep()
        assert repr(bench.ledger).endswith("open=0)")
        account = bench.ledger._accounts["key:a"]
        requests, tokens, held = account.used[0], account.used[2], account.active
        assert bench.errors.failures == []
        await bench.stop()
    else:
        while server.client.keys("{llm-edge}:r:*") or server.client.exists("{llm-edge}:c:key:a"):
            pass
        read = server.client.hgetall("{llm-edge}:a:key:a")
        requests, tokens, held = int(read[b"u0"]), int(read[b"u2"]), 0
    unsaid = 8 * KILLS  # calls of a killed worker that it had no time to tell of
    assert len(admitted) > 5 * KILLS
    assert len(admitted) <= requests <= len(admitted) + unsaid
    open_at_kill = len(admitted - settled) + unsaid
    assert 12 * requests <= tokens <= 12 * requests + 3 * open_at_kill
    assert held == 0
