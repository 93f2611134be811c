"""Add up the rows of the ledger.

Knows: the ledger's file and columns. Must not know: how rows get there, terminals or prices. It
reads beside a running writer (WAL) and never changes the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from extproc.stores.usage_log import BUSY_TIMEOUT_S, schema_version

GROUPS: Final = {
    "key": "key_id",
    "model": "model",
    "day": "day",
    "tenant": "tenant",
    "provider": "provider",
}
# SQLite's sum() fails above 2**63, which is nine million USD in pico-USD. Two sums of 32-bit halves
# are exact for two thousand million rows, and Python puts the halves together.
_HALF_BITS: Final = 32
_SUMS: Final = ("input", "cached_input", "cache_write", "output", "cost_pico_usd")
_LATER: Final = {"cache_write": 2, "cache": 3}  # columns and the version of the file they came with
_COUNTS: Final = (
    "count(*)",
    "sum(ended = 'finished')",
    "sum(ended = 'failed')",
    "sum(ended = 'partial')",
    "sum(usage_source = 'estimated')",
    "sum(cost_pico_usd IS NULL)",
)
_HITS: Final = "sum(cache <> '')"


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What the calls of one group came to; `group` is in the order of `by`.

    Tokens are whole, cost is whole pico-USD (1e-12 USD). `estimated` counts completed answers whose
    tokens the provider did not report, `unpriced` the calls that no price is known for: their cost
    is not in `cost_pico_usd`. `hits` counts the calls that a kept answer was told to.
    """

    group: tuple[str, ...]
    requests: int = 0
    finished: int = 0
    failed: int = 0
    partial: int = 0
    estimated: int = 0
    unpriced: int = 0
    hits: int = 0
    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    output: int = 0
    cost_pico_usd: int = 0


def usage_report(
    path: Path,
    by: Sequence[str] = ("key", "model", "day"),
    since: int | None = None,
    until: int | None = None,
) -> list[UsageRow]:
    """Return one row per group, sorted by group; times are unix ms, `until` is not included.

    Blocks. Raises ValueError for a name that is not in GROUPS, sqlite3.Error where the file cannot
    be read or was written by a later version.
    """
    unknown = [name for name in by if name not in GROUPS]
    if unknown or not by:
        raise ValueError(f"no group {', '.join(unknown)!r}; legal: {', '.join(GROUPS)}")
    columns = ", ".join(GROUPS[name] for name in by)
    mask = 2**_HALF_BITS - 1
    where = "time_ms >= ? AND time_ms < ?"
    bounds = (-(2**63) if since is None else since, 2**63 - 1 if until is None else until)
    uri = path.absolute().as_uri() + "?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S)) as db:
        version = schema_version(db)
        if version == 0:  # created and not yet filled
            return []
        # Read as it is, because only who writes the file brings it up to date.
        sums = [name if version >= _LATER.get(name, 1) else "0" for name in _SUMS]
        halves = [f"sum({name} >> {_HALF_BITS}), sum({name} & {mask})" for name in sums]
        hits = _HITS if version >= _LATER["cache"] else "0"
        query = (
            f"SELECT {columns}, {', '.join((*_COUNTS, hits, *halves))} FROM outcomes "  # noqa: S608 (constants)
            f"WHERE {where} GROUP BY {columns} ORDER BY {columns}"
        )
        return [_row(values, len(by)) for values in db.execute(query, bounds)]


def total(rows: Sequence[UsageRow]) -> UsageRow:
    """Return the sum of rows as one row without a group."""
    names = [name for name in UsageRow.__slots__ if name != "group"]
    return UsageRow((), **{name: sum(getattr(row, name) for row in rows) for name in names})


def _row(values: tuple[str | int | None, ...], groups: int) -> UsageRow:
    group = tuple(str(value) for value in values[:groups])
    numbers = [int(value or 0) for value in values[groups:]]
    counts, halves = numbers[: len(_COUNTS) + 1], numbers[len(_COUNTS) + 1 :]
    sums = [(high << _HALF_BITS) + low for high, low in zip(halves[::2], halves[1::2], strict=True)]
    return UsageRow(group, *counts, *sums)
