"""What would become of a call, told by the functions that would decide it."""

from __future__ import annotations

from typing import Any

from extproc.domain import Model, Principal
from extproc.explain import explain
from extproc.policies.breaker import Rules
from extproc.policies.health import Health
from tests.calls import ALICE, NOW, body, gateway, head, snapshot, target

A = target("a")
MODEL = Model(
    "small",
    "cheapest",
    (A, target("b", "better"), target("c", lacks=frozenset({"tools"})), target("d", price=None)),
)


def told(who: Principal = ALICE, health: Health | None = None, **fields: Any) -> dict[str, Any]:
    """Explain a call of the model."""
    answers = gateway(snapshot=snapshot(MODEL), health=health or Health())
    return explain(answers, who, head(), body(**fields))


def test_every_candidate_has_its_verdict_and_score() -> None:
    """Also those that are refused, in the order of the configuration."""
    health = Health(Rules(failures=1))
    health.at(A.key)
    health.failed(A.key, NOW, 0)
    found = told(health=health, tools=[{"type": "function"}], max_tokens=10)
    rows = [(c["provider"], c["verdict"], c["breaker"]) for c in found["candidates"]]
    assert rows == [
        ("a", "breaker_open", "open"),
        ("b", "allowed", "closed"),
        ("c", "lacks_tools", "closed"),
        ("d", "allowed", "closed"),
    ]
    scores = [c["score"] for c in found["candidates"]]
    assert scores[0] is scores[2] is scores[3] is None
    assert scores[1] > 0
    assert found["identity"] == {"tenant": "acme", "key": "key_alice", "tier": "free"}
    assert found["call"]["needs"] == ["tools"]
    assert [one["provider"] for one in found["plan"]["attempts"]] == ["b", "d"]
    tokens = found["estimate"]
    cost = tokens["prompt_tokens"] * 150_000 + tokens["output_tokens"] * 600_000
    assert float(found["expected_cost_usd"]) == cost / 10**12
    assert "refusal" not in found


def test_a_refusal_is_told_with_what_was_found_until_then() -> None:
    """As the caller would get it, with the candidates that led to it."""
    health = Health(Rules(failures=1, open_min_s=7))
    for one in MODEL.targets:
        health.at(one.key)
        health.failed(one.key, NOW, 0)
    found = told(health=health)
    assert found["refusal"]["status"] == 503
    assert found["refusal"]["code"] == "no_healthy_provider"
    assert found["refusal"]["retry_after_s"] == 7
    assert {c["verdict"] for c in found["candidates"]} == {"breaker_open"}
    assert "plan" not in found


def test_a_caller_that_may_not_is_told_nothing_of_the_targets() -> None:
    """A key's limits come first."""
    found = told(Principal("acme", "key", "free", models=frozenset({"other"})))
    assert found["refusal"]["code"] == "permission_denied"
    assert "candidates" not in found


def test_explaining_changes_nothing() -> None:
    """No probe is claimed, no load counted, no target kept that nobody called."""
    health = Health(Rules(failures=1, open_min_s=0.001))
    health.at(A.key)
    health.failed(A.key, NOW - 1, 0)
    before = repr(health)
    for _ in range(3):
        assert told(health=health)["candidates"][0]["verdict"] == "allowed"
    assert repr(health) == before
