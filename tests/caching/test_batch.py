"""Batches of embeddings on a call's way: what is asked for, what is answered, what is kept."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from msgspec.structs import replace

from extproc.answers import Role
from extproc.cache.lookup import MAX_REPEATED_BYTES
from extproc.caching.batch import MAX_INPUTS
from extproc.domain import Ended, Model
from tests.batches import ALONE, BOB, EITHER, Batches, document, told
from tests.calls import target
from tests.ledgers import rules


@pytest.mark.parametrize(
    ("scope", "shared"),
    [
        pytest.param("tenant", False, id="another tenant has another cache"),
        pytest.param("shared", True, id="everybody shares where so written"),
    ],
)
async def test_whose_inputs_are_known(scope: str, shared: bool) -> None:
    bench = Batches(model=ALONE, scope=scope)
    await bench.ask(["a", "b"])
    bench.gateway.identity.answer = BOB  # type: ignore[attr-defined]
    assert (await bench.ask(["b", "c"])).sent == (["c"] if shared else ["b", "c"])
    assert (await bench.ask(["a", "b"])).sent == (None if shared else ["a"])


async def test_only_what_is_not_known_is_asked_for() -> None:
    """The answer is in order, and counts what was asked; the row is of that, and there is one."""
    bench = Batches(model=ALONE)
    first = await bench.ask(["a", "b"])
    assert (first.sent, first.got, first.said) == (
        ["a", "b"],
        document(["a", "b"]),
        "llm-edge; fwd=miss",
    )
    second = await bench.ask(["b", "c", "a", "d"])
    assert second.sent == ["c", "d"]
    assert second.got == told(["b", "c", "a", "d"], 20)
    assert second.said == "llm-edge; fwd=partial"
    assert second.row is not None
    assert (second.row.usage.input, second.row.cost_pico_usd) == (20, 20 * 150_000)
    assert (second.row.cache, second.row.ended) == ("", Ended.FINISHED)
    bench.clock.now += 7
    third = await bench.ask(["d", "c", "b", "a"])
    assert (third.sent, third.got) == (None, told(["d", "c", "b", "a"], 40))
    assert third.said == "llm-edge; hit; ttl=3593"
    assert third.answered.headers["age"] == "7"
    assert third.row is not None
    assert (third.row.cache, third.row.cost_pico_usd, third.row.usage.input) == ("hit", 0, 0)
    assert bench.watcher.lookups == ["miss", "partial", "hit"]
    assert bench.watcher.fills == ["stored", "stored"]


@pytest.mark.parametrize(
    ("before", "batch", "sent"),
    [
        pytest.param("a", ["a", "b"], ["b"], id="a single call's answer serves a batch"),
        pytest.param(["a"], ["b", "a"], ["b"], id="written as a list of one too"),
        pytest.param([1, 2], [[1, 2], [3]], [[3]], id="tokens"),
        pytest.param([[1, 2], [3]], [3], None, id="a batch's answer serves a single call"),
        pytest.param(["a", "b"], "b", None, id="of texts as well"),
        pytest.param(["a", "b"], ["b"], None, id="in a list"),
        pytest.param(["a", "a", "b"], ["b", "a", "b"], None, id="doubles are one"),
        pytest.param(["a"], ["b", "a", "b", "c"], ["b", "c"], id="doubles are asked for once"),
        pytest.param(["1,2"], [[1, 2]], [[1, 2]], id="a text is no list of tokens"),
        pytest.param(["a", "b"], ["c", "d"], ["c", "d"], id="nothing known, nothing changed"),
    ],
)
async def test_single_calls_and_batches_share(before: Any, batch: Any, sent: Any) -> None:
    bench = Batches(model=ALONE)
    await bench.ask(before)
    asked = await bench.ask(batch)
    assert asked.sent == sent
    assert asked.got["data"] == document(batch)["data"]


@pytest.mark.parametrize(
    "fields",
    [{"encoding_format": "base64"}, {"dimensions": 2}, {"new": 1}],
    ids=["another encoding", "another size", "what nobody here knows"],
)
async def test_another_question_knows_nothing(fields: dict[str, Any]) -> None:
    bench = Batches(model=ALONE)
    await bench.ask(["a", "b"])
    assert (await bench.ask(["a", "c"], fields=fields)).sent == ["a", "c"]
    assert (await bench.ask(["a", "d"], fields=fields)).sent == ["d"]


@pytest.mark.parametrize(
    ("control", "sent", "kept"),
    [
        pytest.param("no-cache", ["a", "b", "c"], True, id="all of it afresh"),
        pytest.param("no-store", ["c"], False, id="known ones are told, nothing is kept"),
        pytest.param("max-age=9", ["a", "b", "c"], True, id="too old for the caller"),
        pytest.param("max-age=11", ["c"], True, id="young enough"),
    ],
)
async def test_cache_control(control: str, sent: list[str], kept: bool) -> None:
    bench = Batches(model=ALONE)
    await bench.ask(["a", "b"])
    bench.clock.now += 10
    asked = await bench.ask(["a", "b", "c"], headers={"cache-control": control})
    assert (asked.sent, asked.got["data"]) == (sent, document(["a", "b", "c"])["data"])
    assert ((await bench.ask(["c", "b"])).sent is None) is kept


async def test_a_part_is_not_what_only_a_kept_answer_may_be() -> None:
    bench = Batches(model=ALONE)
    await bench.ask(["a", "b"])
    only = {"cache-control": "only-if-cached"}
    assert (await bench.ask(["a", "c"], headers=only)).status == 504
    assert (await bench.ask(["b", "a"], headers=only)).status == 200


async def test_what_is_known_ends_with_the_first_of_it() -> None:
    bench = Batches(model=ALONE)
    await bench.ask(["a", "b"])
    bench.clock.now += 1000
    await bench.ask(["c", "d"])
    bench.clock.now += 2000
    hit = await bench.ask(["d", "a"])
    assert (hit.said, hit.answered.headers["age"]) == ("llm-edge; hit; ttl=600", "3000")
    bench.clock.now += 600
    assert (await bench.ask(["a", "d", "b"])).sent == ["a", "b"]


async def test_vectors_of_two_targets_never_meet() -> None:
    """A part is for the target that gave the rest, with its retries; what a fallback gave is not."""
    bench = Batches(model=EITHER)
    await bench.ask(["a"])
    await bench.ask(["b"], model="second", attempts=2)  # by failover
    asked = await bench.ask(["a", "b", "c"])
    assert asked.sent == ["b", "c"]
    groups = asked.answered.metadata["llm"]["priority_groups"]
    assert [g["clusters"][0]["cluster_name"] for g in groups] == ["a"]
    assert asked.answered.sent("x-envoy-max-retries") == "2"
    bench.gateway.health.at("a/first").cool_until = bench.gateway.steady() + 60
    asked = await bench.ask(["a", "b", "d"], model="second")
    assert (asked.sent, asked.got["model"]) == (["a", "d"], "second")


async def test_one_model_at_two_providers_is_two() -> None:
    """They may not run the same."""
    twice = Model("small", "priority", (target("a", "first"), target("b", "first")))
    bench = Batches(model=twice)
    await bench.ask(["a", "b"])
    bench.gateway.health.at("a/first").cool_until = bench.gateway.steady() + 60
    assert (await bench.ask(["a", "c"])).sent == ["a", "c"]


async def test_where_the_target_failed_of_late_the_others_may_have_it_all() -> None:
    """Until it has given a good answer; where there are no others it is asked for the part."""
    bench = Batches(model=EITHER)
    await bench.ask(["a", "b"])
    bench.gateway.health.failed("a/first", bench.gateway.steady(), 0)
    whole = await bench.ask(["a", "c"], model="second", attempts=2)
    assert whole.sent == ["a", "c"]
    assert len(whole.answered.metadata["llm"]["priority_groups"]) == 2
    assert (await bench.ask(["b", "a"])).sent is None  # which asks nobody
    bench.gateway.health.at("a/first").breaker.succeeded()
    assert (await bench.ask(["a", "d"])).sent == ["d"]
    alone = Batches(model=ALONE)
    await alone.ask(["a", "b"])
    alone.gateway.health.failed("a/first", alone.gateway.steady(), 0)
    assert (await alone.ask(["a", "c"])).sent == ["c"]


async def test_an_error_passes_as_it_is() -> None:
    """Nothing is kept of it and nothing paid."""
    bench = Batches(model=ALONE)
    await bench.ask(["a", "b"])
    failed = await bench.ask(["a", "c"], status=500, done=False, answer=b"")
    assert (failed.sent, failed.status) == (["c"], 500)
    assert failed.row is not None
    assert (failed.row.cost_pico_usd, failed.row.usage.input) == (0, 0)
    assert (await bench.ask(["a", "c"])).sent == ["c"]


async def test_a_model_that_became_another_is_never_mixed() -> None:
    """One call is refused, and billed; then the whole batch is asked for, and known."""
    bench = Batches(model=ALONE)
    await bench.ask(["a", "b"])
    refused = await bench.ask(["a", "c"], model="first-v2")
    assert (refused.sent, refused.status) == (["c"], 502)
    assert refused.got["error"]["code"] == "upstream_error"
    assert refused.row is not None
    assert (refused.row.ended, refused.row.usage.input) == (Ended.FAILED, 10)
    assert refused.row.cost_pico_usd == 10 * 150_000
    again = await bench.ask(["a", "c"], model="first-v2")
    assert (again.sent, again.got) == (["a", "c"], document(["a", "c"], "first-v2"))
    assert (await bench.ask(["c", "a"])).sent is None


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda inputs, model: document([*inputs, "x"], model), id="one too many"),
        pytest.param(lambda _, __: {"error": "?", "usage": {}}, id="no list"),
    ],
)
async def test_an_answer_that_is_none_is_the_providers_fault(broken: Any) -> None:
    bench = Batches(model=ALONE)
    await bench.ask(["a", "b"])
    assert (await bench.ask(["a", "c"], provider=broken)).status == 502
    assert bench.watcher.fills == ["stored", "unreadable"]
    assert (await bench.ask(["a", "c"])).got["data"] == document(["a", "c"])["data"]


@pytest.mark.parametrize("tokens", [-1, 2**53 + 1, 10**30])
async def test_tokens_that_nobody_can_have_counted_are_not_kept(tokens: int) -> None:
    """The vectors are; a store has no room for such a number."""
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    bench = Batches(model=ALONE)
    await bench.ask(["a", "b"], provider=lambda *given: document(*given) | {"usage": usage})
    assert [held.entry.usage for held in bench.answers._window.values()] == [(0, 0, 0)] * 2
    known = await bench.ask(["b", "a"])
    assert (known.sent, "usage" in known.got) == (None, False)


async def test_kept_bytes_that_are_none_are_not_known() -> None:
    bench = Batches(model=ALONE)
    sent = await bench.ask(["a", "b"], settle=False)
    bench.settle(sent.answered, document(["a", "b"]))
    (one, two) = bench.answers._window.items()
    bench.answers.put(one[0], replace(one[1].entry, body=b"{}"))
    bench.answers.put(two[0], replace(two[1].entry, body=two[1].entry.body[:-1]))
    assert (await bench.ask(["a", "c"])).sent == ["a", "c"]
    assert (await bench.ask(["a", "b"])).sent == ["a", "b"]
    assert (await bench.ask(["b", "a"])).sent is None


async def test_limits_are_for_what_is_asked() -> None:
    """A known batch is one request; of another the part is reserved and paid."""
    bench = Batches(rules(requests_per_day=4, tokens_per_day=400), model=ALONE)
    long = "x" * 500
    await bench.ask([long, "b"])
    refused = await bench.ask(["y" * 2000, "b"])
    assert refused.status == 429
    known = await bench.ask(["b", long])
    assert known.sent is None
    assert known.answered.headers["x-ratelimit-remaining-requests"] == "2"
    part = await bench.ask([long] * 3 + ["c"])  # whole it would be as long as what was refused
    assert (part.status, part.sent) == (200, ["c"])
    assert (await bench.ask([long, "c"])).sent is None
    assert (await bench.ask([long, "c"])).status == 429


async def test_identical_batches_share_the_part_they_ask_for() -> None:
    """Each completes it with what it knows itself."""
    bench = Batches(model=ALONE)
    await bench.ask(["a", "b"])
    bench.clock.now += 5
    first = await bench.ask(["a", "c", "d"], settle=False)
    tasks = [asyncio.create_task(bench.ask(batch)) for batch in (["a", "c", "d"], ["c", "b", "d"])]
    await bench.waiting(2)
    bench.settle(first.answered, document(["c", "d"]))
    one, two = await asyncio.gather(*tasks)
    assert (one.sent, two.sent) == (None, None)
    assert one.got == told(["a", "c", "d"], 20)
    assert two.got == told(["c", "b", "d"], 20)
    assert one.said.startswith("llm-edge; fwd=partial; collapsed; ttl=3595")
    assert one.answered.headers["age"] == "5"  # of the oldest vector
    assert bench.watcher.lookups == ["miss", "partial", "collapsed", "collapsed"]
    assert one.row is not None
    assert (one.row.cache, one.row.cost_pico_usd) == ("collapsed", 0)


async def test_who_waited_for_a_part_of_another_model_asks_for_all() -> None:
    bench = Batches(model=ALONE)
    await bench.ask(["a", "b"])
    first = await bench.ask(["a", "c"], settle=False)
    task = asyncio.create_task(bench.ask(["a", "c"], model="first-v2"))
    await bench.waiting(1)
    bench.settle(first.answered, document(["c"], "first-v2"))
    asked = await task
    assert (asked.sent, asked.got) == (["a", "c"], document(["a", "c"], "first-v2"))
    assert asked.said == "llm-edge; fwd=miss; collapsed=?0"
    assert (await bench.ask(["c", "a"])).sent is None


@pytest.mark.parametrize("failed_over", [False, True], ids=["planned there", "failed over"])
async def test_who_waited_for_a_part_of_another_provider_asks_for_all(failed_over: bool) -> None:
    """Though the model has the same name there."""
    twice = Model("small", "priority", (target("a", "first"), target("b", "first")))
    bench = Batches(model=twice)
    await bench.ask(["a", "b"])
    if not failed_over:
        bench.gateway.health.at("a/first").cool_until = bench.gateway.steady() + 60
    first = await bench.ask("c", settle=False)
    bench.gateway.health.at("a/first").cool_until = 0
    task = asyncio.create_task(bench.ask(["a", "c"]))
    await bench.waiting(1)
    bench.settle(first.answered, document("c"), attempts=1 + failed_over)
    asked = await task
    assert (asked.sent, asked.got) == (["a", "c"], document(["a", "c"]))
    assert asked.said == "llm-edge; fwd=miss; collapsed=?0"


@pytest.mark.parametrize(
    ("batch", "sent", "said"),
    [
        pytest.param(["b", "a"], None, "llm-edge; fwd=miss; collapsed; ttl=", id="all known"),
        pytest.param(["b", "c"], ["c"], "llm-edge; fwd=partial", id="some"),
        pytest.param(["c", "d"], ["c", "d"], "llm-edge; fwd=miss", id="none"),
    ],
)
async def test_who_was_not_told_looks_again(
    monkeypatch: pytest.MonkeyPatch, batch: list[str], sent: Any, said: str
) -> None:
    """A batch that another process had answered is kept in its parts, not as what was waited for."""
    bench = Batches(model=ALONE)

    async def ended_elsewhere(*_: Any, **__: Any) -> Role:
        monkeypatch.undo()
        assert (await bench.ask(["a", "b"])).sent == ["a", "b"]
        return Role.ALONE

    monkeypatch.setattr(bench.flights, "lead", lambda *_: False)
    monkeypatch.setattr(bench.flights, "join", ended_elsewhere)
    asked = await bench.ask(batch)
    assert (asked.sent, asked.got["data"]) == (sent, document(batch)["data"])
    assert asked.said.startswith(said)


async def test_a_batch_is_looked_up_as_a_whole_where_it_is_too_long() -> None:
    bench = Batches(model=ALONE)
    bench.gateway.snapshot = dataclasses.replace(bench.gateway.snapshot, max_request_bytes=2**20)
    many = [[number] for number in range(MAX_INPUTS + 1)]
    await bench.ask(many)
    assert len(bench.answers) == 1
    assert (await bench.ask(many)).sent is None
    assert (await bench.ask(many[:2])).sent == many[:2]
    assert (await bench.ask(many[:MAX_INPUTS])).sent == many[2:MAX_INPUTS]


async def test_a_batch_is_looked_up_as_a_whole_where_the_rest_of_it_is_too_long() -> None:
    """Each input's key would digest all of that again."""
    bench = Batches(model=ALONE)
    bench.gateway.snapshot = dataclasses.replace(bench.gateway.snapshot, max_request_bytes=2**20)
    many = [[number] for number in range(MAX_INPUTS)]
    more = {"fields": {"new": "x" * (MAX_REPEATED_BYTES // MAX_INPUTS)}}
    await bench.ask(many, **more)
    assert len(bench.answers) == 1
    assert (await bench.ask(many, **more)).sent is None
    assert (await bench.ask(many[:2], **more)).sent == many[:2]
    assert (await bench.ask(many[:3], **more)).sent == many[2:3]


@pytest.mark.parametrize(
    ("known", "more", "sent"),
    [
        pytest.param(8, 0, 0, id="what fits a message is told"),
        pytest.param(40, 0, 40, id="what does not is asked for"),
        pytest.param(2, 10, 10, id="a part whose answer fits is asked for"),
        pytest.param(2, 20, 22, id="of one that may not, all is"),
        pytest.param(20, 15, 35, id="nor may the whole"),
    ],
)
async def test_what_passes_the_processor_is_bounded(known: int, more: int, sent: int) -> None:
    """By the largest request: 4 KB here, and about 120 bytes for each vector."""
    bench = Batches(model=ALONE)
    for at in range(known):
        await bench.ask([f"{at}"])
    batch = [f"{at}" for at in range(known + more)]
    asked = await bench.ask(batch)
    assert len(asked.sent or ()) == sent
    assert asked.got["data"] == document(batch)["data"]
