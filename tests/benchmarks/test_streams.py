"""Percentiles and what the streaming figures derive from them."""

import pytest

from benchmarks.streaming import LONG_CHUNKS, Found, healthy
from benchmarks.streams import Streamed, percentile


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0, 1.0), (1, 1.0), (50, 50.0), (50.5, 51.0), (99, 99.0), (99.9, 100.0), (100, 100.0)],
)
def test_percentile_is_the_nearest_rank(share: float, expected: float):
    """A percentile is always a value that was seen."""
    assert percentile([float(n) for n in range(1, 101)], share) == expected


def test_percentile_of_nothing_is_zero():
    """A rung that lost every stream still reports."""
    assert percentile([], 99) == 0.0


def streamed(completed: int = 200, gap_p99: float = 51.0) -> Streamed:
    return Streamed(200, completed, 1, 0, 1, 1, 50, gap_p99, 60, 1, 1)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(streamed(), True, id="on-pace"),
        pytest.param(streamed(gap_p99=55.1), False, id="late-tail"),
        pytest.param(streamed(completed=199), False, id="lost-stream"),
    ],
)
def test_healthy_means_whole_and_on_pace(seen: Streamed, *, expected: bool):
    """One lost stream or a late tail ends the climb."""
    assert healthy(seen, 50.0) is expected


def test_cpu_per_token_is_the_slope_between_a_long_and_a_short_answer():
    """What the first token costs is not charged to the others."""
    found = Found(answer_us={1: 300.0, LONG_CHUNKS: 300.0 + 0.5 * (LONG_CHUNKS - 1)})
    assert found.token_us == pytest.approx(0.5)
    assert Found().token_us is None
