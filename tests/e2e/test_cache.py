"""The response cache on a real Envoy: who gets a kept answer, in which form, and who pays for it."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
from anthropic import Anthropic, InternalServerError
from openai import OpenAI

from .stack import Stack, start_stack, wait_for

CHAT = "/v1/chat/completions"
MANY = 500
MINI, RENAMED = "gpt-4o-mini", "renamed"  # two models at one provider
THINKING = {"type": "enabled", "budget_tokens": 1024}
ADMIN_VARIABLE, ADMIN_TOKEN = "LLM_EDGE_TEST_ADMIN_TOKEN", "t" * 32
_numbers = itertools.count()


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run one stack with the cache on."""

    def change(config: dict[str, Any]) -> None:
        config["cache"] = {"enabled": True}
        config["admin"]["token"] = {"env": ADMIN_VARIABLE}

    env = {ADMIN_VARIABLE: ADMIN_TOKEN}
    stack = start_stack(tmp_path_factory.mktemp("cached"), change=change, env=env)
    yield stack
    stack.stop()


@pytest.fixture(scope="module")
def keys(cached: Stack) -> tuple[str, str]:
    """Return the keys of two tenants."""
    return (
        cached.create_key("one", "--tenant", "one"),
        cached.create_key("two", "--tenant", "two"),
    )


@pytest.fixture
def asked(cached: Stack) -> str:
    """Return a question nobody has asked yet, of a provider that has forgotten the others."""
    cached.clear_sims()
    return f"question {next(_numbers)}"


def kept(stack: Stack, key: str, call: dict[str, Any]) -> httpx.Response:
    """Ask until the answer is kept, which it is once the log has come, and return it."""
    found: list[httpx.Response] = []

    def is_hit() -> bool:
        headers = {"authorization": f"Bearer {key}", "cache-control": "only-if-cached"}
        answer = httpx.post(f"{stack.base}{CHAT}", json=call, headers=headers)
        found.append(answer)
        return answer.status_code == 200

    wait_for("the answer to be kept", is_hit)
    return found[-1]


def chat(question: str, **more: Any) -> dict[str, Any]:
    return {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": question}],
        **more,
    }


KEPT = pytest.mark.parametrize("first", [False, True], ids=["kept plain", "kept as a stream"])


@KEPT
@pytest.mark.parametrize(
    "target", [(MINI, "a"), ("claude", "claude")], ids=["as it came", "translated"]
)
def test_openais_client_parses_the_same(
    cached: Stack, keys: tuple[str, str], asked: str, target: tuple[str, str], first: bool
) -> None:
    """From upstream, told in the same form and in the other one."""
    key = keys[0]
    model, provider = target
    call = chat(asked) | {"model": model}

    def ask(stream: bool) -> tuple[str, int]:
        with OpenAI(base_url=f"{cached.base}/v1", api_key=key, max_retries=0) as client:
            if not stream:
                answer = client.chat.completions.create(**call)
                assert answer.usage is not None
                return answer.choices[0].message.content or "", answer.usage.completion_tokens
            options = {"include_usage": True}
            chunks = list(
                client.chat.completions.create(**call, stream=True, stream_options=options)
            )
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            return text, chunks[-1].usage.completion_tokens

    upstream = ask(first)
    kept(cached, key, call)
    assert ask(first) == ask(not first) == upstream
    assert len(cached.sim_log(provider)) == 1


@KEPT
@pytest.mark.parametrize(
    "target",
    [
        pytest.param((MINI, "a", {}), id="translated"),
        pytest.param(("claude", "claude", {}), id="as it came"),
        pytest.param(("claude", "claude", {"thinking": THINKING}), id="with thoughts"),
    ],
)
def test_anthropics_client_parses_the_same(
    cached: Stack,
    keys: tuple[str, str],
    asked: str,
    target: tuple[str, str, dict[str, Any]],
    first: bool,
) -> None:
    """From upstream, told in the same form and in the other one; a translated answer too."""
    model, provider, more = target
    call: dict[str, Any] = {
        "model": model,
        "max_tokens": 2048,
        "messages": [{"role": "user", "content": asked}],
        **more,
    }

    with Anthropic(base_url=cached.base, api_key=keys[0], max_retries=0) as client:

        def ask(stream: bool, **headers: str) -> dict[str, Any]:
            if not stream:
                return client.messages.create(**call, extra_headers=headers).model_dump()
            with client.messages.stream(**call) as told:
                return told.get_final_message().model_dump()

        def is_kept() -> bool:
            try:
                return bool(ask(False, **{"cache-control": "only-if-cached"}))
            except InternalServerError:
                return False

        upstream = ask(first)
        wait_for("the answer to be kept", is_kept)
        assert ask(first) == ask(not first) == upstream
    assert [block["type"] for block in upstream["content"]] == [*more, "text"]
    assert len(cached.sim_log(provider)) == 1


@pytest.mark.parametrize(
    ("query", "forgotten"),
    [
        pytest.param("?tenant=one", {("one", MINI), ("one", RENAMED)}, id="of a tenant"),
        pytest.param(f"?model={RENAMED}", {("one", RENAMED), ("two", RENAMED)}, id="of a model"),
        pytest.param(f"?tenant=one&model={MINI}", {("one", MINI)}, id="of one in the other"),
        pytest.param("", set(itertools.product(("one", "two"), (MINI, RENAMED))), id="of all"),
    ],
)
def test_a_purge_is_of_whom_it_names(
    cached: Stack,
    keys: tuple[str, str],
    asked: str,
    query: str,
    forgotten: set[tuple[str, str]],
) -> None:
    """By the admin API, which tells what is kept; all other answers are still told."""
    every = [
        (tenant, model, key)
        for tenant, key in zip(("one", "two"), keys, strict=True)
        for model in (MINI, RENAMED)
    ]

    def ask(key: str, model: str, **more: str) -> int:
        headers = {"authorization": f"Bearer {key}", **more}
        call = chat(asked) | {"model": model}
        return httpx.post(f"{cached.base}{CHAT}", json=call, headers=headers).status_code

    def admin(method: str, query: str = "") -> dict[str, Any]:
        url = f"http://127.0.0.1:{cached.admin_port}/admin/cache{query}"
        answer = httpx.request(method, url, headers={"authorization": f"Bearer {ADMIN_TOKEN}"})
        assert answer.status_code == 200
        told: dict[str, Any] = answer.json()
        return told

    for _, model, key in every:
        assert ask(key, model) == 200
    for _, model, key in every:
        kept(cached, key, chat(asked) | {"model": model})
    before = admin("GET")["kept"]
    assert before["entries"] >= len(every)
    wanted = dict(httpx.QueryParams(query.removeprefix("?")))
    assert admin("DELETE", query) == {"tenant": None, "model": None} | wanted
    only = {"cache-control": "only-if-cached"}
    found = {(tenant, model): ask(key, model, **only) for tenant, model, key in every}
    assert found == {one: 504 if one in forgotten else 200 for one in found}
    after = admin("GET")["kept"]
    assert after["purged"] >= before["purged"] + len(forgotten)
    assert after["entries"] <= before["entries"] - len(forgotten)
    assert len(cached.sim_log("a")) == len(every)


def test_a_hit_takes_a_request_and_nothing_else(
    cached: Stack, keys: tuple[str, str], asked: str
) -> None:
    """Its row says so; the answer says how old it is and who made it."""
    key = cached.create_key("payer", "--tenant", "payer")
    post = httpx.post(
        f"{cached.base}{CHAT}", json=chat(asked), headers={"authorization": f"Bearer {key}"}
    )
    assert post.headers["cache-status"] == "llm-edge; fwd=miss; stored"
    hit = kept(cached, key, chat(asked))
    assert hit.headers["cache-status"].startswith("llm-edge; hit; ttl=")
    assert (hit.headers["x-llm-provider"], hit.headers["x-llm-attempts"]) == ("a", "0")
    assert int(hit.headers["age"]) >= 0
    assert hit.content == post.content
    rows = cached.rows_for("payer", 2)
    assert [(r["cache"], r["cost_pico_usd"] or 0, r["output"]) for r in rows if r["cache"]] == [
        ("hit", 0, 0)
    ]


def test_tenants_share_nothing_and_a_stranger_gets_nothing(
    cached: Stack, keys: tuple[str, str], asked: str
) -> None:
    """The other tenant asks upstream; a wrong key is a 401, whatever is kept."""
    url, call = f"{cached.base}{CHAT}", chat(asked)
    httpx.post(url, json=call, headers={"authorization": f"Bearer {keys[0]}"})
    kept(cached, keys[0], call)
    only = {"cache-control": "only-if-cached"}
    other = httpx.post(url, json=call, headers={"authorization": f"Bearer {keys[1]}", **only})
    assert (other.status_code, other.json()["error"]["code"]) == (504, "not_cached")
    stranger = httpx.post(url, json=call, headers={"authorization": "Bearer sk_" + "x" * 43})
    assert stranger.status_code == 401


@asynccontextmanager
async def crowd(
    stack: Stack, key: str, call: dict[str, Any]
) -> AsyncIterator[Iterator[Callable[..., asyncio.Task[httpx.Response]]]]:
    """Yield `MANY` ways to make the call at once."""
    headers = {"authorization": f"Bearer {key}"}
    url = f"{stack.base}{CHAT}"
    async with AsyncExitStack() as opened:
        # Of fifty calls each, because a client looks at each of its connections for each call.
        clients = [
            await opened.enter_async_context(httpx.AsyncClient(headers=headers, timeout=30))
            for _ in range(MANY // 50)
        ]

        def begin(client: httpx.AsyncClient, **more: Any) -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(client.post(url, json=call, **more))

        yield (partial(begin, client) for client in clients for _ in range(50))


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_identical_calls_make_one_upstream_call(
    cached: Stack, keys: tuple[str, str], asked: str, stream: bool
) -> None:
    """Of five hundred at once, all answered alike."""
    cached.behave("a", latency_ms=400)
    async with crowd(cached, keys[0], chat(asked, stream=stream)) as calls:
        answers = await asyncio.gather(*[begin() for begin in calls])
    assert len(answers) == MANY
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len(cached.sim_log("a")) == 1


@pytest.mark.parametrize(
    ("stream", "slow"),
    [
        pytest.param(False, {"x-sim-latency-ms": "25000"}, id="plain"),
        pytest.param(True, {"x-sim-latency-ms": "25000"}, id="before its stream began"),
        pytest.param(True, {"x-sim-chunk-ms": "9000"}, id="in the midst of its stream"),
    ],
)
async def test_where_the_leader_leaves_the_next_one_asks(
    cached: Stack, keys: tuple[str, str], asked: str, stream: bool, slow: dict[str, str]
) -> None:
    """Two calls upstream of five hundred: the one that was given up, and the one all others share."""
    async with crowd(cached, keys[0], chat(asked, stream=stream)) as calls:
        leader = next(calls)(headers=slow)
        await asyncio.to_thread(
            wait_for,
            "the leader upstream",
            lambda: (
                cached.envoy_stats("cluster.a.upstream_rq_active").get(
                    "cluster.a.upstream_rq_active"
                )
                == 1
            ),
        )
        followers = [begin() for begin in calls]
        await asyncio.to_thread(
            wait_for, "the followers to wait", lambda: waiting(cached) == len(followers)
        )
        leader.cancel()
        answers = await asyncio.gather(*followers)
    assert len(answers) == MANY - 1
    assert {answer.status_code for answer in answers} == {200}
    # Who was so slow to be heard that the answer was there by then has a hit.
    told = [one for one in answers if re.search("collapsed;|; hit", one.headers["cache-status"])]
    assert len(told) == MANY - 2
    assert len({answer.content for answer in told}) == 1
    await asyncio.to_thread(wait_for, "both in the log", lambda: len(cached.sim_log("a")) == 2)


def waiting(stack: Stack) -> int:
    """Return how many requests Envoy has open."""
    name = "http.gateway.downstream_rq_active"
    return stack.envoy_stats(name).get(name, 0) - 1


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        pytest.param({"status": 500}, "status", id="an error"),
        pytest.param({"abort_after_chunks": 2}, "unfinished", id="a stream that its provider cut"),
    ],
)
def test_what_broke_is_not_kept(
    cached: Stack, keys: tuple[str, str], asked: str, behaviour: dict[str, Any], reason: str
) -> None:
    """It is asked for anew, once its log entry has come as well."""
    headers = {"authorization": f"Bearer {keys[0]}"}
    cached.behave("a", **behaviour)
    name = f'llm_edge_cache_fills_total{{result="{reason}"}} '

    def judged() -> int:
        lines = cached.admin_get("/metrics").text.splitlines()
        return sum(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))

    for count in (1, 2):
        before = judged()
        try:
            httpx.post(f"{cached.base}{CHAT}", json=chat(asked, stream=True), headers=headers)
        except httpx.RemoteProtocolError:
            assert "abort_after_chunks" in behaviour
        wait_for("the answer to be judged", lambda n=before: judged() == n + 1)
        assert len(cached.sim_log("a")) == count
    cached.behave("a")
    only = {**headers, "cache-control": "only-if-cached"}
    assert httpx.post(f"{cached.base}{CHAT}", json=chat(asked), headers=only).status_code == 504
