"""What wrk prints, and the prompts it is given."""

import json

import pytest

from benchmarks import load
from benchmarks.load import LoadError, Sample, Spread

PRINTED = """Running 3s test @ http://127.0.0.1:1/v1/chat/completions
  1 threads and 32 connections
Requests/sec:  52998.34

BENCH {"requests": 159999, "duration_us": 3018942, "bytes": 1, "p50_us": 427, "p90_us": 600, \
"p99_us": 1569, "max_us": 9000, "connect": 1, "read": 2, "write": 3, "timeout": 4, "status": 5}
"""


def test_wrk_line_becomes_a_sample_with_all_errors_added_up():
    """Every kind of error counts, a refused status too."""
    sample = load.parse(PRINTED)
    told = "connect: 1, read: 2, write: 3, timeout: 4, status: 5"
    assert sample == Sample(159999, 3.018942, 0.427, 1.569, 15, told)
    assert sample.per_second == pytest.approx(52998.3, abs=0.1)


def test_refusals_are_told_by_status_where_they_were_counted():
    """So that a benchmark that fails says what it was refused with."""
    counted = PRINTED.replace('"status": 5}', '"status": 5, "statuses": {"503": 1, "429": 4}}')
    assert load.parse(counted).failures.endswith("status: 5 (429: 4, 503: 1)")
    none = PRINTED.replace('"status": 5}', '"status": 0, "statuses": {}}')
    assert load.parse(none).failures == "connect: 1, read: 2, write: 3, timeout: 4"


@pytest.mark.parametrize("output", ["", "unable to connect to 127.0.0.1:1 Connection refused\n"])
def test_output_without_a_result_is_an_error_that_quotes_it(output: str):
    """A wrk that failed must not look like a rung that did nothing."""
    with pytest.raises(LoadError, match=r"no result"):
        load.parse(output)


def test_no_time_is_no_throughput():
    """Nothing is divided by zero."""
    assert Sample(0, 0.0, 0.0, 0.0, 0).per_second == 0.0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([], None, id="nothing-measured"),
        pytest.param([2.0], Spread(2.0, 2.0, 2.0), id="one-round"),
        pytest.param([9.0, 1.0, 2.0], Spread(2.0, 1.0, 9.0), id="odd"),
        pytest.param([4.0, 1.0, 2.0, 9.0], Spread(3.0, 1.0, 9.0), id="even"),
    ],
)
def test_spread_is_the_median_between_the_extremes(values: list[float], expected: Spread | None):
    """One wild round moves an extreme, not the median."""
    assert load.spread(values) == expected


@pytest.mark.parametrize("size", [1024, 30 * 1024, 1024 * 1024])
def test_prompt_is_json_of_its_size_with_one_place_for_the_number(size: int):
    """wrk.lua replaces the mark; the body's length must not change by that."""
    body = load.prompt("bench-model", size)
    assert abs(len(body) - size) <= 2
    assert body.count(load.MARK.encode()) == 1
    assert len(load.MARK) == 16
    call = json.loads(body)
    assert call["model"] == "bench-model"
    assert [turn["role"] for turn in call["messages"]] == ["system", "user"]
