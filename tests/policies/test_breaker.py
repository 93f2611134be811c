"""When a circuit opens, for how long, and who may probe."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.policies.breaker import PROBE_S, Breaker, Rules

RULES = Rules(failures=3, window_s=60, open_min_s=0.1, open_max_s=30)


def opened(now: float = 0.0, rules: Rules = RULES) -> Breaker:
    """Return a breaker that opened at `now`."""
    breaker = Breaker(rules)
    for _ in range(rules.failures):
        breaker.failed(now)
    assert breaker.state == "open"
    return breaker


@pytest.mark.parametrize(
    ("story", "state"),
    [
        pytest.param("", "closed", id="nothing has happened"),
        pytest.param("ff", "closed", id="one failure too few"),
        pytest.param("fff", "open", id="as many in a row as it takes"),
        pytest.param("ffsff", "closed", id="a good answer between them"),
        pytest.param("f....ff", "closed", id="the first is out of the window"),
        pytest.param("f....fff", "open", id="three within the window, one before it"),
        pytest.param("f.f.f", "open", id="three at the window's pace"),
        pytest.param("f..f..f..f", "closed", id="slower than the window for ever"),
        pytest.param("fffs", "open", id="an answer of a call from before it opened"),
    ],
)
def test_what_opens_a_circuit(story: str, state: str) -> None:
    """f is a failure, s a good answer, a dot 20 seconds; the window is 60."""
    breaker, now = Breaker(RULES), 0.0
    for step in story:
        if step == "f":
            breaker.failed(now)
        elif step == "s":
            breaker.succeeded()
        else:
            now += 20
    assert breaker.state == state


@pytest.mark.parametrize(
    ("story", "failing"),
    [("", False), ("s", False), ("f", True), ("fs", False), ("fsf", True), ("fff", True)],
)
def test_whether_it_fails(story: str, failing: bool) -> None:
    """From the first failure to the next good answer; f and s as above."""
    breaker = Breaker(RULES)
    for step in story:
        breaker.failed(0.0) if step == "f" else breaker.succeeded()
    assert breaker.failing is failing


def test_an_open_circuit_lets_one_probe_through_and_only_one() -> None:
    """Nobody is admitted while the probe is under way, however many ask."""
    breaker = opened()
    assert not breaker.admits(0.0999)
    assert breaker.admits(0.1)
    breaker.claim(0.1)
    assert breaker.state == "half-open"
    assert not any(breaker.admits(0.1 + n / 100) for n in range(1000))


def test_a_probe_that_succeeds_closes() -> None:
    """And the next opening starts from the shortest time again."""
    breaker = opened()
    breaker.claim(1)
    breaker.succeeded()
    assert breaker.state == "closed"
    for _ in range(RULES.failures):
        breaker.failed(2)
    assert breaker.retry_at() == pytest.approx(2.1)


def test_each_failed_probe_doubles_the_wait_up_to_the_limit() -> None:
    """From 100 ms to 30 s."""
    breaker, now, waits = opened(), 0.0, []
    for _ in range(12):
        waits.append(breaker.retry_at() - now)
        now = breaker.retry_at()
        assert breaker.admits(now)
        breaker.claim(now)
        breaker.failed(now)
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30, 30])


def test_a_probe_nobody_heard_of_again_is_followed_by_another() -> None:
    """A lost log entry must not shut a provider out for ever."""
    breaker = opened()
    breaker.claim(1)
    assert not breaker.admits(1 + PROBE_S - 0.01)
    assert breaker.admits(1 + PROBE_S)


def test_failures_while_open_change_nothing() -> None:
    """Calls that were under way when it opened do not prolong it."""
    breaker = opened()
    for _ in range(100):
        breaker.failed(0.05)
    assert breaker.retry_at() == pytest.approx(0.1)


@given(st.lists(st.sampled_from("fsc."), max_size=200))
def test_an_outage_costs_the_failures_that_open_it_and_its_probes(story: list[str]) -> None:
    """Whatever happens, who is admitted while not closed has the only claim."""
    breaker, now, claimed_at = Breaker(RULES), 0.0, -PROBE_S
    for step in story:
        now += 0.05
        if step == "f":
            breaker.failed(now)
        elif step == "s":
            breaker.succeeded()
        elif step == ".":
            now += 1
        elif breaker.admits(now) and breaker.state != "closed":
            if breaker.state == "half-open":
                assert now - claimed_at >= PROBE_S
            breaker.claim(now)
            claimed_at = now
            assert not breaker.admits(now)


def test_a_thousand_calls_at_a_dead_target_cost_five_attempts_and_the_probes() -> None:
    """A call every 10 ms for 10 s, with the packaged rules."""
    breaker, attempts = Breaker(Rules()), 0
    for call in range(1000):
        now = call / 100
        if breaker.admits(now):
            attempts += 1
            breaker.claim(now)
            breaker.failed(now)
    assert attempts == 5 + 6  # probes after 0.1, 0.2, 0.4, 0.8, 1.6 and 3.2 s more


def test_its_repr_says_where_it_stands() -> None:
    """For logs and failing tests."""
    assert repr(opened()) == "Breaker(open, openings=1)"
