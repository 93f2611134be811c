"""What would become of a call, told by the functions that would decide it."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.cache_policy import OFF, ModelPolicy, Policy, Terms
from extproc.domain import Model, Principal
from extproc.explain import explain
from extproc.policies.breaker import Rules
from extproc.policies.health import Health
from extproc.ports import SilentObserver
from extproc.stores.memory import MemoryLedger
from extproc.tiers import tier_of
from tests.cache_bench import Bench
from tests.calls import ALICE, NOW, body, gateway, head, snapshot, target
from tests.ledgers import rules

A = target("a")
MODEL = Model(
    "small",
    "cheapest",
    (A, target("b", "better"), target("c", lacks=frozenset({"tools"})), target("d", price=None)),
)


async def told(
    who: Principal = ALICE, health: Health | None = None, **fields: Any
) -> dict[str, Any]:
    """Explain a call of the model."""
    answers = gateway(snapshot=snapshot(MODEL), health=health or Health())
    return await explain(answers, who, head(), body(**fields))


async def test_every_candidate_has_its_verdict_and_score() -> None:
    """Also those that are refused, in the order of the configuration."""
    health = Health(Rules(failures=1))
    health.at(A.key)
    health.failed(A.key, NOW, 0)
    found = await told(health=health, tools=[{"type": "function"}], max_tokens=10)
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


async def test_a_refusal_is_told_with_what_was_found_until_then() -> None:
    """As the caller would get it, with the candidates that led to it."""
    health = Health(Rules(failures=1, open_min_s=7))
    for one in MODEL.targets:
        health.at(one.key)
        health.failed(one.key, NOW, 0)
    found = await told(health=health)
    assert found["refusal"]["status"] == 503
    assert found["refusal"]["code"] == "no_healthy_provider"
    assert found["refusal"]["retry_after_s"] == 7
    assert {c["verdict"] for c in found["candidates"]} == {"breaker_open"}
    assert "plan" not in found


async def test_a_caller_that_may_not_is_told_nothing_of_the_targets() -> None:
    """A key's limits come first."""
    found = await told(Principal("acme", "key", "free", models=frozenset({"other"})))
    assert found["refusal"]["code"] == "permission_denied"
    assert "candidates" not in found


async def test_explaining_changes_nothing() -> None:
    """No probe is claimed, no load counted, no target kept that nobody called."""
    health = Health(Rules(failures=1, open_min_s=0.001))
    health.at(A.key)
    health.failed(A.key, NOW - 1, 0)
    before = repr(health)
    for _ in range(3):
        assert (await told(health=health))["candidates"][0]["verdict"] == "allowed"
    assert repr(health) == before


LIMITED = tier_of((rules(requests_per_day=1, tokens_per_day=10_000, usd_per_month=5),))


async def test_limits_are_told_with_numbers_and_nothing_is_charged() -> None:
    """What the call would take, what is used and left, in the units of the limits; USD exact."""
    ledger = MemoryLedger(lambda: NOW, SilentObserver())
    answers = gateway(snapshot=snapshot(MODEL, tier=LIMITED), ledger=ledger)
    sent = body(max_tokens=10)
    before = repr(ledger)
    for _ in range(3):
        found = await explain(answers, ALICE, head(), sent)
    assert repr(ledger) == before
    reserved = {**found["reserves"]}
    money = f"{(len(sent) * 150_000 + 10 * 600_000) / 10**12:.12f}".rstrip("0")
    prompt = reserved["tokens"] - 10
    assert reserved == {
        "requests": 1,
        "tokens": prompt + 10,
        "usd": money,
        "max_output_tokens": 10,
    }
    requests, tokens, usd = found["limits"]
    assert requests == {
        "name": "key/requests_per_day",
        "unit": "requests",
        "limit": 1,
        "used": 0,
        "left": 1,
        "asked": 1,
        "resets_s": requests["resets_s"],
        "refuses": False,
    }
    assert 0 < requests["resets_s"] <= 86_400
    assert (tokens["unit"], tokens["left"], tokens["asked"]) == ("tokens", 10_000, prompt + 10)
    assert (usd["unit"], usd["limit"], usd["left"], usd["asked"]) == ("usd", "5", "5", money)
    assert "refusal" not in found


async def test_a_limit_that_refuses_is_the_refusal() -> None:
    """As the caller would get it, with the plan that would have been tried."""
    ledger = MemoryLedger(lambda: NOW, SilentObserver())
    tight = tier_of((rules(tokens_per_minute=5),))
    answers = gateway(snapshot=snapshot(MODEL, tier=tight), ledger=ledger)
    found = await explain(answers, ALICE, head(), body())
    assert found["refusal"]["code"] == "rate_limit_exceeded"
    assert "key/tokens_per_minute" in found["refusal"]["message"]
    assert [one["refuses"] for one in found["limits"]] == [True]
    assert found["plan"]["attempts"]


CACHED = Policy(enabled=True, models={"small": ModelPolicy("v1")}, ttl_ms=1500)
NOTHING = {"may_look_up": False, "may_store": False, "key": None, "ttl_s": None}


@pytest.mark.parametrize(
    ("policy", "control", "fields", "expected"),
    [
        pytest.param(
            CACHED,
            "",
            {},
            {"may_look_up": True, "may_store": True, "reason": None, "ttl_s": 1.5},
            id="as usual",
        ),
        pytest.param(OFF, "", {}, {**NOTHING, "reason": "off"}, id="off"),
        pytest.param(
            Policy(enabled=True, models=CACHED.models, tiers={"free": Terms(enabled=False)}),
            "",
            {},
            {**NOTHING, "reason": "off"},
            id="off for the tier",
        ),
        pytest.param(
            CACHED, "", {"temperature": 1.5}, {**NOTHING, "reason": "temperature"}, id="too hot"
        ),
        pytest.param(CACHED, "", {"n": 2}, {**NOTHING, "reason": "choices"}, id="two choices"),
        pytest.param(
            CACHED, "no-cache", {}, {"may_look_up": False, "may_store": True}, id="no-cache"
        ),
        pytest.param(
            CACHED, "no-store", {}, {"may_look_up": True, "may_store": False}, id="no-store"
        ),
        pytest.param(
            CACHED,
            "only-if-cached, max-age=7",
            {},
            {"only_if_cached": True, "max_age_s": 7, "may_look_up": True},
            id="a kept answer or none",
        ),
    ],
)
async def test_what_the_cache_may_do_is_told_with_the_reason(
    policy: Policy, control: str, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    """And the key where there is one."""
    answers = gateway(snapshot=snapshot(MODEL, cache=policy))
    asked = head(cache_control=control) if control else head()
    found = (await explain(answers, ALICE, asked, body(**fields)))["cache"]
    assert {name: found[name] for name in expected} == expected
    assert (found["key"] is None) is (found["reason"] is not None)


async def test_the_key_is_the_one_that_the_answer_is_kept_under() -> None:
    """As the gateway tells it to callers; explaining neither finds nor counts what is kept."""
    bench = Bench(debug_key=True)
    await bench.keep()
    found = await explain(bench.gateway, ALICE, head(), body())
    hits = bench.answers.stats().hits
    assert f'key="{found["cache"]["key"]}"' in (await bench.send()).said
    assert (bench.answers.stats().hits, hits) == (1, 0)


async def test_a_strict_model_is_explained_as_it_is_planned() -> None:
    """Who would not get the whole call is no part of the plan; where nobody is left it is 422."""
    claude, own = target("claude", dialect="anthropic"), target("a")
    both = Model("small", "priority", (claude, own), strict=True)
    found = await explain(gateway(snapshot=snapshot(both)), ALICE, head(), body(seed=7))
    assert [one["provider"] for one in found["plan"]["attempts"]] == ["a"]
    alone = Model("small", "priority", (claude,), strict=True)
    found = await explain(gateway(snapshot=snapshot(alone)), ALICE, head(), body(seed=7))
    assert (found["refusal"]["status"], found["refusal"]["param"]) == (422, "seed")


async def test_a_body_over_the_bound_is_refused() -> None:
    """As it would be, before it is read."""
    found = await explain(gateway(), ALICE, head(), body(user="x" * 5000))
    assert found["refusal"]["code"] == "request_too_large"
