"""The response cache on a call's way: whose answers, told how, kept when; strangers first."""

from __future__ import annotations

import json
from typing import Any

import pytest

from extproc.domain import Ended, Principal, Usage, UsageSource
from extproc.errors import Denied
from extproc.limits import Scope
from tests.cache_bench import COMPLETE, Bench
from tests.calls import EMBEDDINGS
from tests.ledgers import rules

NOTHING = Usage(0, 0, 0, UsageSource.NONE)
BOB = Principal("umbrella", "key_bob", "free")
ASIDE = Principal("acme", "key_aside", "free")
TOOLS: dict[str, Any] = {
    **COMPLETE,
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            "finish_reason": "tool_calls",
        }
    ],
}
STREAM = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"first","choices":'
    b'[{"index":0,"delta":{"role":"assistant","content":"hello"},"finish_reason":null}]}\n\n'
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"first","choices":'
    b'[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"first","choices":[],'
    b'"usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120}}\n\n'
    b"data: [DONE]\n\n"
)


@pytest.mark.parametrize(
    ("scope", "who", "shared"),
    [
        pytest.param("tenant", BOB, False, id="another tenant has another cache"),
        pytest.param("key", ASIDE, False, id="another key of the tenant has one where so written"),
        pytest.param("tenant", ASIDE, True, id="the keys of a tenant share"),
        pytest.param("shared", BOB, True, id="everybody shares where so written"),
    ],
)
async def test_whose_answers_are_told(scope: str, who: Principal, shared: bool) -> None:
    bench = Bench(scope=scope)
    await bench.keep()
    bench.gateway.identity.answer = who  # type: ignore[attr-defined]
    assert (await bench.send()).told is shared


async def test_a_kept_answer_is_no_way_around_permission() -> None:
    """The key is refused before anything is looked up, or known to be there."""
    bench = Bench()
    await bench.keep()
    bench.gateway.identity.answer = Principal("acme", "key_alice", "free", frozenset({"other"}))  # type: ignore[attr-defined]
    refused = await bench.send()
    assert (refused.status, refused.error) == (403, "permission_denied")
    bench.gateway.identity.answer = Denied("invalid_api_key", "Revoked.")  # type: ignore[attr-defined]
    assert (await bench.send()).status == 401
    assert bench.watcher.lookups == ["miss"]


async def test_the_second_call_is_told_the_firsts_answer() -> None:
    bench = Bench()
    first = await bench.send()
    assert first.said == "llm-edge; fwd=miss"
    assert first.keep_bytes == 1_048_576 - 1024
    bench.settle(first)
    bench.clock.now += 7
    second = await bench.send()
    assert (second.status, json.loads(second.body)) == (200, COMPLETE)
    headers = second.headers
    assert headers["content-type"] == "application/json"
    assert (headers["x-llm-provider"], headers["x-llm-model"]) == ("a", "first")
    assert (headers["x-llm-attempts"], headers["age"]) == ("0", "7")
    assert headers["cache-status"] == "llm-edge; hit; ttl=293"
    assert bench.watcher.lookups == ["miss", "hit"]
    assert bench.watcher.fills == ["stored"]


async def test_the_ledgers_row_of_a_told_answer() -> None:
    """A request, of the provider that once answered; nothing used, nothing paid."""
    bench = Bench()
    await bench.keep()
    told = await bench.send()
    assert len(bench.inflight) == 2  # a drain waits for its row
    row = bench.settle(told, attempts=0, first_upstream_tx_ms=None, usage="", done=False)
    assert (row.cache, row.ended, row.status) == ("hit", Ended.FINISHED, 200)
    assert (row.provider, row.served_model, row.model) == ("a", "first", "small")
    assert (row.usage, row.cost_pico_usd, row.attempts) == (NOTHING, 0, 0)
    assert (row.tenant, row.key_id) == ("acme", "key_alice")
    cut = bench.settle(told, flags=("downstream_connection_termination",))
    assert cut.ended is Ended.PARTIAL
    target = bench.gateway.health.of("a/first")
    assert target is not None  # of the first call alone
    assert target.answer_ms is not None


@pytest.mark.parametrize("kept", ["document", "stream"])
@pytest.mark.parametrize("asked", [{}, {"stream": True}], ids=["plain", "stream"])
async def test_either_form_answers_either_call(kept: str, asked: dict[str, Any]) -> None:
    bench = Bench()
    if kept == "stream":
        await bench.keep(STREAM, stream=True)
    else:
        await bench.keep()
    told = await bench.send(**asked)
    assert told.told
    if asked:
        assert told.headers["content-type"].startswith("text/event-stream")
        assert told.body.endswith(b"data: [DONE]\n\n")
        assert b'"usage":{' not in told.body  # which the caller did not ask for
    else:
        document = json.loads(told.body)
        assert document["choices"][0]["message"]["content"] == "hello"
        assert document["usage"] == COMPLETE["usage"]


async def test_what_cannot_be_told_as_asked_goes_upstream() -> None:
    """A kept document that says something no event has a place for."""
    message = {"role": "assistant", "content": "x", "audio": {"id": "a"}}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    bench = Bench()
    await bench.keep({**COMPLETE, "choices": [choice]})
    assert (await bench.send()).told
    missed = await bench.send(stream=True)
    assert not missed.told
    assert missed.keep_bytes
    assert bench.watcher.lookups == ["miss", "hit", "untellable", "miss"]


async def test_off_is_as_if_there_were_none() -> None:
    for bench in (Bench(on=False), Bench()):
        if bench.gateway.snapshot.cache.enabled:
            bench.gateway.caching = None
        sent = await bench.send()
        assert (sent.said, sent.keep_bytes) == ("", None)
        assert bench.settle(sent).cache == ""
        assert not (await bench.send()).told
        wanted = await bench.send(headers={"cache-control": "only-if-cached"})
        assert (wanted.status, wanted.error) == (504, "not_cached")
        assert bench.watcher.lookups == []


async def test_a_call_that_is_not_for_the_cache_says_why() -> None:
    bench = Bench(max_temperature=0.5)
    sent = await bench.send(temperature=0.9)
    assert (sent.said, sent.keep_bytes) == ("llm-edge; fwd=bypass; detail=temperature", None)
    wanted = await bench.send(temperature=0.9, headers={"cache-control": "only-if-cached"})
    assert (wanted.status, wanted.error) == (504, "not_cached")
    assert bench.watcher.lookups == ["bypass"]


@pytest.mark.parametrize(
    ("control", "told", "said", "collected"),
    [
        pytest.param("no-cache", False, "llm-edge; fwd=request", True, id="a fresh one, kept"),
        pytest.param("no-store", True, "llm-edge; hit; ttl=290", None, id="may be told a kept one"),
        pytest.param("no-cache, no-store", False, "llm-edge; fwd=request", False, id="neither"),
        pytest.param(
            "max-age=9", False, "llm-edge; fwd=request", True, id="too old for the caller"
        ),
        pytest.param("max-age=11", True, "llm-edge; hit; ttl=290", None, id="young enough"),
        pytest.param("only-if-cached", True, "llm-edge; hit; ttl=290", None, id="it is cached"),
    ],
)
async def test_cache_control(control: str, told: bool, said: str, collected: bool | None) -> None:
    bench = Bench()
    await bench.keep()
    bench.clock.now += 10
    got = await bench.send(headers={"cache-control": control})
    assert (got.told, got.said) == (told, said)
    if collected is not None:
        assert bool(got.keep_bytes) is collected


@pytest.mark.parametrize("control", ["only-if-cached", "only-if-cached, no-cache"])
async def test_nothing_kept_and_nothing_else_wanted(control: str) -> None:
    """504 in the caller's dialect, and no request is counted anywhere."""
    bench = Bench(rules(requests_per_day=1))
    refused = await bench.send(headers={"cache-control": control})
    assert (refused.status, refused.error) == (504, "not_cached")
    assert not (await bench.send()).told


async def test_a_fresh_answer_takes_the_place_of_the_kept_one() -> None:
    bench = Bench()
    await bench.keep()
    newer = {**COMPLETE, "id": "newer"}
    bench.clock.now += 5
    await bench.keep(newer, headers={"cache-control": "no-cache"})
    assert json.loads((await bench.send()).body)["id"] == "newer"


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        pytest.param({"requests_per_day": 3}, 3, id="counted as a request"),
        pytest.param({"requests_per_second": 0.001, "burst": 3}, 3, id="at the rate of requests"),
        pytest.param({"tokens_per_day": 200}, 9, id="takes no tokens"),
        pytest.param({"usd_per_day": 0.0001}, 9, id="costs nothing"),
        pytest.param({"concurrent_requests": 1}, 9, id="holds no slot"),
    ],
)
async def test_limits_of_told_answers(limits: dict[str, Any], most: int) -> None:
    bench = Bench(rules(**limits))
    await bench.keep(max_tokens=20)
    statuses = []
    for _ in range(most + 1):
        told = await bench.send(max_tokens=20)
        statuses.append(told.status)
    expected = [200] * (most - 1) + [429, 429] if most < 9 else [200] * 10
    assert statuses == expected
    if "requests_per_day" in limits:
        assert told.headers["x-ratelimit-remaining-requests"] == "0"


async def test_a_told_answer_says_what_is_left() -> None:
    bench = Bench(rules(requests_per_day=5, tokens_per_day=10_000))
    await bench.keep(max_tokens=20)
    told = await bench.send(max_tokens=20)
    assert told.headers["x-ratelimit-remaining-requests"] == "3"
    assert told.headers["x-ratelimit-remaining-tokens"] == str(10_000 - 120)


@pytest.mark.parametrize(
    ("document", "changes", "result"),
    [
        pytest.param(TOOLS, {}, "tool-calls", id="a call of tools"),
        pytest.param(COMPLETE, {"done": False}, "unfinished", id="one that broke off"),
        pytest.param(COMPLETE, {"status": 500}, "status", id="an error"),
        pytest.param(COMPLETE, {"status": 201}, "status", id="another success"),
        pytest.param(COMPLETE, {"answer": b""}, "too-large", id="one that was not collected"),
        pytest.param(COMPLETE, {"answer": b"{}"}, "unreadable", id="no answer at all"),
        pytest.param(COMPLETE, {"answer_form": "sse"}, "unreadable", id="a stream that is none"),
    ],
)
async def test_what_is_not_kept(document: Any, changes: dict[str, Any], result: str) -> None:
    bench = Bench()
    bench.settle(await bench.send(), document, **changes)
    assert bench.watcher.fills == [result]
    assert not (await bench.send()).told


async def test_a_fallbacks_answer_is_kept_as_the_fallbacks() -> None:
    """The next call is planned to the first choice, and asks it; one planned to the second, not."""
    bench = Bench()
    bench.settle(await bench.send(), attempts=2)
    assert not (await bench.send()).told
    pinned = await bench.send(headers={"x-llm-provider": "b"})
    assert not pinned.told  # another question, by its header
    bench.gateway.health.at("a/first").cool_until = bench.gateway.steady() + 60
    told = await bench.send()
    assert told.told
    assert told.headers["x-llm-model"] == "second"


async def test_an_answer_that_our_limit_cut_is_not_anothers() -> None:
    cut = {**COMPLETE, "choices": [{**COMPLETE["choices"][0], "finish_reason": "length"}]}  # type: ignore[index]
    bench = Bench(rules(tokens_per_day=400))
    bench.settle(await bench.send(max_tokens=1000), cut)
    bench.settle(await bench.send(max_tokens=20), cut)
    assert bench.watcher.fills == ["output-bound", "stored"]
    free = Bench()
    free.settle(await free.send(max_tokens=20), cut)
    assert free.watcher.fills == ["stored"]


async def test_an_answer_that_ended_before_a_purge_is_forgotten_with_it() -> None:
    """Though its entry comes after the purge."""
    bench = Bench()
    sent = await bench.send()
    bench.clock.now += 1
    await bench.answers.purge(tenant="acme")
    bench.settle(sent, start_ms=int(bench.clock() * 1000) - 1_500, duration_ms=1_400.0)
    assert not (await bench.send()).told


@pytest.mark.parametrize(
    ("purged", "kept"),
    [
        pytest.param({"tenant": "acme"}, False, id="its tenant"),
        pytest.param({"model": "small"}, False, id="its model"),
        pytest.param({}, False, id="everything"),
        pytest.param({"tenant": "umbrella"}, True, id="another tenant"),
        pytest.param({"tenant": "acme", "model": "large"}, True, id="another model of its tenant"),
    ],
)
async def test_an_answer_under_way_is_forgotten_with_a_purge(
    purged: dict[str, str], kept: bool
) -> None:
    """Whoever waits for it is not told it: the next one asks, and its answer is kept."""
    bench = Bench()
    bench.clock.now += 5
    began_ms = int(bench.clock() * 1000)
    first = await bench.send()
    waits = bench.begin()
    await bench.waiting(1)
    bench.clock.now += 1
    await bench.answers.purge(**purged)
    bench.clock.now += 1
    bench.settle(first, start_ms=began_ms, duration_ms=2_000.0)
    assert bench.watcher.fills == ["stored" if kept else "purged"]
    then = await waits
    assert then.told is kept
    if not kept:
        assert not (await bench.send(temperature=0.5)).told
        again = bench.begin()
        await bench.waiting(1)  # for the one that leads now
        bench.settle(then, start_ms=began_ms + 2_000, duration_ms=0.0)
        assert (await again).told
    assert (await bench.send()).told


async def test_an_entry_from_before_the_cache_was_turned_off() -> None:
    bench = Bench()
    sent = await bench.send()
    bench.gateway.snapshot = Bench(on=False).gateway.snapshot
    bench.settle(sent)
    assert bench.watcher.fills == ["off"]
    bench.gateway.caching = None
    assert bench.settle(sent).cache == ""


async def test_the_digest_is_told_for_debugging_alone() -> None:
    bench = Bench(debug_key=True)
    sent = await bench.send()
    bench.settle(sent)
    _, _, key = sent.said.partition("key=")
    assert len(json.loads(key)) == 64
    assert key in (await bench.send()).said


async def test_embeddings_are_kept_too() -> None:
    bench = Bench()
    raw = json.dumps({"model": "small", "input": "a"}).encode()
    item = {"object": "embedding", "index": 0, "embedding": [0.5]}
    document = {"object": "list", "data": [item], "model": "first", "usage": {"prompt_tokens": 1}}
    path = f"/v1{EMBEDDINGS.suffix}"
    bench.settle(await bench.send(path, raw), document)
    bench.clock.now += 3599
    told = await bench.send(path, raw)
    assert told.said == "llm-edge; hit; ttl=1"
    bench.clock.now += 1
    assert not (await bench.send(path, raw)).told


async def test_an_anthropic_call_is_told_its_id() -> None:
    bench = Bench()
    raw = json.dumps(
        {"model": "small", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    ).encode()
    document = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "first",
        "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 1},
    }
    bench.settle(await bench.send("/v1/messages", raw), document)
    told = await bench.send("/v1/messages", raw, headers={"x-request-id": "mine"})
    assert json.loads(told.body) == document
    assert told.headers["request-id"] == "mine"


async def test_a_rate_by_address_counts_told_answers() -> None:
    bench = Bench(rules(Scope.IP, requests_per_day=1))
    await bench.keep(headers={"x-forwarded-for": "1.1.1.1"})
    assert (await bench.send(headers={"x-forwarded-for": "1.1.1.1"})).status == 429
    assert (await bench.send(headers={"x-forwarded-for": "2.2.2.2"})).status == 200


async def test_a_call_for_the_cache_takes_one_step() -> None:
    """The lane answers it inside its read callback, hit or miss."""
    bench = Bench(rules(requests_per_day=100))
    for told in (False, True):
        sent = bench.send()
        with pytest.raises(StopIteration) as done:
            sent.send(None)
        assert done.value.value.told is told
        if not told:
            bench.settle(done.value.value)
