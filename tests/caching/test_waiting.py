"""Identical calls at the same time: one is sent, the others are told its answer or go on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from extproc.caching.turn import REPLY_GRACE_S
from extproc.domain import Principal
from extproc.ports import SilentObserver
from tests.cache_bench import COMPLETE, Answered, Bench
from tests.caching.test_flow import TOOLS
from tests.calls import answer
from tests.ledgers import rules


async def led(bench: Bench, followers: int = 1, **fields: Any) -> tuple[Answered, list[Any]]:
    """Send a call and others like it; return the first's reply and the others' tasks."""
    first = await bench.send(**fields)
    tasks = [bench.begin(**fields) for _ in range(followers)]
    await bench.waiting(followers)
    return first, tasks


async def test_a_follower_is_told_the_leaders_answer() -> None:
    bench = Bench()
    first, (task,) = await led(bench)
    bench.settle(first)
    told = await task
    assert (told.status, json.loads(told.body)) == (200, COMPLETE)
    assert told.said == "llm-edge; fwd=miss; collapsed; ttl=300"
    assert told.headers["x-llm-attempts"] == "0"
    row = bench.settle(told)
    assert (row.cache, row.cost_pico_usd, row.usage.output) == ("collapsed", 0, 0)
    assert bench.watcher.lookups == ["miss", "collapsed"]


async def test_a_follower_asks_envoy_for_time_first() -> None:
    """Once, for as long as its call may take; Envoy's own patience is for replies at once."""
    bench = Bench()
    first, (task,) = await led(bench, headers={"x-llm-timeout-ms": "9000"})
    (message,) = bench.said
    asked = answer(message)
    assert asked.override_message_timeout is not None
    assert asked.override_message_timeout.total_seconds() == 9 + REPLY_GRACE_S
    assert asked.request_body is None
    bench.settle(first)
    await task
    assert len(bench.said) == 1


async def test_nobody_waits_who_may_not_have_the_answer() -> None:
    """Another tenant, another question, one that wants a fresh answer or leaves none."""
    bench = Bench()
    first = await bench.send()
    bench.gateway.identity.answer = Principal("umbrella", "key_bob", "free")  # type: ignore[attr-defined]
    assert not (await bench.send()).told
    bench.gateway.identity.answer = Principal("acme", "key_alice", "free")  # type: ignore[attr-defined]
    assert not (await bench.send(temperature=0.1)).told
    assert not (await bench.send(headers={"cache-control": "no-cache"})).told
    assert not (await bench.send(headers={"cache-control": "no-store"})).told
    bench.settle(first)
    assert (await bench.send()).told


@pytest.mark.parametrize(
    ("changes", "leads"),
    [
        pytest.param({"done": False}, 1, id="cut: the next one is sent"),
        pytest.param({"status": 503}, 1, id="the provider failed: the next one is sent"),
        pytest.param({"status": 429}, 1, id="the provider is busy: the next one is sent"),
        pytest.param({"status": 400}, 3, id="the call's own fault: all are, at once"),
    ],
)
async def test_a_leader_without_an_answer(changes: dict[str, Any], leads: int) -> None:
    bench = Bench()
    first, tasks = await led(bench, 3)
    bench.settle(first, **changes)
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0)
    assert sum(task.done() for task in tasks) == leads
    sent = done.pop().result()
    assert not sent.told
    assert sent.said == "llm-edge; fwd=miss; collapsed=?0"
    if leads == 1:
        bench.settle(sent)
        told = [task.result() for task in (await asyncio.wait(tasks))[0]]
        assert sorted(one.told for one in told) == [False, True, True]
    await asyncio.gather(*tasks)


async def test_an_answer_that_is_not_kept_is_not_waited_for_twice() -> None:
    """Every follower goes on at once, and leads nobody."""
    bench = Bench()
    first, tasks = await led(bench, 3)
    bench.settle(first, TOOLS)
    sent = await asyncio.gather(*tasks)
    assert not any(one.told for one in sent)
    assert len(bench.flights) == 0


async def test_a_leader_that_is_refused_lets_the_next_one_lead() -> None:
    """A limit that has no room for its tokens; whoever asks next is refused itself, not late."""
    bench = Bench(rules(tokens_per_day=30))
    assert (await bench.send(max_tokens=50)).told is False  # lowered to what is left
    assert (await bench.send(messages=[{"role": "user", "content": "x" * 400}])).status == 429
    assert len(bench.flights) == 1
    refused = await bench.send(messages=[{"role": "user", "content": "x" * 400}])
    assert refused.status == 429


async def test_a_bug_after_the_lookup_lets_the_next_one_lead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()

    def broken(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr("extproc.dialects.openai.rewrite", broken)
        assert (await bench.send()).status == 500
    assert len(bench.flights) == 0
    assert not (await bench.send()).told


async def test_a_follower_that_leaves_leaves_nothing_behind() -> None:
    bench = Bench(rules(concurrent_requests=2, requests_per_day=2))
    first, (task,) = await led(bench)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.flights.waiting == 0
    _, (again,) = first, [bench.begin()]  # its slot and its request are free
    await bench.waiting(1)
    bench.settle(first)
    assert (await again).status == 200


async def test_a_follower_that_was_to_lead_and_left_passes_it_on() -> None:
    bench = Bench()
    first, tasks = await led(bench, 2)
    bench.settle(first, done=False)  # the first of the two is to lead, and has not heard of it
    tasks[0].cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await tasks[0]
    sent = await tasks[1]
    assert not sent.told
    bench.settle(sent)
    assert (await bench.send()).told


@pytest.mark.parametrize(
    ("limits", "first", "second"),
    [
        pytest.param({"concurrent_requests": 1}, 200, 429, id="it takes a slot while it waits"),
        pytest.param({"requests_per_day": 1}, 200, 429, id="it is a request"),
        pytest.param({"tokens_per_day": 60}, 200, 200, id="it reserves no tokens"),
    ],
)
async def test_limits_of_who_waits(limits: dict[str, Any], first: int, second: int) -> None:
    bench = Bench(rules(**limits))
    sent = await bench.send(max_tokens=30)
    task = bench.begin(max_tokens=30)
    if second == 200:
        await bench.waiting(1)
        bench.settle(sent)
    assert (await task).status == second
    assert bench.flights.waiting == 0


async def test_a_slot_is_given_back_with_the_answer() -> None:
    bench = Bench(rules(concurrent_requests=3))
    for _ in range(3):
        text = {"messages": [{"role": "user", "content": str(_)}]}
        first, tasks = await led(bench, 2, **text)
        bench.settle(first)
        assert [one.status for one in await asyncio.gather(*tasks)] == [200, 200]


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({"requests_per_second": 0.001, "burst": 3}, id="by the rate"),
        pytest.param({"requests_per_day": 3}, id="by the day"),
    ],
)
async def test_a_follower_that_is_sent_after_all_is_one_request(limits: dict[str, Any]) -> None:
    bench = Bench(rules(**limits))
    first, (task,) = await led(bench)
    bench.settle(first, TOOLS)
    bench.settle(await task, TOOLS)
    assert not (await bench.send()).told
    assert (await bench.send(temperature=0)).status == 429


async def test_a_follower_has_the_time_that_is_left() -> None:
    bench = Bench()
    first, (task,) = await led(bench, headers={"x-llm-timeout-ms": "30000"})
    began = bench.gateway.steady
    bench.gateway.steady = lambda: began() + 12
    bench.settle(first, done=False)
    left_ms = int((await task).sent("x-envoy-upstream-rq-timeout-ms"))
    assert 17_000 < left_ms <= 18_000


async def test_a_follower_whose_time_is_over_is_told_so() -> None:
    """Its own limit bounds the wait, and nobody waits for it then."""
    bench = Bench()
    first = await bench.send()
    late = await bench.send(headers={"x-llm-timeout-ms": "1"})
    assert (late.status, late.error) == (504, "upstream_timeout")
    bench.settle(first)
    assert (await bench.send()).told


async def test_a_follower_that_is_to_lead_too_late_leads_nobody() -> None:
    """The leader failed when the follower's time was over: whoever asks next is sent at once."""
    bench = Bench()
    first, (task,) = await led(bench, headers={"x-llm-timeout-ms": "9000"})
    began = bench.gateway.steady
    bench.gateway.steady = lambda: began() + 9
    bench.settle(first, done=False)
    late = await task
    assert (late.status, late.error) == (504, "upstream_timeout")
    assert len(bench.flights) == 0


async def test_a_wait_that_envoy_would_end_is_ended_before() -> None:
    """Then the call goes upstream itself."""
    bench = Bench(wait_ms=1)
    first = await bench.send()
    sent = await bench.send()
    assert not sent.told
    assert sent.said.endswith("collapsed=?0")
    bench.settle(first)


async def test_a_follower_that_wants_it_younger_goes_on() -> None:
    bench = Bench()
    first, (task,) = await led(bench, headers={"cache-control": "max-age=0"})
    bench.settle(first)
    assert not (await task).told


async def test_five_hundred_at_once_are_one() -> None:
    bench = Bench(rules(requests_per_day=500))
    tasks = [bench.begin(stream=bool(n % 2)) for n in range(500)]
    await bench.waiting(499)
    (first,) = [task.result() for task in tasks if task.done()]
    bench.settle(first)
    told = await asyncio.gather(*tasks)
    assert sum(not one.told for one in told) == 1
    assert {one.status for one in told if one.told} == {200}
    assert bench.watcher.lookups.count("collapsed") == 499
    assert (await bench.send()).status == 429  # every one was a request


def test_nobody_watches() -> None:
    """The null observer takes what the cache tells."""
    SilentObserver().looked_up("hit")
    SilentObserver().kept("stored")
