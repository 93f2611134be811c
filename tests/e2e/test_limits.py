"""Limits on the real Envoy: exact for plain answers and streams, told to clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anthropic
import httpx
import openai
import pytest

from .stack import Stack, start_stack, wait_for

CHAT = "/v1/chat/completions"
GOOD: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 20,
}
ADMIN_VARIABLE, ADMIN_TOKEN = "LLM_EDGE_TEST_ADMIN_TOKEN", "t" * 32
SLOWLY = 0.001  # requests per second: nothing comes back during a test
LIMIT_HEADERS = (
    *("ratelimit-policy", "ratelimit", "x-ratelimit-limit-requests", "x-ratelimit-limit-tokens"),
    *("x-ratelimit-remaining-requests", "x-ratelimit-remaining-tokens"),
    *("x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"),
)


def tiers(config: dict[str, Any]) -> None:
    """Configure a tier for each thing a test is about."""
    nothing: dict[str, Any] = dict.fromkeys(("requests_per_second", "burst", "concurrent_requests"))
    config["admin"]["token"] = {"env": ADMIN_VARIABLE}
    config["tiers"] = {
        "bursty": {"requests_per_second": SLOWLY, "burst": 7},
        "daily": {"requests_per_day": 9},
        "single": {"concurrent_requests": 1},
        "counted": {"tokens_per_day": 10_000_000, "requests_per_day": 1_000},
        # 60 bytes of prompt and framing and 20 tokens at the default price: a hard budget.
        "poor": {"usd_per_month": 0.0001},
        "enterprise": {**nothing},
    }


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Start a stack whose tiers are small."""
    directory = tmp_path_factory.mktemp("limits")
    running = start_stack(directory, change=tiers, env={ADMIN_VARIABLE: ADMIN_TOKEN})
    yield running
    running.stop()


def key_of(stack: Stack, name: str, tier: str) -> dict[str, str]:
    """Return the headers of a new key."""
    return {"authorization": f"Bearer {stack.create_key(name, tier=tier)}"}


def test_explaining_tells_what_is_left_and_takes_none_of_it(limited: Stack) -> None:
    """On the running gateway's admin port and from the command line alike."""
    headers = key_of(limited, "explained", "daily")
    listed = json.loads(limited.command("keys", "list", "--json"))
    key_id = next(one["key_id"] for one in listed if one["name"] == "explained")
    request = limited.directory / "request.json"
    request.write_text(json.dumps(GOOD))

    def told(token: str = ADMIN_TOKEN) -> httpx.Response:
        url = f"http://127.0.0.1:{limited.admin_port}/admin/explain"
        asked = {"key_id": key_id, "body": GOOD}
        return httpx.post(url, json=asked, headers={"authorization": f"Bearer {token}"})

    def day(found: Any) -> Any:
        (one,) = found["limits"]
        return one["name"], one["limit"], one["used"], one["left"], one["refuses"]

    assert told("x" * 32).status_code == 401
    for _ in range(3):
        assert httpx.post(f"{limited.base}{CHAT}", json=GOOD, headers=headers).status_code == 200
    before = limited.sim_log("a")
    for _ in range(10):
        found = told().json()
        assert day(found) == ("key/requests_per_day", 9, 3, 6, False)
    printed = json.loads(limited.command("explain", str(request), "--key", key_id))
    assert day(printed) == day(found)
    assert found["identity"]["tenant"] == "explained"
    assert [one["provider"] for one in found["plan"]["attempts"]] == ["a"]
    assert limited.sim_log("a") == before
    for _ in range(6):
        assert httpx.post(f"{limited.base}{CHAT}", json=GOOD, headers=headers).status_code == 200
    found, refused = told().json(), httpx.post(f"{limited.base}{CHAT}", json=GOOD, headers=headers)
    assert day(found) == ("key/requests_per_day", 9, 9, 0, True)
    assert found["refusal"]["status"] == refused.status_code == 429
    words = refused.json()["error"]["message"].partition(" Try again")[0]
    assert found["refusal"]["message"].startswith(words)


async def all_at_once(stack: Stack, headers: dict[str, str], count: int, **more: Any) -> list[int]:
    """Send so many calls at once and return their statuses; streams are read to the end."""

    async def one(client: httpx.AsyncClient) -> int:
        async with client.stream("POST", CHAT, json={**GOOD, **more}, headers=headers) as answer:
            data = b"".join([chunk async for chunk in answer.aiter_raw()])
            if more.get("stream") and answer.status_code == 200:
                assert data.endswith(b"data: [DONE]\n\n")
            return answer.status_code

    async with httpx.AsyncClient(base_url=stack.base, timeout=30) as client:
        return await asyncio.gather(*(one(client) for _ in range(count)))


@pytest.mark.parametrize("stream", [False, True], ids=["plain answers", "streams"])
@pytest.mark.parametrize(("tier", "limit"), [("bursty", 7), ("daily", 9)])
async def test_exactly_the_limit_is_let_in(
    limited: Stack, tier: str, limit: int, stream: bool
) -> None:
    """Forty calls at once, the first ever of their key among them."""
    headers = key_of(limited, f"exact-{tier}-{stream}", tier)
    statuses = await all_at_once(limited, headers, 40, stream=stream)
    assert sorted(statuses) == [200] * limit + [429] * (40 - limit)


@pytest.mark.parametrize("stream", [False, True], ids=["plain answers", "streams"])
def test_one_at_a_time_is_never_refused_by_its_own_last_call(limited: Stack, stream: bool) -> None:
    """A slot is free when the answer has ended, a flush of the log later; the next call waits."""
    headers = key_of(limited, f"single-{stream}", "single")
    with httpx.Client(base_url=limited.base, headers=headers) as client:
        body = {**GOOD, "stream": stream}
        statuses = [client.post(CHAT, json=body).status_code for _ in range(25)]
    assert statuses == [200] * 25


async def test_a_slot_is_held_to_the_end_of_the_stream(limited: Stack) -> None:
    """Headers do not free it: a second call is refused while the stream runs, let in after."""
    headers = key_of(limited, "held", "single")
    slow = {**headers, "x-sim-output-tokens": "40", "x-sim-chunk-ms": "25"}
    async with httpx.AsyncClient(base_url=limited.base, timeout=30) as client:
        body = {**GOOD, "stream": True, "max_tokens": 40}
        async with client.stream("POST", CHAT, json=body, headers=slow) as answer:
            pieces = answer.aiter_raw()
            await anext(pieces)
            refused = await client.post(CHAT, json=GOOD, headers=headers)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "concurrency_limit_exceeded"
            assert refused.headers["retry-after"] == "1"
            async for _ in pieces:
                pass
        assert (await client.post(CHAT, json=GOOD, headers=headers)).status_code == 200
        # A client that leaves gives its slot back too.
        async with client.stream("POST", CHAT, json=body, headers=slow) as answer:
            await anext(answer.aiter_raw())
        assert (await client.post(CHAT, json=GOOD, headers=headers)).status_code == 200


def test_the_clients_library_reads_the_refusal(limited: Stack) -> None:
    """OpenAI's client raises RateLimitError with the limit, the wait and the headers."""
    key = limited.create_key("library", tier="daily")
    client = openai.OpenAI(base_url=f"{limited.base}/v1", api_key=key, max_retries=0)
    for left in range(8, -1, -1):
        answer = client.chat.completions.with_raw_response.create(**GOOD)
        assert answer.headers["x-ratelimit-limit-requests"] == "9"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        assert answer.headers["ratelimit-policy"] == '"key/requests_per_day";q=9;w=86400'
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(**GOOD)
    error = caught.value
    assert error.code == "rate_limit_exceeded"
    assert "9 requests per day (key/requests_per_day)" in error.message
    told = error.response.headers
    assert 0 < int(told["retry-after"]) <= 86_400
    assert int(told["retry-after-ms"]) <= int(told["retry-after"]) * 1000
    assert told["x-ratelimit-remaining-requests"] == "0"
    assert "key/requests_per_day" in limited.admin_get("/metrics").text


@pytest.mark.parametrize("stream", [False, True], ids=["a plain answer", "a stream"])
def test_every_answer_says_what_is_left(limited: Stack, stream: bool) -> None:
    """Envoy adds the headers from the plan's metadata; an unlimited caller gets none."""
    headers = key_of(limited, f"told-{stream}", "counted")
    answer = httpx.post(f"{limited.base}{CHAT}", json={**GOOD, "stream": stream}, headers=headers)
    assert [name for name in LIMIT_HEADERS if name not in answer.headers] == []
    assert answer.headers["x-ratelimit-limit-tokens"] == "10000000"
    assert answer.headers["x-llm-provider"] == "a"
    free = key_of(limited, f"untold-{stream}", "enterprise")
    answer = httpx.post(f"{limited.base}{CHAT}", json={**GOOD, "stream": stream}, headers=free)
    assert answer.status_code == 200
    assert [name for name in LIMIT_HEADERS if name in answer.headers] == []


def ends_within(text: str, seconds: float) -> bool:
    """Say whether an RFC 3339 time in UTC is ahead, by no more than that."""
    left = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC) - datetime.now(UTC)
    return timedelta() < left <= timedelta(seconds=seconds + 1)


@pytest.mark.parametrize("stream", [False, True], ids=["a plain answer", "a stream"])
@pytest.mark.parametrize("model", ["claude", "gpt-4o-mini"], ids=["passed through", "translated"])
def test_anthropics_callers_are_told_in_their_headers(
    limited: Stack, model: str, stream: bool
) -> None:
    """On /v1/messages: limit, remaining, and the reset as a time, of requests and of tokens."""
    key = limited.create_key(f"claude-{model}-{stream}", tier="counted")
    body: Any = {"model": model, "max_tokens": 20, "messages": GOOD["messages"]}
    with anthropic.Anthropic(base_url=limited.base, api_key=key, max_retries=0) as client:
        create = client.messages.with_raw_response.create
        told = [create(**body, stream=stream).headers for _ in range(2)]
    for number, headers in enumerate(told):
        assert headers["anthropic-ratelimit-requests-limit"] == "1000"
        assert headers["anthropic-ratelimit-requests-remaining"] == str(999 - number)
        assert headers["anthropic-ratelimit-tokens-limit"] == "10000000"
        left = int(headers["anthropic-ratelimit-tokens-remaining"])
        assert 10_000_000 - 200 < left < 10_000_000
        for unit in ("requests", "tokens"):
            assert ends_within(headers[f"anthropic-ratelimit-{unit}-reset"], 86_400)
        ours = {name for name in headers if "ratelimit-" in name}
        assert {name.split("-")[0] for name in ours} == {"anthropic", "ratelimit"}
        assert headers["ratelimit-policy"].startswith('"key/requests_per_day";q=1000;w=86400')


def test_anthropics_library_reads_the_refusal(limited: Stack) -> None:
    """RateLimitError in Anthropic's shape, with nothing remaining and when to come again."""
    key = limited.create_key("claude-refused", tier="daily")
    body: Any = {"model": "claude", "max_tokens": 20, "messages": GOOD["messages"]}
    with anthropic.Anthropic(base_url=limited.base, api_key=key, max_retries=0) as client:
        for left in range(8, -1, -1):
            told = client.messages.with_raw_response.create(**body).headers
            assert told["anthropic-ratelimit-requests-remaining"] == str(left)
            assert "anthropic-ratelimit-tokens-limit" not in told  # nothing limits them
        with pytest.raises(anthropic.RateLimitError) as caught:
            client.messages.create(**body)
    refused = caught.value
    assert isinstance(refused.body, dict)
    assert refused.body["error"]["type"] == "rate_limit_error"
    assert "9 requests per day (key/requests_per_day)" in refused.body["error"]["message"]
    headers = refused.response.headers
    assert headers["anthropic-ratelimit-requests-limit"] == "9"
    assert headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert ends_within(headers["anthropic-ratelimit-requests-reset"], 86_400)
    assert 0 < int(headers["retry-after"]) <= 86_400
    assert not [name for name in headers if name.startswith("x-ratelimit-")]


async def test_the_counters_end_as_the_providers_truth(limited: Stack) -> None:
    """After quiet the tokens left are the limit less what the provider says it used."""
    limited.clear_sims()
    headers = key_of(limited, "truth", "counted")
    for stream in (False, True):
        statuses = await all_at_once(limited, headers, 30, stream=stream)
        assert statuses == [200] * 30
    limited.rows_for("truth", 60)
    used = sum(r["prompt_tokens"] + r["output_tokens_sent"] for r in limited.sim_log("a"))

    def settled() -> bool:
        last = httpx.post(
            f"{limited.base}{CHAT}", json={**GOOD, "model": "nobody"}, headers=headers
        )
        assert last.status_code == 404
        probe = httpx.post(f"{limited.base}{CHAT}", json=GOOD, headers=headers)
        left = int(probe.headers["x-ratelimit-remaining-tokens"])
        log = limited.sim_log("a")
        before = sum(r["prompt_tokens"] + r["output_tokens_sent"] for r in log[:-1])
        reserved = 10_000_000 - left - before
        # What the last call reserved: its estimate of bytes by four, and its bound.
        return reserved == -(-len(probe.request.content) // 4) + 20

    assert used > 0
    wait_for("every call to be settled", settled)


def test_a_budget_cannot_be_overspent(limited: Stack) -> None:
    """The bound of the output is lowered to what is left, then nothing is left."""
    limited.clear_sims()
    headers = key_of(limited, "poor", "poor")
    body = {k: v for k, v in GOOD.items() if k != "max_tokens"}
    greedy = {**headers, "x-sim-output-tokens": "100000"}
    answer = httpx.post(f"{limited.base}{CHAT}", json=body, headers=greedy, timeout=30)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    limited.rows_for("poor", 1)
    statuses = [
        httpx.post(f"{limited.base}{CHAT}", json=body, headers=greedy).status_code for _ in range(5)
    ]
    assert statuses[-1] == 429
    refused = httpx.post(f"{limited.base}{CHAT}", json=body, headers=greedy)
    assert refused.json()["error"]["code"] == "insufficient_quota"
    spent = sum(
        r["prompt_tokens"] * 150_000 + r["output_tokens_sent"] * 600_000
        for r in limited.sim_log("a")
    )
    assert 0 < spent <= 100_000_000


def test_a_provider_that_fails_costs_nothing(limited: Stack) -> None:
    """A refund of everything where no byte of an answer came."""
    headers = {**key_of(limited, "failed", "daily"), "x-sim-status": "503"}
    for calls in range(1, 13):  # more than the 9 of a day
        answer = httpx.post(f"{limited.base}{CHAT}", json=GOOD, headers=headers)
        assert answer.status_code == 503
        limited.rows_for("failed", calls)  # until it is settled
    del headers["x-sim-status"]
    answer = httpx.post(f"{limited.base}{CHAT}", json=GOOD, headers=headers)
    assert answer.headers["x-ratelimit-remaining-requests"] == "8"


@pytest.mark.parametrize(
    ("hops", "ours", "spoofs"),
    [
        pytest.param(0, None, ["1.1.1.1", "2.2.2.2, 3.3.3.3", "::1"], id="no proxy is trusted"),
        pytest.param(1, "9.9.9.9", ["1.1.1.1", "2.2.2.2, 3.3.3.3"], id="one proxy is"),
    ],
)
def test_an_address_cannot_be_made_up(
    fresh_stack: Callable[..., Stack], hops: int, ours: str | None, spoofs: list[str]
) -> None:
    """Whatever the caller writes, it is counted by what Envoy and trusted proxies append."""

    def change(config: dict[str, Any]) -> None:
        config["server"]["trusted_hops"] = hops
        config["limits"] = {"per_ip": {"requests_per_second": SLOWLY, "burst": 4}}

    stack = fresh_stack(change=change)
    key = {"authorization": f"Bearer {stack.create_key('spoofing')}"}
    statuses = []
    for number in range(8):
        written = [spoofs[number % len(spoofs)], *([ours] if ours else [])]
        headers = {**key, "x-forwarded-for": ", ".join(written)}
        answer = httpx.post(f"{stack.base}{CHAT}", json=GOOD, headers=headers)
        statuses.append(answer.status_code)
    assert statuses == [200] * 4 + [429] * 4
    assert "this address" in answer.json()["error"]["message"]
    if ours:  # another client of the trusted proxy has an account of its own
        headers = {**key, "x-forwarded-for": "9.9.9.9, 8.8.8.8"}
        answer = httpx.post(f"{stack.base}{CHAT}", json=GOOD, headers=headers)
        assert answer.status_code == 200
