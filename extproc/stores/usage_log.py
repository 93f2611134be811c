"""Keep one row per settled call in SQLite.

Knows: SQLite, its file and outcomes. Must not know: requests, prices or reports (`report.py` reads
what is written here). A thread of its own writes, so the event loop never waits for a disk.
Failure mode: open. A row that cannot be written now stays queued and is tried again; the queue is
bounded and what finds no room is counted and lost. Nothing here ever refuses a call.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from extproc.domain import Outcome
from extproc.ports import Observer

log: Final = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 3
BUSY_TIMEOUT_S: Final = 1.0  # a report or a backup holds the file for less
BACKOFF_FIRST_S: Final = 0.05  # one flush of Envoy's access log
BACKOFF_LAST_S: Final = 2.0  # how late a freed disk is noticed
CLOSE_S: Final = 5.0  # a supervisor's patience after the drain
# Rows per INSERT. SQLite lets go of the GIL once per statement, and a thread that shares it with a
# busy event loop waits 5 ms to get it back: row by row, 150 rows were seen to take nine seconds.
ROWS_PER_STATEMENT: Final = (64, 8, 1)
# How long fewer rows than fill a statement wait for more: one flush of Envoy's access log, in which
# a kill loses them. Under load the writer then wakes once per 64 calls instead of every other one.
LINGER_S: Final = 0.05

# Strict tables refuse a float where a count belongs. `day` is the UTC date of `time_ms`.
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS outcomes (
  id TEXT NOT NULL PRIMARY KEY, request_id TEXT NOT NULL, time_ms INTEGER NOT NULL,
  day TEXT NOT NULL, tenant TEXT NOT NULL, key_id TEXT NOT NULL, endpoint TEXT NOT NULL,
  model TEXT NOT NULL, provider TEXT NOT NULL, served_model TEXT NOT NULL,
  stream INTEGER NOT NULL, status INTEGER NOT NULL, ended TEXT NOT NULL,
  input INTEGER NOT NULL, output INTEGER NOT NULL, cached_input INTEGER NOT NULL,
  usage_source TEXT NOT NULL, cost_pico_usd INTEGER, attempts INTEGER NOT NULL,
  duration_ms INTEGER NOT NULL, ttft_ms INTEGER, request_bytes INTEGER NOT NULL,
  response_bytes INTEGER NOT NULL, flags TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS outcomes_by_time ON outcomes (time_ms);
"""
# Version 2 came with prices of cache writes.
_CACHE_WRITE: Final = "ALTER TABLE outcomes ADD COLUMN cache_write INTEGER NOT NULL DEFAULT 0;"
# Version 3 came with answers that are kept.
_CACHE: Final = "ALTER TABLE outcomes ADD COLUMN cache TEXT NOT NULL DEFAULT '';"
_STEPS: Final = (_SCHEMA, _CACHE_WRITE, _CACHE)  # step n leads from version n to n + 1
_COLUMNS: Final = (
    *("id", "request_id", "time_ms", "day", "tenant", "key_id", "endpoint", "model", "provider"),
    *("served_model", "stream", "status", "ended", "input", "output", "cached_input"),
    *("usage_source", "cost_pico_usd", "attempts", "duration_ms", "ttft_ms", "request_bytes"),
    *("response_bytes", "flags", "cache_write", "cache"),
)
_fields: Final = attrgetter(
    *("id", "request_id", "time_ms", "tenant", "key_id", "endpoint", "model", "provider"),
    *("served_model", "stream", "status", "ended", "usage.input", "usage.output"),
    *("usage.cached_input", "usage.source", "cost_pico_usd", "attempts", "duration_ms", "ttft_ms"),
    *("request_bytes", "response_bytes", "flags", "usage.cache_write", "cache"),
)
_DAY: Final = _COLUMNS.index("day")
# What one bad row raises, whatever state the file is in: not a whole number of 64 bits, not UTF-8,
# a type SQLite has no place for, a time without a date.
_ROW_FAULTS: Final = (
    *(AttributeError, TypeError, ValueError, OverflowError, OSError),
    *(sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.IntegrityError, sqlite3.DataError),
)


@lru_cache(maxsize=8)
def _insert(rows: int) -> str:
    places = ",".join(f"({','.join('?' * len(_COLUMNS))})" for _ in range(rows))
    names = ", ".join(_COLUMNS)
    return f"INSERT INTO outcomes ({names}) VALUES {places} ON CONFLICT (id) DO NOTHING"  # noqa: S608


@lru_cache(maxsize=8)
def _day(number: int) -> str:
    return datetime.fromtimestamp(number * 86_400, UTC).strftime("%Y-%m-%d")


def _row(outcome: Outcome) -> tuple[Any, ...]:
    values = _fields(outcome)
    return (*values[:_DAY], _day(outcome.time_ms // 86_400_000), *values[_DAY:])


def _open(path: Path) -> sqlite3.Connection:
    """Open for writing and bring the schema up to date. Raises sqlite3.Error."""
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        # A commit outlives the process at once, and a power cut after the next checkpoint.
        db.execute("PRAGMA synchronous = NORMAL")
        if schema_version(db) < SCHEMA_VERSION:
            _bring_up_to_date(db)
    except BaseException:
        db.close()
        raise
    return db


def _bring_up_to_date(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")  # whoever else opens the file waits, and then finds it done
    try:
        for step in _STEPS[schema_version(db) :]:
            for statement in filter(str.strip, step.split(";")):
                db.execute(statement)  # one by one, because a script commits first
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def prepare(path: Path) -> None:
    """Create the file or bring its schema up to date. Raises OSError or sqlite3.Error."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Before SQLite opens it: -wal and -shm take over the mode of the database file.
    path.touch(mode=0o600, exist_ok=True)
    _open(path).close()


def schema_version(db: sqlite3.Connection) -> int:
    """Return the schema's version, 0 for an empty file. Raises DatabaseError for a later one."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise sqlite3.DatabaseError(f"the ledger was written by a later version ({version})")
    return int(version)


class SqliteUsageLog:
    """Rows in a SQLite file, once per `Outcome.id` however often they are recorded."""

    def __init__(self, path: Path, observer: Observer, max_queued: int = 100_000) -> None:
        """Open or create the file and start the writer. Raises OSError or sqlite3.Error."""
        prepare(path)
        self._path = path
        self._observer = observer
        self._max_queued = max_queued
        self._queue: deque[Outcome] = deque()  # the writer removes a row once it is committed
        self._wake = threading.Condition()  # guards the queue and all below
        self._accepted = 0
        self._done = 0
        self._flushes: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._overflowing = False
        self._closing = threading.Event()
        self._give_up_at = 0.0
        self._writer = threading.Thread(target=self._run, name="usage log", daemon=True)
        self._writer.start()

    def __repr__(self) -> str:
        return f"SqliteUsageLog({str(self._path)!r}, queued={len(self._queue)})"

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """Queue rows for the writer; never raises, never waits for the disk."""
        with self._wake:
            room = 0 if self._closing.is_set() else self._max_queued - len(self._queue)
            kept = outcomes[: max(room, 0)]
            self._queue.extend(kept)
            self._accepted += len(kept)
            lost = len(outcomes) - len(kept)
            first = lost > 0 and not self._overflowing
            self._overflowing = lost > 0
            queued = len(self._queue)
            if queued >= ROWS_PER_STATEMENT[0] or queued == len(kept):
                self._wake.notify()
        for _ in range(lost):
            self._observer.store_error("usage_log", "overflow")
        if first:
            log.error("usage log takes no more rows", extra={"max": self._max_queued})

    async def flush(self) -> None:
        """Return when every row accepted so far is committed: as late as the disk allows."""
        written = asyncio.Event()
        with self._wake:
            if self._done >= self._accepted:
                return
            self._flushes.append((self._accepted, asyncio.get_running_loop(), written))
            self._wake.notify()
        await written.wait()

    def close(self) -> None:
        """Write what is queued, for up to CLOSE_S seconds, and end the writer. Blocks.

        Rows still unwritten then are counted as `overflow` and logged.
        """
        with self._wake:
            if not self._closing.is_set():
                self._give_up_at = time.monotonic() + CLOSE_S
                self._closing.set()
            self._wake.notify()
        self._writer.join()

    def _run(self) -> None:
        db: sqlite3.Connection | None = None
        backoff_s = 0.0
        while batch := self._next():
            try:
                db = db or _open(self._path)
                self._write(db, batch)
            except (sqlite3.Error, OSError) as error:
                self._observer.store_error("usage_log", "write")
                if db is not None:
                    db.close()
                    db = None
                if not backoff_s:
                    log.warning("usage log not written, rows wait", extra={"reason": str(error)})
                if self._closing.is_set() and time.monotonic() >= self._give_up_at:
                    break
                backoff_s = min(max(backoff_s * 2, BACKOFF_FIRST_S), BACKOFF_LAST_S)
                if self._closing.wait(backoff_s):
                    time.sleep(BACKOFF_FIRST_S)  # the event stays set and would let this spin
            else:
                if backoff_s:
                    log.info("usage log is written again")
                backoff_s = 0.0
                self._forget(len(batch))
        if db is not None:
            db.close()
        self._give_up()

    def _next(self) -> list[Outcome]:
        """Wait for rows and return all of them; none means the ledger was closed."""
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._closing.is_set())
            self._wake.wait_for(self._is_time, LINGER_S)
            return list(self._queue)

    def _is_time(self) -> bool:
        """Say whether to write now: a statement is full, or somebody waits."""
        full = len(self._queue) >= ROWS_PER_STATEMENT[0]
        return full or bool(self._flushes) or self._closing.is_set()

    def _write(self, db: sqlite3.Connection, batch: Sequence[Outcome]) -> None:
        """Commit a batch; one statement per 64 rows, one per row where one of them is bad."""
        db.execute("BEGIN IMMEDIATE")
        try:
            try:
                self._insert_many(db, [_row(outcome) for outcome in batch])
            except _ROW_FAULTS:
                db.execute("ROLLBACK")
                db.execute("BEGIN IMMEDIATE")
                self._insert_singly(db, batch)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _insert_many(self, db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        start = 0
        for size in ROWS_PER_STATEMENT:
            while len(rows) - start >= size:
                chunk = rows[start : start + size]
                db.execute(_insert(size), [value for row in chunk for value in row])
                start += size

    def _insert_singly(self, db: sqlite3.Connection, batch: Sequence[Outcome]) -> None:
        for outcome in batch:
            try:
                db.execute(_insert(1), _row(outcome))
            except _ROW_FAULTS:
                self._observer.store_error("usage_log", "row")
                log.exception("usage log row cannot be written, it is lost")

    def _forget(self, rows: int) -> None:
        with self._wake:
            for _ in range(rows):
                self._queue.popleft()
            self._done += rows
            reached = [flush for flush in self._flushes if flush[0] <= self._done]
            self._flushes = [flush for flush in self._flushes if flush[0] > self._done]
        for _, loop, written in reached:
            with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
                loop.call_soon_threadsafe(written.set)

    def _give_up(self) -> None:
        lost = len(self._queue)
        for _ in range(lost):
            self._observer.store_error("usage_log", "overflow")
        if lost:
            log.error("usage log closed with rows unwritten, they are lost", extra={"rows": lost})
        self._forget(lost)
