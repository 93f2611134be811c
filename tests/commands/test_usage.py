"""`llm-edge usage` prints the ledger's truth to the last digit."""

import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from extproc.commands.usage import moment_ms, usage, usd
from extproc.domain import Ended, Outcome, Usage, UsageSource
from extproc.ports import SilentObserver
from extproc.stores.usage_log import SqliteUsageLog
from tests.outcomes import outcome

NEW_YEAR_MS = 1_735_689_600_000
OUTCOME = outcome(
    id="",
    time_ms=NEW_YEAR_MS,
    model="gpt-4o-mini",
    usage=Usage(1_000, 20, 100, UsageSource.PROVIDER, 30),
    cost_pico_usd=154_500_000,
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a directory whose state directory is the default one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keep(*outcomes: Outcome) -> None:
    with closing(SqliteUsageLog(Path(".llm-edge/ledger.db"), SilentObserver())) as ledger:
        ledger.record([replace(o, id=str(n)) for n, o in enumerate(outcomes)])


def run(*arguments: str) -> Result:
    return CliRunner().invoke(usage, arguments)


def test_table() -> None:
    """Columns are aligned, USD has all its digits, the last line is the sum."""
    keep(
        OUTCOME,
        replace(OUTCOME, usage=Usage(1, 2, 0, UsageSource.ESTIMATED), cost_pico_usd=10**16),
        replace(OUTCOME, model="llama", cost_pico_usd=None, ended=Ended.PARTIAL),
        replace(OUTCOME, usage=Usage(0, 0, 0, UsageSource.NONE), cost_pico_usd=0, cache="hit"),
    )
    result = run()
    assert result.exit_code == 0
    assert result.output == (
        "key    model        day         requests  hits  input  cached  written  output"
        "            USD  estimated  partial\n"
        "key_1  gpt-4o-mini  2025-01-01         3     1   1001     100       30      22"
        "  10000.0001545          1        0\n"
        "key_1  llama        2025-01-01         1     0   1000     100       30      20"
        "              -          0        1\n"
        "total                                  4     1   2001     200       60      42"
        "  10000.0001545          1        1\n"
        "1 of 4 requests have no known price.\n"
    )


def test_other_groups() -> None:
    """Groups may be chosen; cents are always shown."""
    keep(replace(OUTCOME, cost_pico_usd=10**12), replace(OUTCOME, tenant="b", cost_pico_usd=0))
    lines = [line.split() for line in run("--by", "tenant, provider").output.splitlines()]
    assert lines[1:] == [
        ["acme", "openai", "1", "0", "1000", "100", "30", "20", "1.00", "0", "0"],
        ["b", "openai", "1", "0", "1000", "100", "30", "20", "0.00", "0", "0"],
        ["total", "2", "0", "2000", "200", "60", "40", "1.00", "0", "0"],
    ]


def test_json() -> None:
    """The document has everything, USD as a decimal string, beyond 64 bits too."""
    keep(*[replace(OUTCOME, cost_pico_usd=2**63 - 1)] * 3)
    document = json.loads(run("--json", "--by", "day").output)
    row = {
        "requests": 3,
        "finished": 3,
        "failed": 0,
        "partial": 0,
        "estimated": 0,
        "unpriced": 0,
        "hits": 0,
        "input": 3_000,
        "cached_input": 300,
        "cache_write": 90,
        "output": 60,
        "cost_pico_usd": 27_670_116_110_564_327_421,
        "usd": "27670116.110564327421",
    }
    assert document == {"rows": [{"day": "2025-01-01", **row}], "total": row}


@pytest.mark.parametrize(
    ("arguments", "days"),
    [
        ([], ["2025-01-01", "2025-01-02", "2025-01-03"]),
        (["--since", "2025-01-02"], ["2025-01-02", "2025-01-03"]),
        (["--until", "2025-01-02"], ["2025-01-01", "2025-01-02"]),
        (["--since", "2025-01-02", "--until", "2025-01-02"], ["2025-01-02"]),
        (["--until", "1d"], ["2025-01-01", "2025-01-02", "2025-01-03"]),
        (["--since", "1ms"], []),
    ],
)
def test_period(arguments: list[str], days: list[str]) -> None:
    """Both days of a period are in it."""
    keep(*[replace(OUTCOME, time_ms=NEW_YEAR_MS + n * 86_400_000) for n in range(3)])
    document = json.loads(run("--json", "--by", "day", *arguments).output)
    assert [row["day"] for row in document["rows"]] == days
    if not days:
        assert run(*arguments).output == "no usage in this period\n"


@pytest.mark.parametrize(
    ("text", "end_of_day", "expected"),
    [
        ("7d", False, "2025-03-03T12:00:00"),
        ("90m", True, "2025-03-10T10:30:00"),
        ("2024-02-29", False, "2024-02-29T00:00:00"),
        ("2024-02-29", True, "2024-03-01T00:00:00"),
    ],
)
def test_moments(text: str, end_of_day: bool, expected: str) -> None:
    """A time ago counts from now, a date is a whole UTC day."""
    now = datetime(2025, 3, 10, 12, tzinfo=UTC).timestamp()
    when = datetime.fromisoformat(expected).replace(tzinfo=UTC)
    assert moment_ms(text, now, end_of_day=end_of_day) == when.timestamp() * 1000


def test_no_ledger(here: Path) -> None:
    """Before the first call there is nothing to report and nothing is made."""
    result = run()
    assert (result.exit_code, result.output) == (0, "no usage yet\n")
    assert json.loads(run("--json").output)["rows"] == []
    assert list(here.iterdir()) == []


def test_empty_ledger() -> None:
    """A ledger without rows is like none."""
    keep()
    assert run().output == "no usage yet\n"


def test_state_directory_of_the_configuration(here: Path) -> None:
    """The ledger is where the configuration's state is; later files win."""
    keep(OUTCOME)
    (here / "a.yaml").write_text("state: {dir: elsewhere}")
    (here / "b.yaml").write_text("state: {dir: .llm-edge}")
    assert run("--config", "a.yaml").output == "no usage yet\n"
    assert "total" in run("--config", "a.yaml", "--config", "b.yaml").output


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--config", "bad.yaml"], 2, "colour"),
        (["--by", "colour"], 2, "legal: key, model, day, tenant, provider"),
        (["--by", ""], 2, "legal: key"),
        (["--since", "yesterday"], 2, "YYYY-MM-DD"),
        (["--since", ""], 2, "YYYY-MM-DD"),
        (["--since", "2025-02-30"], 2, "YYYY-MM-DD"),
        (["--until", "9999-12-31"], 2, "YYYY-MM-DD"),
        (["--config", "broken.yaml"], 1, "not a database"),
    ],
)
def test_failures(here: Path, arguments: list[str], code: int, says: str) -> None:
    """Bad usage is 2, a ledger that cannot be read 1; the message says what is legal."""
    (here / "bad.yaml").write_text("state: {colour: red}")
    (here / "broken.yaml").write_text("state: {dir: broken}")
    (here / "broken").mkdir()
    (here / "broken/ledger.db").write_bytes(b"not a database" * 100)
    result = run(*arguments)
    assert result.exit_code == code
    assert says in result.stderr
    assert result.stdout == ""


def test_usd_is_exact() -> None:
    """No digit is lost at any size."""
    expected = "1" + "0" * 28 + ".000000000001"
    assert f"{usd(10**40 + 1):f}" == f"{usd(10**40 + 1):.12f}" == expected
