"""What the benchmark of limits says when a mode fails: which, with what, and the others' figures."""

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import limits
from benchmarks.load import Sample


def test_a_round_that_failed_is_no_figure_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
):
    """The mode, how many and by which status."""
    up: Any = SimpleNamespace(port=1, key="k", processor=None)
    clock = iter([1.0, 3.0, 3.0, 4.0])
    monkeypatch.setattr(limits, "cpu_seconds", lambda _: next(clock))
    samples = iter(
        [
            Sample(1000, 1.0, 1.0, 1.0, 7, "status: 7 (429: 7)"),
            Sample(10_000, 1.0, 1.0, 1.0, 0),
        ]
    )
    monkeypatch.setattr(limits.load, "run", lambda *_, **__: next(samples))
    assert limits.measure("redis", up, tmp_path, 1.0) is None
    told = capsys.readouterr().err
    assert told.startswith("redis: 7 of 1000 requests failed: status: 7 (429: 7)")
    clock = iter([3.0, 4.0])
    assert limits.measure("redis", up, tmp_path, 1.0) == 100.0


@pytest.mark.parametrize(
    ("found", "whole", "lines"),
    [
        pytest.param(
            {"off": [100.0], "memory": [120.0, 130.0, 110.0], "redis": [180.0]},
            True,
            [
                "PASS          memory - off <= 40 us  20.00 us",
                "PASS          redis / memory <= 1.7  1.50 x",
            ],
            id="all were measured",
        ),
        pytest.param(
            {"off": [100.0], "memory": [140.1], "redis": [240.0]},
            True,
            [
                "FAIL          memory - off <= 40 us  40.10 us",
                "FAIL          redis / memory <= 1.7  1.71 x",
            ],
            id="both too dear",
        ),
        pytest.param(
            {"off": [100.0], "memory": [120.0], "redis": []},
            False,
            ["redis    not measured", "20.00 us", "NOT MEASURED  redis / memory"],
            id="one was not",
        ),
        pytest.param(
            {"off": [], "memory": [], "redis": [1.0]},
            False,
            ["off      not measured", "NOT MEASURED  memory - off", "redis        1.0 us"],
            id="nothing to compare with",
        ),
    ],
)
def test_what_was_measured_is_told(
    found: dict[str, list[float]],
    whole: bool,
    lines: list[str],
    capsys: pytest.CaptureFixture[str],
):
    """And what was not is called so."""
    assert limits.tell(found) is whole
    told = capsys.readouterr().out
    for line in lines:
        assert line in told
