"""Failing providers behind the real gateway: who is tried, who is left alone, what it costs."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from .broken import Broken
from .failing import (
    BROKEN,
    CASES,
    CHAT,
    FAILURES,
    GOOD,
    SIMS,
    Case,
    call_all,
    configure,
    model,
)
from .stack import Stack, start_stack, wait_for


@pytest.fixture(scope="module")
def broken() -> Iterator[dict[str, Broken]]:
    """Start the providers that are broken below HTTP."""
    with ExitStack() as stack:
        yield {how: stack.enter_context(Broken(how)) for how in BROKEN}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, broken: dict[str, Broken]) -> Iterator[Stack]:
    """Start a gateway with short limits and a model for each way to fail."""

    def change(config: dict[str, Any]) -> None:
        configure(config, broken)
        models = config["models"]
        first = {"reset": "reset-openai", "dead": "refused-openai"}
        for name in ("limited", "limited-claude", "reset", "dead"):
            models[f"after-{name}"] = model((first.get(name, name), f"after-{name}"), ("a", "good"))
        for name in ("limited-briefly", "limited-for-long"):
            models[name] = model(("b", name), ("a", "good"))
        for name in ("gone", "picky", "hasty"):
            models[name] = model(("dead" if name == "gone" else "b", name))
        for name in GOOD.values():
            models[f"silent-{name}"] = model((name, "silent"), ("c", "good"))
            models[f"silent-watched-{name}"] = model((f"watched-{name}", "silent"), ("c", "good"))
        models["fast"] = model(("a", "fast"), ("b", "fast"), ("c", "fast"), strategy="fastest")

    directory = tmp_path_factory.mktemp("failover")
    stack = start_stack(directory, change=change, simulated=SIMS)
    yield stack
    stack.stop()


@pytest.fixture(scope="module")
def api_key(running: Stack) -> str:
    """Return a key without limits."""
    return running.create_key("failover")


@dataclass
class Matrix:
    """What came of every case: the answer, the attempts each provider saw, the rows of the bill."""

    answers: dict[str, httpx.Response]
    sims: dict[str, list[dict[str, Any]]]
    rows: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def matrix(running: Stack, api_key: str) -> Matrix:
    """Make every call of the matrix once, before anything else has failed."""
    running.clear_sims()
    answers = asyncio.run(call_all(running, api_key))
    sims = {name: running.sim_log(name) for name in SIMS}
    names = {case.name for case in CASES}

    def rows() -> list[dict[str, Any]]:
        return [row for row in running.rows() if row["request_id"] in names]

    wait_for("every bill", lambda: len(rows()) >= len(CASES))
    billed: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for row in rows():
        billed[row["request_id"]].append(row)
    return Matrix(answers, sims, billed)


@pytest.fixture
def client(running: Stack, api_key: str) -> Iterator[httpx.Client]:
    """Return a client of the gateway whose providers are well."""
    running.clear_sims()
    headers = {"authorization": f"Bearer {api_key}"}
    with httpx.Client(base_url=running.base, headers=headers, timeout=20) as made:
        yield made


def body(model: str, **more: Any) -> dict[str, Any]:
    """Return a chat."""
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}


def row_of(stack: Stack, request_id: str) -> dict[str, Any]:
    """Return the one row a call was billed with."""
    query = "SELECT * FROM outcomes WHERE request_id = ?"
    rows = wait_for("the bill", lambda: stack.rows(query, request_id))
    assert len(rows) == 1
    return rows[0]


def states(stack: Stack) -> dict[str, float]:
    """Return the breaker states by provider, as metrics tell them."""
    lines = stack.admin_get("/metrics").text.splitlines()
    pairs = [line.rpartition(" ") for line in lines if line.startswith("llm_edge_breaker_state{")]
    return {name.partition('"')[2].partition('"')[0]: float(value) for name, _, value in pairs}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_good_answer_and_one_charge_whatever_fails_first(
    matrix: Matrix, broken: dict[str, Broken], case: Case
) -> None:
    """Refused, reset, silent, in error, limited, no HTTP, no TLS: the next target answers.

    Whoever speaks what: the answer is whole and in its caller's dialect, each provider saw one
    attempt at most, and the bill has one row, of who answered.
    """
    answer, good = matrix.answers[case.name], GOOD[case.second]
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-llm-provider"] == good
    assert answer.headers["x-llm-attempts"] == "2"
    assert text_of(case, answer).split() == [f"tok{n}" for n in range(16)]
    seen = {
        name: [one for one in log if one["model"] == case.name] for name, log in matrix.sims.items()
    }
    attempts = Counter({name: len(found) for name, found in seen.items() if found})
    first = {case.provider: 1} if FAILURES[case.failure] is not None else {}
    assert attempts == {good: 1, **first}
    if case.failure == "reset":
        assert sum(case.name.encode() in one for one in broken["reset"].seen) == 1
    (row,) = matrix.rows[case.name]
    assert (row["provider"], row["attempts"], row["ended"]) == (good, 2, "finished")
    prompt = seen[good][0]["prompt_tokens"]
    assert (row["input"], row["output"], row["usage_source"]) == (prompt, 16, "provider")
    assert row["cost_pico_usd"] == prompt * 10**6 + 16 * 2 * 10**6


def text_of(case: Case, answer: httpx.Response) -> str:
    """Return what an answer says, which must be whole and in its caller's dialect."""
    if case.kind == "plain":
        found = answer.json()
        if case.caller == "openai":
            return str(found["choices"][0]["message"]["content"])
        return "".join(block["text"] for block in found["content"])
    lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    if case.caller == "openai":
        assert lines.pop() == "data: [DONE]"
        chunks = [json.loads(line[6:]) for line in lines]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)
    events = [json.loads(line[6:]) for line in lines]
    assert [events[0]["type"], events[-1]["type"]] == ["message_start", "message_stop"]
    deltas = [one["delta"] for one in events if one["type"] == "content_block_delta"]
    return "".join(delta["text"] for delta in deltas)


def test_a_thousand_calls_at_a_dead_provider_cost_a_handful_of_attempts(
    running: Stack, client: httpx.Client, broken: dict[str, Broken]
) -> None:
    """Five to open the breaker, then one probe after 0.1, 0.2, 0.4 and so on seconds."""
    before, started = broken["reset"].count, time.monotonic()
    content = body("after-reset", max_tokens=1)
    for _ in range(1000):
        assert client.post(CHAT, json=content).status_code == 200
    probes, wait, elapsed = 0, 0.1, time.monotonic() - started
    while elapsed > wait:
        probes, elapsed, wait = probes + 1, elapsed - wait, min(wait * 2, 30)
    attempts = broken["reset"].count - before
    print(f"1000 calls: {attempts} attempts, of which up to {probes} probes")
    assert 5 <= attempts <= 5 + probes
    assert states(running)["reset-openai"] > 0


def test_a_first_target_without_a_credential_does_not_take_the_model_down(
    running: Stack, client: httpx.Client
) -> None:
    """Envoy answers itself and tries no other, so its breaker has to lead past it."""
    assert client.post(CHAT, json=body("after-keyless")).status_code == 503

    def served() -> bool:
        return client.post(CHAT, json=body("after-keyless")).status_code == 200

    wait_for("the breaker to open", served)
    assert states(running)["keyless"] > 0


def test_when_every_breaker_is_open_the_caller_is_told_when_to_come_back(
    running: Stack, client: httpx.Client
) -> None:
    """From the processor, without an attempt: 503 with Retry-After in the caller's shape."""

    def refused() -> httpx.Response | None:
        answer = client.post(CHAT, json=body("gone"))
        return answer if answer.json()["error"]["code"] == "no_healthy_provider" else None

    answer = wait_for("the breaker to open", refused)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert states(running)["dead"] > 0


def test_a_tenants_bad_requests_and_short_limits_are_not_held_against_a_provider(
    running: Stack, client: httpx.Client
) -> None:
    """Neither 400s nor a time limit the caller chose open a breaker."""
    running.behave("b", status=400)
    for _ in range(20):
        assert client.post(CHAT, json=body("picky")).status_code == 400
    running.behave("b", latency_ms=5000)
    for _ in range(8):
        answer = client.post(CHAT, json=body("hasty"), headers={"x-llm-timeout-ms": "20"})
        assert answer.status_code == 504
    client.post(CHAT, json=body("after-dead"), headers={"x-request-id": "last"})
    row_of(running, "last")  # by now the log of all before has been read
    running.clear_sims()
    for name in ("picky", "hasty"):
        assert client.post(CHAT, json=body(name)).status_code == 200


@pytest.mark.parametrize("retry_after", [None, 30], ids=["without", "with"])
def test_a_limited_provider_is_left_alone_for_as_long_as_it_asks(
    running: Stack, client: httpx.Client, retry_after: int | None
) -> None:
    """A 429 cools its target down by Retry-After; without one the next call tries it again."""
    model = "limited-briefly" if retry_after is None else "limited-for-long"
    behaviour = {"status": 429}
    if retry_after is not None:
        behaviour["retry_after"] = retry_after
    running.behave("b", **behaviour)
    attempts = []
    for _ in range(3):
        answer = client.post(CHAT, json=body(model))
        assert answer.status_code == 200
        attempts.append(answer.headers["x-llm-attempts"])
    assert attempts[1:] == (["2", "2"] if retry_after is None else ["1", "1"])


@pytest.mark.parametrize("name", ["limited", "limited-claude"])
def test_reset_headers_count_where_there_is_no_retry_after(
    client: httpx.Client, broken: dict[str, Broken], name: str
) -> None:
    """OpenAI's and Anthropic's: the limit that is used up says a minute; the caller sees none."""
    before = broken[name].count
    answers = [client.post(CHAT, json=body(f"after-{name}")) for _ in range(3)]
    assert [one.headers["x-llm-attempts"] for one in answers] == ["2", "1", "1"]
    assert broken[name].count == before + 1
    # The limits that are told are the gateway's own.
    assert "1m0s" not in answers[0].headers.values()
    theirs = ("anthropic-ratelimit-", "x-llm-resets")
    assert not [key for key in answers[0].headers if key.startswith(theirs)]


SILENT = [  # the caller's dialect or endpoint, and who falls silent
    pytest.param("openai", "a", id="an OpenAI stream passed through"),
    pytest.param("anthropic", "claude", id="an Anthropic stream passed through"),
    pytest.param("openai", "claude", id="an Anthropic stream translated"),
    pytest.param("anthropic", "a", id="an OpenAI stream translated"),
    pytest.param("openai", "watched-a", id="a chat passed through and watched"),
    pytest.param("completions", "watched-a", id="a legacy completion passed through and watched"),
    pytest.param("responses", "watched-a", id="a response passed through and watched"),
    pytest.param("anthropic", "watched-claude", id="a message passed through and watched"),
]
BREAKS = (httpx.TransportError, httpx2.TransportError, openai.APIConnectionError)


@pytest.fixture(scope="module")
def silences(running: Stack, api_key: str) -> dict[str, tuple[int, Exception]]:
    """Read a stream of each kind, all at once, with the official clients, until it breaks.

    By the request's id: how many events were seen, and what the client raised.
    """
    running.clear_sims()
    found: dict[str, tuple[int, Exception]] = {}
    said: Any = [{"role": "user", "content": "hi"}]

    async def read(name: str, opened: Any) -> None:
        seen = 0
        try:
            async for _ in await opened:
                seen += 1
        except (openai.APIError, anthropic.APIError, *BREAKS) as error:
            found[name] = (seen, error)

    async def all_at_once() -> None:
        async with (
            AsyncOpenAI(base_url=f"{running.base}/v1", api_key=api_key, max_retries=0) as chat,
            AsyncAnthropic(base_url=running.base, api_key=api_key, max_retries=0) as claude,
        ):
            calls = []
            for caller, provider in [one.values for one in SILENT]:
                name = f"silent-{caller}-{provider}"
                fields: Any = {"model": f"silent-{provider}", "stream": True}
                fields["extra_headers"] = {"x-request-id": name}
                if caller == "openai":
                    calls.append(read(name, chat.chat.completions.create(messages=said, **fields)))
                elif caller == "completions":
                    calls.append(read(name, chat.completions.create(prompt="hi", **fields)))
                elif caller == "responses":
                    calls.append(read(name, chat.responses.create(input="hi", **fields)))
                else:
                    messages = claude.messages.create(max_tokens=50, messages=said, **fields)
                    calls.append(read(name, messages))
            await asyncio.gather(*calls)

    for provider in ("a", "claude"):
        running.behave(provider, stall_after_chunks=6)
    asyncio.run(all_at_once())
    return found


@pytest.mark.parametrize(("caller", "provider"), SILENT)
def test_a_stream_that_falls_silent_ends_and_is_charged_for_what_was_seen(
    running: Stack, silences: dict[str, tuple[int, Exception]], caller: str, provider: str
) -> None:
    """A translated or watched one by an error event in the caller's dialect, else by a break.

    In neither case does anybody else answer.
    """
    name = f"silent-{caller}-{provider}"
    seen, error = silences[name]
    assert seen >= 3
    row = row_of(running, name)
    if GOOD.get(caller) == provider:
        assert isinstance(error, BREAKS)
        assert "stream_idle_timeout" in row["flags"]
    else:
        # Neither is the class of a broken connection.
        raised = anthropic.APIStatusError if caller == "anthropic" else openai.APIError
        assert type(error) is raised
        assert "The provider broke off its answer." in str(error)
        assert "stream_idle_timeout" not in row["flags"]
    assert (row["ended"], row["usage_source"], row["provider"]) == ("partial", "partial", provider)
    assert row["attempts"] == 1
    assert row["output"] > 0
    assert row["cost_pico_usd"] > 0


def test_who_fell_silent_is_let_go_of(running: Stack, silences: dict[str, Any]) -> None:
    """No connection to a provider outlives the stream that was ended."""
    assert silences

    def busy() -> dict[str, int]:
        stats = running.envoy_stats(
            r"cluster\.(watched-)?(a|claude)(\+[a-z]+)?\.upstream_rq_active$"
        )
        return {name: count for name, count in stats.items() if count}

    wait_for("the providers to be let go of", lambda: not busy())


def test_fastest_goes_to_the_quickest_and_follows_a_swap(
    running: Stack, client: httpx.Client
) -> None:
    """At 50, 100 and 400 ms: 80% of 50 calls, and after the swap back within 20."""

    def ask(count: int) -> list[str]:
        content = body("fast", max_tokens=4)
        return [client.post(CHAT, json=content).headers["x-llm-provider"] for _ in range(count)]

    def pace(**delays: int) -> None:
        for name, delay in delays.items():
            running.behave(name, latency_ms=delay)

    pace(a=400, b=100, c=50)
    before = ask(50)
    pace(a=50, b=100, c=400)
    after = ask(25)
    print("".join(before), "".join(after))
    print(f"before the swap {before.count('c')} of 50; back after {after.index('a')} calls")
    assert before.count("c") >= 40
    assert after.index("a") < 20
    assert after[-3:].count("a") >= 2
