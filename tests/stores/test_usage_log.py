"""The ledger: once per id, nothing lost that it accepted, nothing raised at the caller."""

import asyncio
import logging
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from extproc.domain import Outcome, Usage, UsageSource
from extproc.ports import SilentObserver
from extproc.stores import usage_log as module
from extproc.stores.usage_log import SqliteUsageLog
from tests.outcomes import outcome

OUTCOME = outcome(
    id="id-0",
    request_id="client's",
    time_ms=1_735_689_599_999,  # the last millisecond of 2024 in UTC
    stream=True,
    usage=Usage(19, 10, 5, UsageSource.PROVIDER, 3),
    cost_pico_usd=8_475_000,
    attempts=2,
    duration_ms=1_200,
    ttft_ms=None,
    request_bytes=400,
    response_bytes=9_000,
)


INTEGERS = {
    *("time_ms", "stream", "status", "input", "output", "cached_input", "cost_pico_usd"),
    *("attempts", "duration_ms", "ttft_ms", "request_bytes", "response_bytes"),
}


class Watching(SilentObserver):
    """Counts store errors and says when one of a kind came."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, str]] = []
        self.failed_to_write = threading.Event()

    def store_error(self, store: str, op: str) -> None:
        self.errors.append((store, op))
        if op == "write":
            self.failed_to_write.set()


def outcomes(count: int) -> list[Outcome]:
    return [replace(OUTCOME, id=f"id-{n}") for n in range(count)]


def rows(path: Path, what: str = "*") -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(f"SELECT {what} FROM outcomes ORDER BY rowid").fetchall()


def first_version(path: Path) -> None:
    """Write a ledger as the first release did, with one row."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript(module._SCHEMA + "PRAGMA user_version = 1;")
        names = [name for name in module._COLUMNS if name not in {"cache_write", "cache"}]
        values = [
            {"id": "old", "input": 7, "day": "2024-12-31"}.get(name, 1 if name in INTEGERS else "x")
            for name in names
        ]
        places = ", ".join("?" * len(names))
        db.execute(f"INSERT INTO outcomes ({', '.join(names)}) VALUES ({places})", values)
        db.commit()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.db"


@pytest.fixture
def observer() -> Watching:
    return Watching()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the patience out of the waits, so that a locked file fails at once."""
    monkeypatch.setattr(module, "BUSY_TIMEOUT_S", 0.001)
    monkeypatch.setattr(module, "BACKOFF_FIRST_S", 0.001)
    monkeypatch.setattr(module, "BACKOFF_LAST_S", 0.001)
    monkeypatch.setattr(module, "CLOSE_S", 0.0)


@pytest.fixture
def ledger(path: Path, observer: Watching) -> Iterator[SqliteUsageLog]:
    opened = SqliteUsageLog(path, observer, max_queued=1_000)
    yield opened
    opened.close()


@pytest.fixture
def locked(ledger: SqliteUsageLog, path: Path) -> Iterator[sqlite3.Connection]:
    """Another connection that holds the write lock until it is rolled back or closed."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


async def test_keeps_every_field(ledger: SqliteUsageLog, path: Path) -> None:
    """A row is the outcome and its UTC day."""
    ledger.record([OUTCOME])
    await ledger.flush()
    assert rows(path) == [
        (
            *("id-0", "client's", 1_735_689_599_999, "2024-12-31", "acme", "key_1", "chat"),
            *("small", "openai", "gpt-4o-mini", 1, 200, "finished", 19, 10, 5, "provider"),
            *(8_475_000, 2, 1_200, None, 400, 9_000, "", 3, ""),
        )
    ]


async def test_once_per_id(ledger: SqliteUsageLog, path: Path, observer: Watching) -> None:
    """The first record of an id stands; the client's request id does not matter."""
    ledger.record([OUTCOME, OUTCOME])
    await ledger.flush()
    ledger.record([replace(OUTCOME, cost_pico_usd=1), replace(OUTCOME, id="id-1")])
    await ledger.flush()
    assert rows(path, "id, request_id, cost_pico_usd") == [
        ("id-0", "client's", 8_475_000),
        ("id-1", "client's", 8_475_000),
    ]
    assert observer.errors == []


@pytest.mark.parametrize("count", [1, 7, 8, 63, 64, 65, 137, 1_000])
async def test_batches_of_any_size(ledger: SqliteUsageLog, path: Path, count: int) -> None:
    """However many rows come at once, each is written once."""
    ledger.record(outcomes(count))
    await ledger.flush()
    assert rows(path, "id") == [(f"id-{n}",) for n in range(count)]


async def test_unknown_cost_is_null(ledger: SqliteUsageLog, path: Path) -> None:
    """No price is not a price of 0."""
    ledger.record([replace(OUTCOME, cost_pico_usd=None)])
    await ledger.flush()
    assert rows(path, "cost_pico_usd") == [(None,)]


async def test_flush_without_rows(ledger: SqliteUsageLog) -> None:
    """An idle ledger is flushed already."""
    await ledger.flush()


async def test_a_locked_file_loses_nothing(
    hasty: None, ledger: SqliteUsageLog, path: Path, observer: Watching, locked: sqlite3.Connection
) -> None:
    """Rows wait for another writer to let go, and are counted as late."""
    ledger.record(outcomes(100))
    await asyncio.to_thread(observer.failed_to_write.wait)
    ledger.record(outcomes(200))
    locked.execute("ROLLBACK")
    await ledger.flush()
    assert len(rows(path)) == 200
    assert set(observer.errors) == {("usage_log", "write")}


@pytest.mark.usefixtures("hasty")
async def test_overflow_is_counted_and_logged_once_per_burst(
    ledger: SqliteUsageLog,
    path: Path,
    observer: Watching,
    locked: sqlite3.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What finds no room is lost, said once, and the rest is kept."""
    caplog.set_level(logging.ERROR)
    for start in range(0, 1_500, 100):
        ledger.record(outcomes(1_500)[start : start + 100])
    assert observer.errors.count(("usage_log", "overflow")) == 500
    assert len(caplog.records) == 1
    locked.execute("ROLLBACK")
    await ledger.flush()
    assert len(rows(path)) == 1_000
    ledger.record(outcomes(1))  # there is room again, so the next burst is a new one
    ledger.record(outcomes(1_001))
    assert len(caplog.records) == 2


async def test_a_bad_row_does_not_hold_up_the_others(
    ledger: SqliteUsageLog, path: Path, observer: Watching
) -> None:
    """A number of 70 bits, a lone surrogate and a year without a date are lost alone."""
    good = outcomes(100)
    bad = [
        replace(OUTCOME, id="x", cost_pico_usd=2**70),
        replace(OUTCOME, id="y", request_id="\ud800"),
        replace(OUTCOME, id="z", time_ms=10**18),
    ]
    ledger.record([*good[:50], *bad, *good[50:]])
    await ledger.flush()
    assert len(rows(path)) == 100
    assert observer.errors == [("usage_log", "row")] * 3


async def test_close_writes_what_is_queued(path: Path, observer: Watching) -> None:
    """Closing is flushing; later rows are counted as lost, and a second close is nothing."""
    ledger = SqliteUsageLog(path, observer)
    ledger.record(outcomes(500))
    ledger.close()
    ledger.close()
    assert len(rows(path)) == 500
    ledger.record([OUTCOME])
    assert observer.errors == [("usage_log", "overflow")]
    await ledger.flush()


async def test_close_gives_up_on_a_locked_file(
    hasty: None, ledger: SqliteUsageLog, observer: Watching, locked: sqlite3.Connection
) -> None:
    """A file nobody can write does not hold the process; the loss is counted, flushes return."""
    ledger.record(outcomes(3))
    waiting = asyncio.create_task(ledger.flush())
    await asyncio.to_thread(observer.failed_to_write.wait)
    await asyncio.to_thread(ledger.close)
    await waiting
    assert observer.errors.count(("usage_log", "overflow")) == 3


def test_a_flush_nobody_waits_for(
    hasty: None, ledger: SqliteUsageLog, path: Path, locked: sqlite3.Connection
) -> None:
    """An event loop that ended in the middle of a flush does not stop the writer."""
    ledger.record(outcomes(3))

    async def abandon() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await ledger.flush()

    asyncio.run(abandon())
    locked.execute("ROLLBACK")
    asyncio.run(ledger.flush())
    assert len(rows(path)) == 3


CHILD = """
import asyncio, resource, signal, sys
from msgspec.structs import replace
from pathlib import Path
from extproc.stores.usage_log import SqliteUsageLog
from tests.stores.test_usage_log import OUTCOME, Watching, outcomes
observer = Watching()
ledger = SqliteUsageLog(Path(sys.argv[1]), observer)
"""
DIES = """
ledger.record(outcomes(1_000))
asyncio.run(ledger.flush())
print("flushed", flush=True)
sys.stdin.read()
"""
DISK_FULL = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, resource.RLIM_INFINITY))
ledger.record(outcomes(1_000))
observer.failed_to_write.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
asyncio.run(ledger.flush())
ledger.close()
assert set(observer.errors) == {("usage_log", "write")}
"""


def test_rows_survive_kill_9(path: Path) -> None:
    """What a flush returned for is there after the process was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD + DIES, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"flushed\n"
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert len(rows(path)) == 1_000


def test_a_full_disk_loses_nothing(path: Path) -> None:
    """Rows wait until there is room on the disk again."""
    command = [sys.executable, "-c", CHILD + DISK_FULL, str(path)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    assert len(rows(path)) == 1_000


def test_reopens_its_file(path: Path, observer: Watching) -> None:
    """A second start finds the schema and adds to it."""
    for number in range(2):
        with closing(SqliteUsageLog(path, observer)) as ledger:
            ledger.record([replace(OUTCOME, id=str(number))])
    assert len(rows(path)) == 2
    assert path.stat().st_mode & 0o777 == 0o600


def test_brings_a_file_of_the_first_version_up_to_date(path: Path, observer: Watching) -> None:
    """Its rows stay as they are, and say that no cache was used."""
    path.parent.mkdir()
    first_version(path)
    with closing(SqliteUsageLog(path, observer)) as ledger:
        ledger.record([OUTCOME])
    assert rows(path, "id, input, cache_write, cache") == [("old", 7, 0, ""), ("id-0", 19, 3, "")]
    SqliteUsageLog(path, observer).close()
    assert observer.errors == []


def test_refuses_a_later_schema(path: Path, observer: Watching) -> None:
    """A file of a newer version is an error at the start, not a surprise later."""
    SqliteUsageLog(path, observer).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {module.SCHEMA_VERSION + 1}")
    with pytest.raises(sqlite3.DatabaseError, match="later version"):
        SqliteUsageLog(path, observer)


def test_refuses_a_file_that_is_no_database(path: Path, observer: Watching) -> None:
    """Someone else's file is left alone."""
    path.parent.mkdir()
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        SqliteUsageLog(path, observer)
    assert path.read_bytes() == b"not a database" * 100


def test_repr(ledger: SqliteUsageLog, path: Path) -> None:
    """The repr says where and how much."""
    assert repr(ledger) == f"SqliteUsageLog({str(path)!r}, queued=0)"
