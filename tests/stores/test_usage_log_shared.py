"""One ledger file that several processes write at once, as several workers do."""

from __future__ import annotations

import multiprocessing
import sqlite3
from contextlib import closing
from multiprocessing.synchronize import Barrier
from pathlib import Path

from extproc.ports import SilentObserver
from extproc.stores.usage_log import SqliteUsageLog, prepare
from tests.outcomes import outcome

WRITERS = 4
BATCHES = 40
ROWS = 15
SHARED = 7  # of them under ids that every writer has


class Counting(SilentObserver):
    def __init__(self) -> None:
        self.errors: list[str] = []

    def store_error(self, store: str, op: str) -> None:
        self.errors.append(f"{store}/{op}")


def write(
    path: Path, number: int, together: Barrier, said: multiprocessing.SimpleQueue[object]
) -> None:
    """Open the file at the same moment as the others and write as fast as can be."""
    observer = Counting()
    together.wait()
    log = SqliteUsageLog(path, observer)
    for batch in range(BATCHES):
        log.record(
            [
                outcome(id=f"{'all' if row < SHARED else number}-{batch}-{row}", time_ms=batch)
                for row in range(ROWS)
            ]
        )
    log.close()
    said.put((number, observer.errors))


def run_together(path: Path) -> list[str]:
    """Have all of them write; return what they counted as lost or unreadable."""
    context = multiprocessing.get_context("spawn")
    together, said = context.Barrier(WRITERS), context.SimpleQueue()
    writers = [
        context.Process(target=write, args=(path, number, together, said))
        for number in range(WRITERS)
    ]
    for one in writers:
        one.start()
    for one in writers:
        one.join(60)
        assert one.exitcode == 0
    errors: list[str] = []
    for _ in writers:
        errors += said.get()[1]
    return errors


def test_every_row_is_there_once(tmp_path: Path) -> None:
    """Whoever finds the file busy waits for its turn; a new file is made but once."""
    path = tmp_path / "ledger.db"
    prepare(path)
    errors = run_together(path)
    assert "usage_log/overflow" not in errors  # lost; a try that came too soon is none
    with closing(sqlite3.connect(path)) as db:
        (count, ids) = db.execute("SELECT count(*), count(DISTINCT id) FROM outcomes").fetchone()
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert count == ids == BATCHES * (SHARED + WRITERS * (ROWS - SHARED))
    assert path.stat().st_mode & 0o777 == 0o600


def test_to_prepare_is_no_change_where_all_is_well(tmp_path: Path) -> None:
    path = tmp_path / "state" / "ledger.db"
    prepare(path)
    log = SqliteUsageLog(path, Counting())
    log.record([outcome()])
    log.close()
    prepare(path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM outcomes").fetchone() == (1,)
