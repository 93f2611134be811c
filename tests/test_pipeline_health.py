"""What the pipeline learns of targets from the log, and what it never holds against one."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.domain import FailedAttempt, Forward, LogEntry
from extproc.gateway import Gateway
from extproc.pipeline import attempt_failed, settle
from extproc.policies.breaker import Rules
from extproc.policies.health import Health, TargetHealth
from extproc.recording import encode
from tests.calls import NOW, call, forward, gateway, target

A = target("a", "m")
USAGE = (
    '"usage":{"prompt_tokens":10,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":4}}'
)


def planned(**more: Any) -> tuple[Gateway, TargetHealth]:
    """Return a gateway that has planned a call at a target, and the target's health."""
    health = Health(Rules(failures=1))
    health.planned((A,), NOW)()
    return gateway(health=health, **more), health.at(A.key)


def entry(sent: Forward, **more: Any) -> LogEntry:
    """Return the entry of a good answer that took a second."""
    values: dict[str, Any] = {
        "record": encode(sent).decode(),
        "request_id": "r",
        "status": 200,
        "cluster": "a",
        "attempts": 1,
        "flags": (),
        "start_ms": 0,
        "duration_ms": 1000.0,
        "first_upstream_tx_ms": 1.0,
        "first_upstream_rx_ms": 100.0,
        "first_chunk_ms": 100.0,
        "request_bytes": 10,
        "response_bytes": 10,
        "usage": USAGE,
        "events": 3,
        "done": True,
    }
    return LogEntry(**{**values, **more})


def failed(**more: Any) -> FailedAttempt:
    """Return the entry of an attempt that failed with 503."""
    values: dict[str, Any] = {
        "provider": "a",
        "model": "m",
        "status": 503,
        "flags": (),
        "retry_after": "",
        "resets": "",
    }
    return FailedAttempt(**{**values, **more})


def test_a_stream_teaches_its_first_token_and_its_pace() -> None:
    """And the cached part of its prompt."""
    answers, found = planned()
    settle(answers, entry(forward(A, call=call(stream=True))))
    assert (found.ttft_ms, found.token_ms, found.answer_ms) == (200, 200, None)
    assert found.cached_share == pytest.approx(0.4 * 0.3)


def test_a_plain_answer_teaches_its_time_per_token() -> None:
    """It has no first token to see."""
    answers, found = planned()
    settle(answers, entry(forward(A)))
    assert (found.ttft_ms, found.answer_ms) == (None, 200)


def test_what_was_cut_or_refused_teaches_nothing() -> None:
    """The duration of a failure is not a latency."""
    answers, found = planned()
    settle(answers, entry(forward(A), done=False))
    settle(answers, entry(forward(A), status=404))
    assert (found.answer_ms, found.breaker.state) == (None, "closed")


def test_a_failed_attempt_opens_and_cools_its_own_target() -> None:
    """Whatever became of the call elsewhere."""
    answers, found = planned()
    attempt_failed(answers, failed(status=429, retry_after="9"))
    assert (found.breaker.state, found.cool_until) == ("open", NOW + 9)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"status": 400}, id="a bad request"),
        pytest.param({"status": 200, "flags": ("downstream_remote_reset",)}, id="the caller left"),
    ],
)
def test_what_is_not_the_providers_fault_is_not_held_against_it(more: dict[str, Any]) -> None:
    """Envoy would not log it; and if it did, nothing would follow."""
    answers, found = planned()
    attempt_failed(answers, failed(retry_after="9", **more))
    assert (found.breaker.state, found.cool_until) == ("closed", 0.0)


def test_an_attempt_at_what_was_never_planned_leaves_nothing() -> None:
    """A name that is not ours takes no memory."""
    answers, _ = planned()
    attempt_failed(answers, failed(model="made-up"))
    assert answers.health.states() == {"a/m": "closed"}


@pytest.mark.parametrize(
    ("duration_ms", "state"),
    [
        pytest.param(20.0, "closed", id="a limit the caller lowered"),
        pytest.param(29_999.0, "closed", id="almost all the time there is"),
        pytest.param(30_001.0, "open", id="all the time there is"),
    ],
)
def test_a_call_that_ran_out_of_time(duration_ms: float, state: str) -> None:
    """Only the configured limit is held against a provider, never a tenant's own."""
    answers, found = planned()
    flags = ("upstream_request_timeout",)
    settle(answers, entry(forward(A), status=504, flags=flags, duration_ms=duration_ms))
    assert found.breaker.state == state


@pytest.mark.parametrize("keyless", [True, False])
def test_a_target_without_a_credential_is_held_against_it(*, keyless: bool) -> None:
    """Another 503 has been, as it happened."""
    answers, found = planned()
    for _ in range(5):
        settle(answers, entry(forward(A), status=503, done=False, usage="", keyless=keyless))
    assert found.breaker.state == ("open" if keyless else "closed")


def test_a_good_answer_closes_a_half_open_breaker() -> None:
    """The probe came back."""
    answers, found = planned()
    attempt_failed(answers, failed())
    found.breaker.claim(NOW + 1)
    settle(answers, entry(forward(A)))
    assert found.breaker.state == "closed"
