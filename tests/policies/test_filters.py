"""Which targets may get a call: a truth table per filter."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from extproc.domain import Model, Principal, Target
from extproc.errors import Denied
from extproc.policies import filters, routing
from extproc.policies.breaker import Rules
from extproc.policies.filters import ALLOWED, FILTERS, PROMPT_MARGIN, Ask, verdict
from extproc.policies.health import Health
from extproc.policies.routing import decide, plan
from tests.calls import EMBEDDINGS, NOW, call, head, snapshot, target
from tests.plans import ask

A = target("a")
SMALL = Model("small", "priority", (A,))


def who(*models: str) -> Principal:
    """Return a caller whose key may use these models."""
    return Principal("acme", "key", "free", models=frozenset(models))


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        pytest.param(("small",), ALLOWED, id="a model the key may use"),
        pytest.param(("other",), "forbidden", id="a model it may not"),
        pytest.param((), "forbidden", id="a key without any model"),
    ],
)
def test_allowed(models: tuple[str, ...], reason: str) -> None:
    """The key's list of models."""
    assert filters.allowed(A, ask(SMALL, principal=who(*models))) == reason


@pytest.mark.parametrize(
    ("pinned", "reason"),
    [
        pytest.param(None, ALLOWED, id="no provider is pinned"),
        pytest.param("a", ALLOWED, id="this one is"),
        pytest.param("b", "not_pinned", id="another one is"),
    ],
)
def test_pinned(pinned: str | None, reason: str) -> None:
    """The provider in x-llm-provider."""
    assert filters.pinned(A, ask(SMALL, pinned=pinned)) == reason


@pytest.mark.parametrize(
    ("lacks", "needs", "endpoint", "reason"),
    [
        pytest.param((), ("tools", "images"), "chat", ALLOWED, id="nothing is written: all goes"),
        pytest.param(("tools",), (), "chat", ALLOWED, id="what it lacks is not needed"),
        pytest.param(("tools",), ("tools",), "chat", "lacks_tools", id="tools"),
        pytest.param(("images",), ("images", "tools"), "chat", "lacks_images", id="images"),
        pytest.param(("json_schema",), ("json_schema",), "chat", "lacks_json_schema", id="schema"),
        pytest.param(("/embeddings",), (), "chat", ALLOWED, id="another endpoint"),
        pytest.param(("/embeddings",), (), "embeddings", "lacks_endpoint", id="this endpoint"),
    ],
)
def test_capable(
    lacks: tuple[str, ...], needs: tuple[str, ...], endpoint: str, reason: str
) -> None:
    """What is written down as missing."""
    one = replace(call(), needs=frozenset(needs))
    if endpoint == "embeddings":
        one = replace(one, endpoint=EMBEDDINGS)
    assert filters.capable(target("a", lacks=frozenset(lacks)), ask(SMALL, one)) == reason


@pytest.mark.parametrize(
    ("window", "prompt", "answer", "needs", "reason"),
    [
        pytest.param(None, 10**9, None, (), ALLOWED, id="an unknown window"),
        pytest.param(1000, 1000, None, (), ALLOWED, id="just as long"),
        pytest.param(1000, 1250, None, (), ALLOWED, id="within the estimate's error"),
        pytest.param(1000, 1251, None, (), "context_window", id="beyond it"),
        pytest.param(1000, 500, 600, (), ALLOWED, id="prompt and answer together"),
        pytest.param(
            1000, 500, 601, (), "context_window", id="prompt and answer together too much"
        ),
        pytest.param(1000, 10**6, None, ("images",), ALLOWED, id="images, whose bytes say nothing"),
    ],
)
def test_fits(
    window: int | None, prompt: int, answer: int | None, needs: tuple[str, ...], reason: str
) -> None:
    """Context windows, with the estimate's margin."""
    assert PROMPT_MARGIN == 1.25
    one = replace(call(), needs=frozenset(needs), max_output_tokens=answer)
    found = filters.fits(target("a", context_window=window), ask(SMALL, one, prompt_tokens=prompt))
    assert found == reason


@pytest.mark.parametrize(
    ("failures", "at", "claimed", "reason"),
    [
        pytest.param(0, 0.0, False, ALLOWED, id="closed"),
        pytest.param(1, 0.0, False, "breaker_open", id="open"),
        pytest.param(1, 0.0999, False, "breaker_open", id="open until"),
        pytest.param(1, 0.1, False, ALLOWED, id="due for a probe"),
        pytest.param(1, 0.1, True, "breaker_open", id="the probe is under way"),
    ],
)
def test_closed(failures: int, at: float, claimed: bool, reason: str) -> None:
    """The breaker's state."""
    health = Health(Rules(failures=1))
    for _ in range(failures):
        health.at(A.key)
        health.failed(A.key, NOW, 0)
    if claimed:
        health.at(A.key).breaker.claim(NOW + at)
    assert filters.closed(A, ask(SMALL, health=health, now=NOW + at)) == reason


@pytest.mark.parametrize(
    ("at", "reason"),
    [(0.0, "cooling"), (6.999, "cooling"), (7.0, ALLOWED)],
    ids=["at once", "almost over", "over"],
)
def test_warm(at: float, reason: str) -> None:
    """What a Retry-After of 7 seconds does."""
    health = Health()
    health.at(A.key)
    health.failed(A.key, NOW, 7)
    assert filters.warm(A, ask(SMALL, health=health, now=NOW + at)) == reason
    assert filters.warm(target("b"), ask(SMALL, health=health, now=NOW)) == ALLOWED


def test_every_filter_is_asked_and_the_first_refusal_is_told() -> None:
    """In the order of the list."""
    assert [one.__name__ for one in FILTERS] == [
        *("allowed", "pinned", "capable", "fits", "closed", "warm")
    ]
    health = Health(Rules(failures=1))
    health.at(A.key)
    health.failed(A.key, NOW, 60)
    poor = target("a", lacks=frozenset({"tools"}), context_window=1)
    told = ask(
        SMALL,
        replace(call(), needs=frozenset({"tools"})),
        principal=who(),
        pinned="b",
        health=health,
    )
    seen = []
    for change in (
        {"principal": who("small")},
        {"pinned": None},
        {"call": call()},
        {"prompt_tokens": 0},
        {"now": NOW + 30},
        {"now": NOW + 60},
    ):
        seen.append(verdict(poor, told))
        now = {name: getattr(told, name) for name in Ask.__slots__}
        told = Ask(**{**now, **change})
    assert seen == [
        *("forbidden", "not_pinned", "lacks_tools", "context_window", "breaker_open", "cooling")
    ]
    assert verdict(poor, told) == ALLOWED


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        pytest.param({"lacks": frozenset({"tools"})}, "invalid_request_error", None, id="tools"),
        pytest.param({"context_window": 10}, "invalid_request_error", "messages", id="too long"),
    ],
)
def test_a_call_no_target_can_take_is_refused(
    more: dict[str, Any], code: str, param: str | None
) -> None:
    """As the caller's mistake, because no time will lift it."""
    model = Model("small", "priority", (target("a", **more),))
    one = replace(call(), needs=frozenset({"tools"}))
    with pytest.raises(Denied) as caught:
        plan(snapshot(model), head(), ask(model, one))
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.retry_after_s is None


def test_when_none_is_well_the_caller_is_told_when_to_come_back() -> None:
    """The soonest of breakers and cooling, in whole seconds, rounded up."""
    b = target("b")
    model = Model("small", "priority", (A, b, target("c", lacks=frozenset({"/chat"}))))
    health = Health(Rules(failures=1, open_min_s=30))
    health.at(A.key)
    health.failed(A.key, NOW, 0)
    health.at(b.key).cool_until = NOW + 4.2
    with pytest.raises(Denied) as caught:
        plan(snapshot(model), head(), ask(model, health=health))
    assert (caught.value.code, caught.value.retry_after_s) == ("no_healthy_provider", 5)


LARGE = Model("large", "priority", (target("big", context_window=1_000_000),))


@pytest.mark.parametrize(
    ("prompt", "models", "provider"),
    [
        pytest.param(100, ("small", "large"), "a", id="a prompt that fits"),
        pytest.param(5000, ("small", "large"), "big", id="a prompt only the larger model takes"),
        pytest.param(5000, ("small",), None, id="a larger model the key may not use"),
        pytest.param(5_000_000, ("small", "large"), None, id="a prompt nobody takes"),
    ],
)
def test_a_longer_prompt_falls_back_to_a_larger_model(
    prompt: int, models: tuple[str, ...], provider: str | None
) -> None:
    """The typed fallback of the context window, within what the key may use."""
    small = Model("small", "priority", (target("a", context_window=1000),), fallback=("large",))
    question = ask(small, prompt_tokens=prompt, principal=who(*models))
    if provider is None:
        with pytest.raises(Denied):
            plan(snapshot(small, LARGE), head(), question)
    else:
        found = plan(snapshot(small, LARGE), head(), question)
        assert [one.provider for one in found.attempts] == [provider] * len(found.attempts)


def test_an_unhealthy_model_does_not_fall_back_to_a_larger_one() -> None:
    """Because a larger model is a larger bill."""
    small = Model("small", "priority", (target("a", context_window=1000),), fallback=("large",))
    health = Health(Rules(failures=1))
    health.at(A.key)
    health.failed(A.key, NOW, 0)
    with pytest.raises(Denied) as caught:
        plan(snapshot(small, LARGE), head(), ask(small, health=health))
    assert caught.value.code == "no_healthy_provider"


conditions = st.sampled_from(["well", "open", "due", "probing", "cooling", "incapable", "small"])


@given(
    st.lists(conditions, min_size=1, max_size=16),
    st.sampled_from(["priority", "weighted", "fastest", "cheapest"]),
    st.booleans(),
    st.floats(0, 1, exclude_max=True),
)
def test_a_plan_holds_only_what_is_allowed_and_is_never_empty_while_something_is(
    states: list[str], strategy: str, sticky: bool, draw: float
) -> None:
    """Whatever the strategy: no forbidden, open or cooling target, each allowed one once."""
    health = Health(Rules(failures=1))
    targets = []
    for number, state in enumerate(states):
        more: dict[str, Any] = {"weight": number % 3}
        if state == "incapable":
            more["lacks"] = frozenset({"tools"})
        if state == "small":
            more["context_window"] = 10
        one = target(f"p{number}", **more)
        targets.append(one)
        _bring(health, one, state)
    model = Model("small", strategy, tuple(targets), sticky=sticky)
    one_call = replace(call(), needs=frozenset({"tools"}))
    question = ask(model, one_call, health=health, now=NOW + 1, draw=draw)
    good = {f"p{n}" for n, state in enumerate(states) if state in {"well", "due"}}
    decision = decide(snapshot(model), question)
    assert {one.provider for _, one in decision.ranked} == good
    assert len(decision.ranked) == len(good)
    if good:
        attempts = plan(snapshot(model), head(), question).attempts
        assert attempts
        assert {one.provider for one in attempts} <= good
    else:
        with pytest.raises(Denied):
            plan(snapshot(model), head(), question)


def _bring(health: Health, one: Target, state: str) -> None:
    """Bring a target into a state that holds one second from NOW."""
    if state == "open":
        health.at(one.key)
        health.failed(one.key, NOW + 0.95, 0)
    elif state == "due":
        health.at(one.key)
        health.failed(one.key, NOW, 0)
    elif state == "probing":
        health.at(one.key)
        health.failed(one.key, NOW, 0)
        health.at(one.key).breaker.claim(NOW + 0.5)
    elif state == "cooling":
        health.at(one.key).cool_until = NOW + 2


def test_no_stampede_at_half_open() -> None:
    """Of a thousand calls planned at the moment of the probe one goes there."""
    b = target("b")
    model = Model("small", "priority", (A, b))
    health = Health(Rules(failures=1))
    health.at(A.key)
    health.failed(A.key, NOW, 0)
    firsts = []
    for _ in range(1000):
        question = ask(model, health=health, now=NOW + 0.1)
        attempts = plan(snapshot(model), head(), question).attempts
        health.planned(attempts, NOW + 0.1)
        firsts.append(attempts[0].provider)
    assert firsts == ["a"] + ["b"] * 999


def test_a_thousand_calls_plan_five_attempts_at_a_dead_target_and_its_probes() -> None:
    """A call every 10 ms, each failure known before the next call; the other target serves all."""
    b = target("b")
    model = Model("small", "priority", (A, b))
    health, attempts_at_a = Health(), 0
    for number in range(1000):
        now = NOW + number / 100
        attempts = plan(snapshot(model), head(), ask(model, health=health, now=now)).attempts
        ended = health.planned(attempts, now)
        assert attempts[-1] is b
        if attempts[0] is A:
            attempts_at_a += 1
            health.at(A.key)
            health.failed(A.key, now, 0)
        ended()
    assert attempts_at_a <= 5 + 7


def test_the_question_carries_what_a_filter_asks() -> None:
    """The snapshot's part is resolved before: a filter looks nothing up but the target's health."""
    assert set(Ask.__slots__) == {
        *("call", "principal", "model", "strategy", "pinned", "prompt_tokens", "output_tokens"),
        *("health", "now", "draw"),
    }
    assert routing.STRATEGIES.keys() == {"priority", "weighted", "fastest", "cheapest"}
