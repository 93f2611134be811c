"""What calls teach about a target."""

from __future__ import annotations

import pytest

from extproc.policies.breaker import Rules
from extproc.policies.health import STALE_PLANS, Health, is_failure
from tests.calls import target

A, B = target("a"), target("b")


@pytest.mark.parametrize(
    ("status", "flags", "failed"),
    [
        pytest.param(400, (), False, id="a bad request"),
        pytest.param(401, (), False, id="a credential it does not know"),
        pytest.param(403, (), False, id="not permitted"),
        pytest.param(404, (), False, id="a model it does not have"),
        pytest.param(413, (), False, id="a body too large"),
        pytest.param(422, (), False, id="a request it cannot process"),
        pytest.param(408, (), True, id="408"),
        pytest.param(429, (), True, id="429"),
        pytest.param(500, (), True, id="500"),
        pytest.param(529, (), True, id="529, Anthropic's overloaded"),
        pytest.param(200, (), False, id="a good answer"),
        pytest.param(200, ("upstream_remote_reset",), True, id="an answer that broke off"),
        pytest.param(0, ("upstream_connection_failure",), True, id="connection refused"),
        pytest.param(0, ("upstream_request_timeout",), True, id="no first byte in time"),
        pytest.param(0, ("upstream_protocol_error",), True, id="garbage"),
        pytest.param(0, ("downstream_connection_termination",), False, id="the caller left"),
        pytest.param(200, ("stream_idle_timeout",), False, id="silence, perhaps the caller's"),
        pytest.param(0, (), False, id="nothing known"),
    ],
)
def test_what_is_held_against_a_provider(status: int, flags: tuple[str, ...], failed: bool) -> None:
    """Never what a caller can bring about alone."""
    assert is_failure(status, flags) is failed


def test_a_plan_is_in_flight_at_its_first_target_until_it_ended() -> None:
    """The load of alternatives is not counted: most are never tried."""
    health = Health()
    ended = health.planned((A, B), 0.0)
    assert (health.at(A.key).in_flight, health.at(B.key).in_flight) == (1, 0)
    ended()
    assert health.at(A.key).in_flight == 0


def test_repeated_attempts_at_one_target_are_one_call() -> None:
    """A lone target that is tried again is not an alternative to itself."""
    health = Health()
    health.planned((A, A, A), 0.0)
    assert (health.at(A.key).in_flight, health.at(A.key).passed_over) == (1, 0)


def test_latency_is_a_mean_that_forgets() -> None:
    """Three or four observations outweigh all that was before."""
    one = Health().at("a/m")
    one.streamed(100, 900, 10)
    assert (one.ttft_ms, one.token_ms) == (100, 100)
    for _ in range(4):
        one.streamed(400, 9, 10)
    assert one.ttft_ms == pytest.approx(400 - 300 * 0.7**4)
    assert one.token_ms == pytest.approx(1 + 99 * 0.7**4)


def test_a_target_nobody_asked_for_long_is_judged_anew() -> None:
    """What it was before says nothing of it now."""
    health = Health()
    one = health.at(A.key)
    health.planned((A, B), 0.0)
    one.answered(4000, 10)
    for _ in range(STALE_PLANS):
        health.planned((B, A), 0.0)
    health.planned((A, B), 0.0)
    one.answered(500, 10)
    assert one.answer_ms == 50


def test_a_stream_of_one_token_has_no_pace() -> None:
    """Nothing is divided by zero, nothing is learned of what was not there."""
    one = Health().at("a/m")
    one.streamed(100, 5, 1)
    assert (one.ttft_ms, one.token_ms) == (100, None)
    one.answered(100, 0)
    assert one.answer_ms == 100


def test_cooling_is_the_longest_that_was_asked_for() -> None:
    """A later, shorter wish does not end it."""
    health = Health()
    health.planned((A,), 0.0)
    health.failed(A.key, 10.0, 5.0)
    health.failed(A.key, 10.0, 1.0)
    health.failed(A.key, 10.0, 0.0)
    assert health.at(A.key).cool_until == 15.0


def test_states_are_by_target_and_the_provider_has_its_worst() -> None:
    """0 closed, 1 half-open, 2 open; a provider nobody asked yet is closed."""
    health = Health(Rules(failures=1))
    health.planned((A, target("a", "bad")), 0.0)
    health.failed("a/bad", 0.0, 0)
    health.failed("a/unknown", 0.0, 0)
    assert health.states() == {"a/m": "closed", "a/bad": "open"}
    assert (health.worst("a"), health.worst("b")) == (2, 0)
    health.at("a/bad").breaker.claim(1.0)
    assert health.worst("a") == 1
