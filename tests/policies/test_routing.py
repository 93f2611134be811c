"""Which targets get a call, in which order, and how long they have."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from extproc.domain import Model, Plan, Principal, Target
from extproc.errors import Denied
from extproc.policies.routing import MAX_ATTEMPTS, attempts_of, pinned
from tests.calls import EMBEDDINGS, call, head, snapshot, target
from tests.plans import make

A, B, C = target("a", weight=1), target("b", weight=3), target("c", weight=6)
NEVER = target("never", weight=0)
PRIORITY = Model("small", "priority", (A, B, C))
WEIGHTED = Model("small", "weighted", (A, B, C))


def planned(model: Model, draw: float = 0.0, **headers: str) -> Plan:
    """Plan a call of the model `small`."""
    return make(snapshot(model), head(**headers), draw=draw)


def refusal(model: Model = PRIORITY, name: str = "small", **headers: str) -> Denied:
    """Return how a plan is refused."""
    who = Principal("acme", "key", "free", models=frozenset({"small", "unknown"}))
    models = snapshot(model, replace(model, name="other"))
    with pytest.raises(Denied) as caught:
        make(models, head(**headers), call(name), who)
    return caught.value


@pytest.mark.parametrize(
    ("denied", "code", "param"),
    [
        pytest.param({"name": "other"}, "permission_denied", "model", id="a forbidden model"),
        pytest.param({"name": "unknown"}, "model_not_found", "model", id="an unknown model"),
        pytest.param(
            {"x_llm_provider": "elsewhere"},
            "invalid_request_error",
            "x-llm-provider",
            id="a provider that does not serve the model",
        ),
        pytest.param(
            {"x_llm_provider": ""}, "invalid_request_error", "x-llm-provider", id="an empty pin"
        ),
        pytest.param(
            {"x_llm_strategy": "luck"},
            "invalid_request_error",
            "x-llm-strategy",
            id="an unknown strategy",
        ),
        *(
            pytest.param(
                {"x_llm_timeout_ms": value},
                "invalid_request_error",
                "x-llm-timeout-ms",
                id=f"a timeout of {value!r:.12}",
            )
            for value in ["0", "-1", "1.5", "1e3", "", " 5", "5, 5", "²", "٣", "9" * 10, "9" * 5000]
        ),
    ],
)
def test_a_call_that_cannot_be_planned_is_refused(
    denied: dict[str, Any], code: str, param: str
) -> None:
    found = refusal(**denied)
    assert (found.code, found.param) == (code, param)


def test_a_refusal_does_not_quote_what_was_asked_for() -> None:
    for header in ("x_llm_provider", "x_llm_strategy", "x_llm_timeout_ms"):
        assert "<script>" not in refusal(**{header: "<script>"}).message


def test_priority_takes_the_targets_as_written() -> None:
    assert planned(PRIORITY, 0.99).attempts == (A, B, C)


@pytest.mark.parametrize(
    ("draw", "attempts"),
    [
        pytest.param(0.0, (A, C, B), id="the first of ten parts"),
        pytest.param(0.0999, (A, C, B), id="the end of the first part"),
        pytest.param(0.1, (B, C, A), id="the second part"),
        pytest.param(0.3999, (B, C, A), id="the end of the fourth part"),
        pytest.param(0.4, (C, B, A), id="the fifth part"),
        pytest.param(1 - 2**-53, (C, B, A), id="the last draw there is"),
    ],
)
def test_weighted_draws_the_first_and_falls_over_to_the_heaviest(
    draw: float, attempts: tuple[Target, ...]
) -> None:
    assert planned(WEIGHTED, draw).attempts == attempts


def test_weighted_shares_are_the_weights() -> None:
    draw = random.Random(7).random
    firsts = Counter(planned(WEIGHTED, draw()).attempts[0].provider for _ in range(10_000))
    for one in (A, B, C):
        assert abs(firsts[one.provider] / 10_000 - one.weight / 10) < 0.02


@given(st.floats(0, 1, exclude_max=True), st.permutations([A, B, NEVER]))
def test_a_target_of_weight_zero_is_a_fallback_alone(draw: float, order: list[Target]) -> None:
    attempts = planned(Model("small", "weighted", tuple(order)), draw).attempts
    assert attempts[-1] is NEVER
    assert set(attempts) == {A, B, NEVER}


@given(
    st.lists(st.integers(0, 10**6), min_size=2, max_size=16).filter(any),
    st.floats(0, 1, exclude_max=True),
)
def test_a_weighted_plan_visits_every_target_once(weights: list[int], draw: float) -> None:
    targets = tuple(target(f"p{n}", weight=weight) for n, weight in enumerate(weights))
    attempts = planned(Model("small", "weighted", targets), draw).attempts
    assert len(set(attempts)) == len(attempts) == min(len(targets), MAX_ATTEMPTS)
    assert attempts[0].weight > 0


@pytest.mark.parametrize(
    ("model", "asked", "attempts"),
    [
        pytest.param(PRIORITY, "weighted", (C, B, A), id="weighted where priority is written"),
        pytest.param(WEIGHTED, "priority", (A, B, C), id="priority where weighted is written"),
    ],
)
def test_the_caller_may_choose_the_strategy(
    model: Model, asked: str, attempts: tuple[Target, ...]
) -> None:
    assert planned(model, 0.9, x_llm_strategy=asked).attempts == attempts


def test_weighted_without_any_weight_keeps_the_order() -> None:
    model = Model("small", "priority", (NEVER, structs.replace(NEVER, provider="nor this")))
    assert planned(model, 0.9, x_llm_strategy="weighted").attempts == model.targets


def test_a_pin_leaves_the_targets_of_that_provider() -> None:
    other = structs.replace(B, model="other")
    model = Model("small", "priority", (A, B, C, other))
    assert planned(model, x_llm_provider="b").attempts == (B, other)


def test_a_pinned_provider_has_the_retries_of_a_lone_target() -> None:
    model = Model("small", "priority", (A, structs.replace(B, max_retries=2)))
    assert [t.provider for t in planned(model, x_llm_provider="b").attempts] == ["b"] * 3


def test_a_pinned_providers_targets_share_by_weight_among_themselves() -> None:
    light = target("b", "light", weight=1)
    even = target("b", "even", weight=1)
    model = Model("small", "weighted", (light, target("x", weight=98), even))
    draws = [number / 1000 for number in range(1000)]
    firsts = Counter(planned(model, draw, x_llm_provider="b").attempts[0].model for draw in draws)
    assert firsts == {"light": 500, "even": 500}


@pytest.mark.parametrize(
    ("retries", "count"), [(0, 1), (2, 3), (7, MAX_ATTEMPTS), (10, MAX_ATTEMPTS)]
)
def test_a_lone_target_is_tried_as_often_as_its_provider_allows(retries: int, count: int) -> None:
    lone = structs.replace(A, max_retries=retries)
    assert attempts_of((lone,)) == (lone,) * count


def test_a_plan_is_pinned_to_its_first_target() -> None:
    """With the retries of a lone one, and without a limit that only others could do better by."""
    first = target("a", max_retries=2)
    plan = Plan((first, target("b")), 9_000, 500)
    assert pinned(plan) == Plan((first, first, first), 9_000)
    alone = Plan((first, first), 9_000)
    assert pinned(alone) is alone


def test_several_targets_are_each_tried_once() -> None:
    targets = tuple(target(f"p{n}", max_retries=5) for n in range(10))
    assert attempts_of(targets[:3]) == targets[:3]
    assert attempts_of(targets) == targets[:MAX_ATTEMPTS]


@pytest.mark.parametrize(
    ("asked", "limit_ms"),
    [
        pytest.param(None, 30_000, id="the configured limit"),
        pytest.param("1", 1, id="a shorter one"),
        pytest.param("30000", 30_000, id="the same"),
        pytest.param("30001", 30_000, id="never a longer one"),
        pytest.param("999999999", 30_000, id="the longest that is read"),
        pytest.param("0005", 5, id="leading zeros"),
    ],
)
def test_the_caller_may_shorten_the_time_limit(asked: str | None, limit_ms: int) -> None:
    headers = {} if asked is None else {"x_llm_timeout_ms": asked}
    assert planned(PRIORITY, **headers).timeout_ms == limit_ms


def test_the_time_limit_is_that_of_the_kind_of_call() -> None:
    calls = (call(), call(stream=True), structs.replace(call(), endpoint=EMBEDDINGS))
    found = [make(snapshot(PRIORITY), head(), one).timeout_ms for one in calls]
    assert found == [30_000, 120_000, 5_000]
