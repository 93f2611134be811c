"""The summary, its tables and the verdicts."""

import json

import pytest

from benchmarks import report, verdicts
from benchmarks.load import Sample
from benchmarks.measure import Loaded, Rounds, prompts, turned
from benchmarks.streaming import LONG_CHUNKS, Found
from benchmarks.streams import Streamed


def loaded(per_second: float, p50: float, processor_us: float = 0.0, rss: float = 0.0) -> Loaded:
    many = Sample(round(per_second), 1.0, 8.0, 20.0, 0)
    return Loaded(many, Sample(1000, 1.0, p50, p50 * 2, 0), processor_us, 100.0, rss, 40.0)


def streamed(gap_p99: float, completed: int = 400) -> Streamed:
    return Streamed(400, completed, 8000, 0, 1.0, 2.0, 50.0, gap_p99, 70.0, 0.1, 0.3)


def measured(
    *,
    ours: float = 4000,
    p50: float = 1.2,
    cpu: float = 170.0,
    rss: float = 90,
    lane: tuple[float, float, float] = (5000, 0.9, 60),
    idle: float = 12,
) -> Rounds:
    rounds = Rounds()
    rounds.loaded[2] = [loaded(9000, 0.3)] * 3
    rounds.loaded[3] = [loaded(*lane)] * 3
    rounds.loaded[7] = [loaded(3000, 1.4, 180)] * 3
    rounds.idle_mib = {3: 4.0, 4: idle, 7: 219.0}
    rounds.loaded[4] = [loaded(ours + wild, p50, cpu, rss) for wild in (-500, 0, 900)]
    rounds.loaded[5] = [loaded(100, 10.0, 9000)] * 3
    rounds.loaded[6] = [loaded(800, 1.0, 1600)] * 3
    return rounds


def streaming(gap_p99: float = 51.4, completed: int = 400, long_us: float = 260.0) -> Found:
    found = Found(count=400, held=200, answer_us={1: 250.0, LONG_CHUNKS: long_us})
    found.translated_us = {"to OpenAI": [11.0, 12.0, 13.0]}
    found.ladder = {1: [streamed(50.5)], 2: [streamed(51.0)], 4: [streamed(51.3)]}
    found.rounds[2] = [streamed(51.0)] * 3
    found.rounds[4] = [streamed(gap_p99, completed)] * 3
    return found


def states(rounds: Rounds, found: Found) -> list[str]:
    return [verdict.state for verdict in verdicts.verdicts(report.summarise(rounds, found))]


def test_everything_within_its_target_passes():
    """The order of the verdicts is the order of the targets."""
    assert states(measured(), streaming()) == ["PASS"] * 12


@pytest.mark.parametrize(
    ("rounds", "found", "failing"),
    [
        pytest.param(measured(ours=1400), streaming(), [0, 1], id="too-slow-for-both-peers"),
        pytest.param(measured(ours=2300), streaming(), [1], id="too-slow-for-portkey"),
        pytest.param(measured(cpu=181), streaming(), [9], id="cpu-for-the-lane"),
        pytest.param(measured(cpu=301), streaming(), [2, 9], id="cpu"),
        pytest.param(measured(p50=1.81), streaming(), [3], id="added-latency"),
        pytest.param(measured(), streaming(gap_p99=52.1), [4], id="late-tokens"),
        pytest.param(measured(), streaming(completed=399), [4], id="a-lost-stream"),
        pytest.param(measured(rss=120), streaming(), [5], id="memory-at-its-limit"),
        pytest.param(measured(lane=(5000, 0.9, 73)), streaming(), [6], id="the-lanes-cpu"),
        pytest.param(measured(lane=(3700, 0.9, 60)), streaming(), [7], id="the-lanes-throughput"),
        pytest.param(measured(lane=(5000, 0.96, 60)), streaming(), [8], id="the-lanes-latency"),
        pytest.param(measured(idle=38.2), streaming(), [10], id="idle-calls-in-mb"),
        pytest.param(measured(), streaming(long_us=276.0), [11], id="a-long-answer-costs-more"),
    ],
)
def test_what_misses_its_target_fails_alone(rounds: Rounds, found: Found, failing: list[int]):
    """Each target looks at its own figure."""
    seen = states(rounds, found)
    assert [index for index, state in enumerate(seen) if state == "FAIL"] == failing


def test_a_rung_that_was_not_up_is_not_judged():
    """Absent is neither passed nor failed."""
    rounds = Rounds()
    rounds.loaded[2] = measured().loaded[2]
    assert states(rounds, Found()) == ["NOT MEASURED"] * 12


def test_added_latency_is_paired_within_a_round():
    """A round in which the whole machine was slow cancels out."""
    rounds = Rounds()
    rounds.loaded[2] = [loaded(9000, p50) for p50 in (0.2, 5.0, 0.3)]
    rounds.loaded[4] = [loaded(4000, p50) for p50 in (1.2, 6.0, 1.3)]
    added = report.summarise(rounds, Found())["rungs"]["4"]["added_p50_ms"]
    assert added == pytest.approx({"median": 1.0, "low": 1.0, "high": 1.0})


def test_tables_show_every_rung_and_verdict_and_survive_json():
    """The printed report comes from what is written."""
    summary = json.loads(json.dumps(report.summarise(measured(), streaming())))
    text = report.tables(summary, verdicts.verdicts(summary))
    for expected in (
        "4,000 (3,500..4,900)",
        "0.025",
        "400 streams at 50 ms",
        "once each: 400 51.00 and 51.30\n",
        "0.005 us per token",
        "219.0",
        "12.0 (11.0..13.0)",
    ):
        assert expected in text
    assert text.count("PASS") == 12


def test_rounds_begin_with_another_rung_each_time():
    """No rung is always the first after a pause."""
    assert [turned([2, 4, 6], turn) for turn in range(4)] == [
        [2, 4, 6],
        [4, 6, 2],
        [6, 2, 4],
        [2, 4, 6],
    ]
    assert turned([], 1) == []


def test_shapes_have_their_messages():
    """Ten large messages and a hundred thousand tiny ones, beside one system message."""
    made = prompts()
    counts = {label: len(json.loads(make("m"))["messages"]) - 1 for label, make in made.items()}
    assert counts["10 x 100 KB"] == 10
    assert counts["100,000 x 1 B"] == 100_000
    assert len(made["10 x 100 KB"]("m")) == pytest.approx(1_024_000, rel=0.01)
