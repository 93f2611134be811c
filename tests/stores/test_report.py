"""Sums over the ledger are exact, whatever their size."""

import dataclasses
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from extproc.answers import Told
from extproc.domain import Ended, Outcome, Usage, UsageSource
from extproc.ports import SilentObserver
from extproc.stores.report import GROUPS, UsageRow, total, usage_report
from extproc.stores.usage_log import SCHEMA_VERSION, SqliteUsageLog
from tests.outcomes import outcome

DAY_MS = 86_400_000
OUTCOME = outcome(
    id="",
)


def told(how: Told) -> Outcome:
    """Return the row of a call that a kept answer was told to."""
    nothing = Usage(0, 0, 0, UsageSource.NONE)
    return replace(OUTCOME, usage=nothing, cost_pico_usd=0, attempts=0, cache=how)


Kept = Callable[[Sequence[Outcome]], Path]


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    def keep(outcomes: Sequence[Outcome]) -> Path:
        path = tmp_path / "ledger.db"
        path.unlink(missing_ok=True)
        with closing(SqliteUsageLog(path, SilentObserver())) as ledger:
            ledger.record([replace(o, id=f"{n}") for n, o in enumerate(outcomes)])
        return path

    return keep


def test_groups_and_counts(kept: Kept) -> None:
    """Every group has its requests by how they ended, its tokens and its cost."""
    path = kept(
        [
            OUTCOME,
            replace(OUTCOME, usage=Usage(1, 1, 0, UsageSource.ESTIMATED), cost_pico_usd=None),
            replace(OUTCOME, ended=Ended.PARTIAL, usage=Usage(7, 1, 0, UsageSource.PARTIAL, 5)),
            replace(OUTCOME, ended=Ended.FAILED, usage=Usage(0, 0, 0, UsageSource.NONE)),
            replace(OUTCOME, time_ms=DAY_MS, key_id="key_2"),
            replace(told("hit"), time_ms=DAY_MS, key_id="key_2"),
            replace(told("collapsed"), time_ms=DAY_MS, key_id="key_2"),
        ]
    )
    assert usage_report(path) == [
        UsageRow(("key_1", "small", "1970-01-01"), 4, 2, 1, 1, 1, 1, 0, 18, 2, 5, 6, 300),
        UsageRow(("key_2", "small", "1970-01-02"), 3, 3, 0, 0, 0, 0, 2, 10, 2, 0, 4, 100),
    ]
    assert usage_report(path, by=("tenant",)) == [
        UsageRow(("acme",), 7, 5, 1, 1, 1, 1, 2, 28, 4, 5, 10, 400)
    ]
    assert total(usage_report(path)) == dataclasses.replace(
        usage_report(path, by=("tenant",))[0], group=()
    )


@pytest.mark.parametrize(
    ("since", "until", "requests"),
    [
        pytest.param(None, None, 3, id="all"),
        pytest.param(DAY_MS, None, 2, id="from its first millisecond on"),
        pytest.param(DAY_MS + 1, None, 1, id="not before it"),
        pytest.param(None, DAY_MS, 1, id="until is not included"),
        pytest.param(DAY_MS, 2 * DAY_MS, 1, id="one day"),
        pytest.param(3 * DAY_MS, None, 0, id="none"),
    ],
)
def test_period(kept: Kept, since: int | None, until: int | None, requests: int) -> None:
    """The period is half open."""
    path = kept([replace(OUTCOME, time_ms=DAY_MS * n) for n in range(3)])
    assert total(usage_report(path, since=since, until=until)).requests == requests


def test_sums_beyond_64_bits(kept: Kept) -> None:
    """Four calls that together cost more than SQLite can count are summed exactly."""
    path = kept([replace(OUTCOME, cost_pico_usd=2**63 - 1)] * 4)
    (row,) = usage_report(path)
    assert row.cost_pico_usd == 4 * (2**63 - 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20))
def test_sums_are_exact(kept: Kept, costs: list[int]) -> None:
    """No sum differs from Python's."""
    outcomes = [
        replace(OUTCOME, cost_pico_usd=c, usage=Usage(c, c, c, UsageSource.PROVIDER)) for c in costs
    ]
    (row,) = usage_report(kept(outcomes))
    assert row.cost_pico_usd == row.input == row.output == row.cached_input == sum(costs)


@pytest.mark.parametrize("name", GROUPS)
def test_every_group(kept: Kept, name: str) -> None:
    """Each legal name groups by its column."""
    assert len(usage_report(kept([OUTCOME]), by=(name,))) == 1


@pytest.mark.parametrize("by", [("colour",), ("key", "id; DROP TABLE outcomes"), ()])
def test_refuses_other_names(tmp_path: Path, by: tuple[str, ...]) -> None:
    """A name that is not a group never becomes SQL."""
    with pytest.raises(ValueError, match="legal: key, model"):
        usage_report(tmp_path / "none", by=by)


def test_reads_beside_a_writer(tmp_path: Path) -> None:
    """A transaction in progress neither blocks a report nor shows in it."""
    path = tmp_path / "ledger.db"
    with closing(SqliteUsageLog(path, SilentObserver())), closing(sqlite3.connect(path)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert usage_report(path) == []


def test_an_empty_file(tmp_path: Path) -> None:
    """A file between creation and schema has no usage."""
    (tmp_path / "ledger.db").touch()
    assert usage_report(tmp_path / "ledger.db") == []


def test_no_file(tmp_path: Path) -> None:
    """A report does not create what is not there."""
    with pytest.raises(sqlite3.OperationalError):
        usage_report(tmp_path / "ledger.db")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_schema(kept: Kept) -> None:
    """A file that no gateway has opened since is reported as it is, and left so."""
    path = kept([OUTCOME])
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE outcomes DROP COLUMN cache_write")
        db.execute("PRAGMA user_version = 1")
    (row,) = usage_report(path)
    assert (row.input, row.cache_write) == (10, 0)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)


def test_a_later_schema(kept: Kept) -> None:
    """A newer file is an error, not wrong numbers."""
    path = kept([OUTCOME])
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(sqlite3.DatabaseError, match="later version"):
        usage_report(path)


def test_a_file_from_before_answers_were_kept(kept: Kept) -> None:
    """Read before anything has migrated it, it has no hits."""
    path = kept([OUTCOME])
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE outcomes DROP COLUMN cache")
        db.execute("PRAGMA user_version = 2")
    (row,) = usage_report(path)
    assert (row.requests, row.hits) == (1, 0)
