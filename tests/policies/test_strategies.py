"""In which order the allowed targets get a call: a table per strategy, and their shares."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from msgspec.structs import replace

from extproc.domain import Model, Price, Principal, Target
from extproc.policies.health import Health
from extproc.policies.routing import plan
from extproc.policies.strategies import UNKNOWN, cheapest, expected_ms, fastest, weighted
from tests.calls import call, head, snapshot, target
from tests.plans import ask, providers

A, B, C = target("a"), target("b"), target("c")


def simulate(health: Health, delays_ms: dict[str, float], count: int, seed: int = 1) -> list[str]:
    """Plan so many calls one after the other, each answered after its target's delay."""
    draw = random.Random(seed).random
    model = Model("small", "fastest", (A, B, C))
    chosen = []
    for _ in range(count):
        attempts = plan(snapshot(model), head(), ask(model, health=health, draw=draw())).attempts
        ended = health.planned(attempts, 0.0)
        first = attempts[0]
        chosen.append(first.provider)
        health.at(first.key).answered(delays_ms[first.provider], 1)
        ended()
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_fastest_finds_the_quickest_and_follows_a_swap(seed: int) -> None:
    """At 50, 100 and 400 ms: 80% of 50 calls; after the swap it is back within 20."""
    health = Health()
    before = simulate(health, {"a": 400, "b": 100, "c": 50}, 50, seed)
    assert before.count("c") >= 40
    after = simulate(health, {"a": 50, "b": 100, "c": 400}, 70, seed)
    back = after.index("a")
    assert back < 20
    assert after[20:].count("a") >= 40


def test_fastest_tries_every_new_target_once_before_it_has_a_favourite() -> None:
    """Cold targets are explored."""
    assert set(simulate(Health(), {"a": 9, "b": 8, "c": 7}, 3)) == {"a", "b", "c"}


def test_fastest_does_not_go_on_asking_a_target_that_never_answers_well() -> None:
    """What fails with 404 teaches no latency, and is not taken for new for ever."""
    health, chosen = Health(), Counter[str]()
    model = Model("small", "fastest", (A, B))
    for _ in range(100):
        attempts = plan(snapshot(model), head(), ask(model, health=health)).attempts
        ended = health.planned(attempts, 0.0)
        chosen[attempts[0].provider] += 1
        if attempts[0] is B:
            health.at(B.key).answered(100, 1)
        ended()
    assert chosen["a"] <= 15


def test_fastest_counts_calls_in_flight() -> None:
    """The quicker of two nearly equal ones gives way when it is busy."""
    health = Health()
    for one, ms in ((A, 100), (B, 110)):
        health.planned((one,), 0.0)()
        health.at(one.key).answered(ms, 1)
    model = Model("small", "fastest", (A, B))
    assert providers(model, health=health)[0] == "a"
    for _ in range(8):
        health.planned((A,), 0.0)
    assert providers(model, health=health)[0] == "b"


def test_fastest_without_any_knowledge_takes_the_least_busy() -> None:
    """All have been tried, none has answered yet."""
    health = Health()
    health.planned((A,), 0.0)
    health.planned((A,), 0.0)
    health.planned((B,), 0.0)
    model = Model("small", "fastest", (A, B))
    assert providers(model, health=health) == ["b", "a"]


@pytest.mark.parametrize(
    ("stream", "record", "expected"),
    [
        pytest.param(True, {"ttft": 50.0, "token": 2.0}, 250.0, id="a stream by its own kind"),
        pytest.param(False, {"answer": 3.0}, 300.0, id="a plain answer by its own kind"),
        pytest.param(True, {"answer": 3.0}, 300.0, id="a stream by plain answers"),
        pytest.param(False, {"ttft": 50.0, "token": 2.0}, 250.0, id="a plain answer by streams"),
        pytest.param(True, {}, UNKNOWN, id="nothing known"),
    ],
)
def test_expected_time(stream: bool, record: dict[str, float], expected: float) -> None:
    """Time to the first token and per token after it, for 100 tokens; never raw duration."""
    health = Health()
    one = health.at(A.key)
    one.ttft_ms, one.token_ms = record.get("ttft"), record.get("token")
    one.answer_ms = record.get("answer")
    model = Model("small", "fastest", (A,))
    assert expected_ms(A, ask(model, call(stream=stream), health=health)) == expected


def priced(name: str, **price: int) -> Target:
    """Return a target with a price."""
    values = {"input": 10, "output": 10, "cached_input": 1, **price}
    return target(name, price=Price(**values))


@pytest.mark.parametrize(
    ("prompt", "output", "first"),
    [
        pytest.param(1000, 10, "cheap-in", id="a long prompt"),
        pytest.param(10, 1000, "cheap-out", id="a long answer"),
        pytest.param(0, 1, "cheap-out", id="an answer alone"),
    ],
)
def test_cheapest_weighs_prompt_and_answer(prompt: int, output: int, first: str) -> None:
    """By the estimate of both."""
    targets = (priced("cheap-in", input=1), priced("cheap-out", output=1))
    question = ask(Model("m", "cheapest", targets), prompt_tokens=prompt, output_tokens=output)
    assert cheapest(targets, question)[0][1].provider == first


def test_cheapest_knows_long_prompts_prices_and_caches() -> None:
    """A tier above a threshold, and the part of prompts that has come from the cache of late."""
    tiered = target("tiered", price=Price(1, 1, 1, 1000, Price(100, 100, 100)))
    flat = priced("flat")
    model = Model("m", "cheapest", (flat, tiered))
    order = [
        cheapest(model.targets, ask(model, prompt_tokens=tokens))[0][1].provider
        for tokens in (1000, 1001)
    ]
    assert order == ["tiered", "flat"]
    caching = replace(priced("caching", input=12))
    health = Health()
    model = Model("m", "cheapest", (flat, caching))
    assert cheapest(model.targets, ask(model, health=health))[0][1] is flat
    for _ in range(5):
        health.at(caching.key).cached(0.9)
    assert cheapest(model.targets, ask(model, health=health))[0][1] is caching


def test_cheapest_puts_what_has_no_price_last() -> None:
    """Unknown is not free."""
    targets = (target("unpriced", price=None), priced("dear", input=10**9))
    question = ask(Model("m", "cheapest", targets))
    found = cheapest(targets, question)
    assert [one.provider for _, one in found] == ["dear", "unpriced"]
    assert found[1][0] == UNKNOWN


def test_shares_over_ten_thousand_plans() -> None:
    """Weighted within 2% of the weights; cheapest all to the cheapest, equals by weight."""
    draw = random.Random(3).random
    by_weight = Model("m", "weighted", (target("a", weight=1), target("b", weight=99)))
    by_cost = Model(
        "m",
        "cheapest",
        (
            replace(priced("a"), weight=1),
            replace(priced("b"), weight=3),
            priced("dear", input=11),
        ),
    )
    for model, shares in ((by_weight, {"a": 0.01, "b": 0.99}), (by_cost, {"a": 0.25, "b": 0.75})):
        firsts = Counter(providers(model, draw=draw())[0] for _ in range(10_000))
        for name, share in shares.items():
            assert abs(firsts[name] / 10_000 - share) < 0.02
        assert "dear" not in firsts


def sticky_first(model: Model, number: int, tenant: str = "acme") -> str:
    """Return the first provider of a key."""
    return providers(model, principal=Principal(tenant, f"key-{number}", "free"))[0]


def test_a_canary_is_stable_per_key_and_has_its_share_of_keys() -> None:
    """1 key in 100 is a canary, always the same ones, whatever is drawn."""
    model = Model("m", "weighted", (target("old", weight=99), target("new", weight=1)), sticky=True)
    firsts = [sticky_first(model, number) for number in range(10_000)]
    assert abs(firsts.count("new") / 10_000 - 0.01) < 0.004
    assert [sticky_first(model, number) for number in range(500)] == firsts[:500]


def test_when_a_target_goes_only_its_own_keys_move() -> None:
    """Rendezvous hashing: the other keys stay where they are."""
    targets = tuple(target(name, weight=weight) for name, weight in (("a", 1), ("b", 2), ("c", 3)))
    whole = Model("m", "weighted", targets, sticky=True)
    rest = Model("m", "weighted", targets[:2], sticky=True)
    for number in range(300):
        before = sticky_first(whole, number)
        if before != "c":
            assert sticky_first(rest, number) == before


def test_keys_of_two_tenants_are_drawn_apart() -> None:
    """A key id alone does not decide."""
    model = Model("m", "weighted", (target("a"), target("b")), sticky=True)
    firsts = {sticky_first(model, 1, tenant) for tenant in map(str, range(20))}
    assert firsts == {"a", "b"}


def test_scores_are_what_the_order_goes_by() -> None:
    """The smaller the better, in all but the two choices and explorations of fastest."""
    model = Model("m", "weighted", (replace(A, weight=1), replace(B, weight=3)))
    assert [score for score, _ in weighted(model.targets, ask(model, draw=0.9))] == [0.25, 0.75]
    health = Health()
    for one, ms in ((A, 30), (B, 20), (C, 10)):
        health.planned((one,), 0.0)()
        health.at(one.key).answered(ms, 1)
    model = Model("m", "fastest", (A, B, C))
    found = fastest(model.targets, ask(model, health=health, output_tokens=1))
    assert found == [(10.0, C), (20.0, B), (30.0, A)]
