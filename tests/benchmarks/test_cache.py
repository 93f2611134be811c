"""What the benchmark of the cache takes for a hit, and how it judges what it measured."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import cache, load
from benchmarks.cache import COLLECTED, NOT_COLLECTED, Round
from benchmarks.load import LoadError, Sample
from benchmarks.processes import StartError
from benchmarks.streams import Streamed

UP: Any = SimpleNamespace(port=1, key="k", processor=None, envoy=None)


def streamed(gap_p99: float) -> Streamed:
    """Return what streams with this gap showed."""
    return Streamed(200, 200, 8_000, 0, 1.0, 2.0, 50.0, gap_p99, 60.0, 0.1, 0.5)


def rounds() -> list[Round]:
    """Return three rounds that meet every target, some of them just so."""
    off, miss, hit = (100.0, 200.0, 300.0), (139.0, 240.0, 341.0), (250.0, 249.0, 251.0)
    gaps = ((51.0, 50.0), (52.5, 51.5), (53.0, 52.5))
    return [
        Round(
            us={
                "memory, cache off": off[n],
                "memory, cache on: miss": miss[n],
                "memory, cache on: hit": hit[n],
            },
            p50_ms=(1.1, 1.2, 1.3)[n],
            streamed={COLLECTED: streamed(gaps[n][0]), NOT_COLLECTED: streamed(gaps[n][1])},
            envoy_us={COLLECTED: 12.0, NOT_COLLECTED: 10.5},
        )
        for n in range(3)
    ]


def test_a_miss_is_compared_with_the_same_round_and_judged_by_medians() -> None:
    """At the bound is within it."""
    summary = cache.summarise(rounds())
    assert summary["miss_more_us"]["memory"] == {"median": 40.0, "low": 39.0, "high": 41.0}
    assert summary["miss_more_us"]["redis"] is None
    assert summary["collecting_adds_gap_p99_ms"]["median"] == 1.0
    assert summary["collecting_adds_envoy_us_per_chunk"]["median"] == 1.5
    judged = cache.verdicts(summary)
    assert [verdict.state for verdict in judged] == ["PASS"] * 4
    measured = [verdict.measured for verdict in judged]
    assert measured == ["1.20 ms", "250.00 us", "40.00 us", "1.00 ms"]
    assert "40.0 (39.0..41.0) us" in cache.text(summary)


def test_what_is_over_its_bound_fails() -> None:
    """Each by itself."""
    over = rounds()
    for one in over:
        one.p50_ms = 1.21
        one.us["memory, cache on: hit"] = 250.1
        one.us["memory, cache on: miss"] = one.us["memory, cache off"] + 40.1
        one.streamed[COLLECTED] = streamed(60.0)
    states = [verdict.state for verdict in cache.verdicts(cache.summarise(over))]
    assert states == ["FAIL"] * 4


def test_what_was_not_measured_is_left_out() -> None:
    """Of that round alone; nothing passes for want of figures."""
    some = rounds()
    del some[2].us["memory, cache off"]
    summary = cache.summarise(some)
    assert summary["miss_more_us"]["memory"] == {"median": 39.5, "low": 39.0, "high": 40.0}
    nothing = cache.summarise([Round()])
    assert {verdict.state for verdict in cache.verdicts(nothing)} == {"NOT MEASURED"}
    assert "redis: a miss more" in cache.text(nothing)


def test_a_load_that_failed_is_told_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With the mode and what failed."""

    def cpu_us(up: Any, *_: Any, unique: bool) -> float:
        if up == "redis" and unique:
            raise LoadError("4 of 9 failed: status: 4 (503: 4)")
        return 7.0

    monkeypatch.setattr(cache, "cpu_us", cpu_us)
    monkeypatch.setattr(cache, "hit_p50_ms", lambda *_: 1.0)
    monkeypatch.setattr(cache, "streamed", lambda *_: None)
    up: Any = {"memory, cache on": "memory", "redis, cache on": "redis"}
    one = cache.one_round(up, 0, tmp_path, 1.0)
    assert one.us == {
        "memory, cache on: miss": 7.0,
        "memory, cache on: hit": 7.0,
        "redis, cache on: hit": 7.0,
    }
    told = "redis, cache on: miss: 4 of 9 failed: status: 4 (503: 4); left out\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("answers", [[""], ["llm-edge; fwd=bypass; detail=temperature"]])
def test_what_is_not_kept_is_never_measured_as_a_hit(
    monkeypatch: pytest.MonkeyPatch, answers: list[str]
) -> None:
    """The benchmark ends instead."""
    said = iter(answers)
    monkeypatch.setattr(cache, "status_of", lambda *_, **__: next(said))
    with pytest.raises(StartError, match="not kept"):
        cache.make_hit(UP, load.prompt("m", 100))


def test_a_hit_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the log has brought the answer; the prompt is the one that wrk repeats."""
    said = iter(["llm-edge; fwd=miss; stored", "", "llm-edge; hit; ttl=299"])
    bodies: list[bytes] = []

    def status_of(_: Any, body: bytes, **__: str) -> str:
        bodies.append(body)
        return next(said)

    monkeypatch.setattr(cache, "status_of", status_of)
    cache.make_hit(UP, load.prompt("m", 100))
    assert len(bodies) == 3
    assert all(b"Case 0000000000000000." in body for body in bodies)


def test_a_load_that_failed_is_no_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What refuses is quick."""
    failed = Sample(1000, 1.0, 1.0, 1.0, 7, "status: 7")
    monkeypatch.setattr(cache.load, "run", lambda *_, **__: failed)
    monkeypatch.setattr(cache, "SETTLE_SECONDS", 0.0)
    for measure in (
        lambda: cache.cpu_us(UP, tmp_path, 1.0, unique=True),
        lambda: cache.hit_p50_ms(UP, tmp_path, 1.0),
    ):
        with pytest.raises(LoadError, match="7 of 1000 failed: status: 7"):
            measure()
