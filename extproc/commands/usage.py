"""`llm-edge usage`: what was used and what it cost, from the ledger.

Knows: the terminal, the ledger's reports. Must not know: a running server or how rows are written.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from pathlib import Path
from typing import Any, Final

import click

from extproc.commands.options import Failed, config_option, load_config
from extproc.config import parse_duration
from extproc.domain import PICO_USD_PER_USD
from extproc.places import Places
from extproc.stores.report import GROUPS, UsageRow, total, usage_report

CENTS: Final = 2  # decimal places shown at least
_EXACT: Final = Context(prec=60)  # 48 digits of USD and 12 of pico-USD: more than there is money
_NUMBERS: Final = (
    *("requests", "hits", "input", "cached", "written", "output", "USD", "estimated", "partial"),
)


def _groups(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        raise click.BadParameter(f"no {unknown[0]!r}; legal: {', '.join(GROUPS)}")
    return names


def _since(text: str) -> int:
    return _moment(text, end_of_day=False)


def _until(text: str) -> int:
    return _moment(text, end_of_day=True)


def _moment(text: str, *, end_of_day: bool) -> int:
    try:
        return moment_ms(text, time.time(), end_of_day=end_of_day)
    except (ValueError, OverflowError):
        message = f"{text!r}: write YYYY-MM-DD or a time ago such as 7d"
        raise click.BadParameter(message) from None


def moment_ms(text: str, now: float, *, end_of_day: bool) -> int:
    """Return unix milliseconds of `7d` before now, or of a date's first moment (or the next's).

    `now` is unix seconds; dates are UTC. Raises ValueError or OverflowError.
    """
    if text[-1:].isalpha():
        return round((now - parse_duration(text)) * 1000)
    day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    return round((day + timedelta(days=end_of_day)).timestamp() * 1000)


@click.command()
@config_option
@click.option(
    "--by",
    type=_groups,
    default="key,model,day",
    show_default=True,
    metavar="NAMES",
    help=f"What to group by: some of {', '.join(GROUPS)}.",
)
@click.option(
    "--since",
    type=_since,
    metavar="WHEN",
    help="From this UTC day on (YYYY-MM-DD), or this long ago (7d).",
)
@click.option(
    "--until",
    type=_until,
    metavar="WHEN",
    help="Up to and including this UTC day, or until this long ago.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def usage(
    *,
    config_paths: tuple[Path, ...],
    by: tuple[str, ...],
    since: int | None,
    until: int | None,
    as_json: bool,
) -> None:
    """Print tokens and USD by key, model and day.

    Days are UTC, USD is exact. `hits` counts the requests that a kept answer was told to: nothing
    was used, nothing is charged. `cached` and `written` are the parts of the input that came from a
    prompt cache and went into one. `estimated` counts complete answers whose provider reported no
    usage, `partial` the answers that were cut.
    """
    path = Places.of(load_config(config_paths)).ledger
    try:
        rows = usage_report(path, by, since, until) if path.exists() else []
    except sqlite3.Error as error:
        raise Failed(f"{path}: {error}") from None
    if as_json:
        document = {"rows": [_record(row, by) for row in rows], "total": _record(total(rows), ())}
        click.echo(json.dumps(document, indent=2))
    elif not rows:
        limited = since is not None or until is not None
        click.echo("no usage in this period" if limited and path.exists() else "no usage yet")
    else:
        click.echo("\n".join(_table(rows, by)))


def usd(pico_usd: int) -> Decimal:
    """Return whole pico-USD as USD, exactly."""
    return _EXACT.divide(Decimal(pico_usd), Decimal(PICO_USD_PER_USD))


def _record(row: UsageRow, by: Sequence[str]) -> dict[str, Any]:
    names = [name for name in UsageRow.__slots__ if name != "group"]
    record: dict[str, Any] = dict(zip(by, row.group, strict=True))
    record.update((name, getattr(row, name)) for name in names)
    record["usd"] = f"{usd(row.cost_pico_usd):f}"  # a string: a JSON number would be read as float
    return record


def _table(rows: Sequence[UsageRow], by: Sequence[str]) -> list[str]:
    summed = total(rows)
    places = max(CENTS, *(_places(row.cost_pico_usd) for row in (*rows, summed)))
    blank = ("total", *[""] * (len(by) - 1))
    cells = [(*by, *_NUMBERS)]
    cells += [(*row.group, *_numbers(row, places)) for row in rows]
    cells += [(*blank, *_numbers(summed, places))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(_cell(c, n, widths, len(by)) for n, c in enumerate(r)) for r in cells]
    lines = [line.rstrip() for line in lines]
    if summed.unpriced:
        lines.append(f"{summed.unpriced} of {summed.requests} requests have no known price.")
    return lines


def _cell(text: str, column: int, widths: Sequence[int], groups: int) -> str:
    return text.ljust(widths[column]) if column < groups else text.rjust(widths[column])


def _numbers(row: UsageRow, places: int) -> tuple[str, ...]:
    counts = (row.requests, row.hits, row.input, row.cached_input, row.cache_write, row.output)
    # Because 0.00 would say the calls were free.
    unknown = row.unpriced == row.requests
    cost = "-" if unknown else f"{usd(row.cost_pico_usd):.{places}f}"
    return (*map(str, counts), cost, str(row.estimated), str(row.partial))


def _places(pico_usd: int) -> int:
    return len(f"{pico_usd % PICO_USD_PER_USD:012d}".rstrip("0"))
