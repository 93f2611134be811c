"""Failing providers behind the real gateway: who is tried, who is left alone, what it costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from .broken import Broken
from .stack import Stack, start_stack, wait_for

CHAT = "/v1/chat/completions"
PRICE = {"input": 1, "output": 2}
FIRST_TOKEN_MS = 600
FAILURES = {  # of the first target: provider, and behaviour of a simulated one
    "refused": ("dead", {}),
    "reset": ("reset", {}),
    "stall": ("b", {"latency_ms": 60_000}),
    "500": ("b", {"status": 500}),
    "503": ("b", {"status": 503}),
    "429": ("b", {"status": 429}),
    "429-later": ("b", {"status": 429, "retry_after": 30}),
    "garbage": ("garbage", {}),
    "tls": ("tls", {}),
}


@pytest.fixture(scope="module")
def broken() -> Iterator[dict[str, Broken]]:
    """Start the providers that are broken below HTTP."""
    with ExitStack() as stack:
        yield {how: stack.enter_context(Broken(how)) for how in ("reset", "garbage", "limited")}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, broken: dict[str, Broken]) -> Iterator[Stack]:
    """Start a gateway with short limits and a model for each way to fail."""

    def change(config: dict[str, Any]) -> None:
        for how, one in broken.items():
            endpoint = f"http://127.0.0.1:{one.port}/v1"
            config["providers"][how] = {"dialect": "openai", "endpoint": endpoint}
        endpoint = f"https://127.0.0.1:{broken['garbage'].port}/v1"
        config["providers"]["tls"] = {"dialect": "openai", "endpoint": endpoint}
        for provider in config["providers"].values():
            provider["max_retries"] = 0
        del config["breaker"]
        config["timeouts"] = {
            "first_token": f"{FIRST_TOKEN_MS}ms",
            "completion": "2s",
            "streaming": "4s",
            "embedding": "1s",
            "idle": "1s",
        }

        def model(*targets: tuple[str, str], **more: Any) -> dict[str, Any]:
            return {
                "targets": [
                    {"provider": name, "model": at, "usd_per_million": PRICE}
                    for name, at in targets
                ],
                **more,
            }

        for kind in ("plain", "stream"):
            for name, (provider, _) in FAILURES.items():
                one = f"{name}-{kind}"
                config["models"][one] = model((provider, one), ("a", "good"))
        for name in ("limited", "reset", "dead"):
            config["models"][f"after-{name}"] = model((name, f"after-{name}"), ("a", "good"))
        for name in ("limited-briefly", "limited-for-long"):
            config["models"][name] = model(("b", name), ("a", "good"))
        for name in ("gone", "picky", "hasty"):
            config["models"][name] = model(("dead" if name == "gone" else "b", name))
        config["models"]["fast"] = model(
            ("a", "fast"), ("b", "fast"), ("c", "fast"), strategy="fastest"
        )

    stack = start_stack(tmp_path_factory.mktemp("failover"), change=change)
    yield stack
    stack.stop()


@pytest.fixture(scope="module")
def api_key(running: Stack) -> str:
    """Return a key without limits."""
    return running.create_key("failover")


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


@pytest.mark.parametrize("kind", ["plain", "stream"])
@pytest.mark.parametrize("failure", FAILURES)
def test_one_good_answer_and_one_charge_whatever_fails_first(
    running: Stack, client: httpx.Client, failure: str, kind: str
) -> None:
    """Refused, reset, silent, in error, limited, no HTTP, no TLS: the next target answers."""
    provider, behaviour = FAILURES[failure]
    if behaviour:
        running.behave(provider, **behaviour)
    name = f"{failure}-{kind}"
    content = body(name, stream=kind == "stream")
    answer = client.post(CHAT, json=content, headers={"x-request-id": name})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-llm-provider"] == "a"
    assert answer.headers["x-llm-attempts"] == "2"
    if kind == "stream":
        assert answer.text.count("data: [DONE]") == 1
    assert [one["model"] for one in running.sim_log("a")] == ["good"]
    if behaviour:
        assert [one["model"] for one in running.sim_log("b")] == [name]
    row = row_of(running, name)
    assert (row["provider"], row["attempts"], row["ended"]) == ("a", 2, "finished")
    sent = running.sim_log("a")[0]["usage_sent"]
    assert row["cost_pico_usd"] == sent["prompt_tokens"] * 10**6 + sent["completion_tokens"] * 2 * (
        10**6
    )


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
    assert states(running)["reset"] > 0


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


def test_openais_reset_headers_count_where_there_is_no_retry_after(
    client: httpx.Client, broken: dict[str, Broken]
) -> None:
    """The limit that is used up says a minute; the caller sees none of it."""
    before = broken["limited"].count
    answers = [client.post(CHAT, json=body("after-limited")) for _ in range(3)]
    assert [one.headers["x-llm-attempts"] for one in answers] == ["2", "1", "1"]
    assert broken["limited"].count == before + 1
    # The limits that are told are the gateway's own.
    assert "1m0s" not in answers[0].headers.values()
    assert "x-llm-resets" not in answers[0].headers


def test_a_stream_that_falls_silent_ends_and_is_charged_for_what_was_seen(
    running: Stack, client: httpx.Client
) -> None:
    """By the idle limit, as a break the client can see, and nobody else answers."""
    running.behave("a", stall_after_chunks=3)
    content = body("after-dead", stream=True)
    seen = b""

    def read() -> None:
        nonlocal seen
        with client.stream("POST", CHAT, json=content, headers={"x-request-id": "mute"}) as answer:
            for piece in answer.iter_bytes():
                seen += piece

    with pytest.raises(httpx.RemoteProtocolError):
        read()
    assert seen.count(b"data: ") >= 3
    assert b"[DONE]" not in seen
    row = row_of(running, "mute")
    assert (row["ended"], row["usage_source"]) == ("partial", "partial")
    assert "stream_idle_timeout" in row["flags"]
    assert row["output"] > 0
    assert row["cost_pico_usd"] > 0
    assert running.sim_log("b") == running.sim_log("c") == []


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
