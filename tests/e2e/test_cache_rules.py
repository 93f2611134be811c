"""Who may have a kept answer on a real Envoy, what a caller may ask for, and what is never kept."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from .canned import Canned, canned
from .stack import Stack, start_stack, wait_for

CHAT = "/v1/chat/completions"
MODEL = "gpt-4o-mini"
TENANT = "firm"
_numbers = itertools.count()


class Caller(NamedTuple):
    """A gateway with its cache on, and a key that may do everything."""

    stack: Stack
    key: str
    canned: Canned

    def ask(
        self, question: str, *headers: tuple[str, str], key: str = "", path: str = CHAT, **more: Any
    ) -> httpx.Response:
        """Send one call with its headers as they are."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": question}], **more}
        every = [("authorization", f"Bearer {key or self.key}"), *headers]
        return httpx.post(f"{self.stack.base}{path}", json=body, headers=every)

    def status(self, question: str, key: str = "", **more: Any) -> int:
        """Return what a call comes to that nobody is asked for."""
        return self.ask(question, ("cache-control", "only-if-cached"), key=key, **more).status_code

    def keep(self, question: str, **more: Any) -> None:
        """Ask, and wait until the answer is kept."""
        assert self.ask(question, **more).status_code == 200
        wait_for("the answer to be kept", lambda: self.status(question, **more) == 200)

    def counted(self, name: str, result: str) -> int:
        """Return a counter of the cache."""
        text = self.stack.admin_get("/metrics").text
        found = re.search(rf'^llm_edge_{name}_total{{result="{result}"}} (\d+)', text, re.MULTILINE)
        return int(found[1]) if found else 0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """Run one stack with the cache on, and a provider that says what it is told to."""
    with canned() as told:

        def change(config: dict[str, Any]) -> None:
            config["cache"] = {"enabled": True, "max_entry_bytes": 4096}
            endpoint = f"http://127.0.0.1:{told.port}/v1"
            config["providers"]["canned"] = {"dialect": "openai", "endpoint": endpoint}
            config["models"]["canned"] = {"targets": [{"provider": "canned", "model": "canned"}]}

        stack = start_stack(tmp_path_factory.mktemp("rules"), change=change)
        try:
            yield Caller(stack, stack.create_key("whole", "--tenant", TENANT), told)
        finally:
            stack.stop()


@pytest.fixture
def caller(running: Caller) -> Caller:
    """Return the caller; the providers are well and have forgotten what they were asked."""
    running.stack.clear_sims()
    running.canned.asked = 0
    return running


@pytest.fixture
def asked() -> str:
    """Return a question nobody has asked yet."""
    return f"question {next(_numbers)}"


@pytest.mark.parametrize(
    ("words", "tier", "status"),
    [
        pytest.param(["--models", "renamed"], "enterprise", 403, id="another model's key"),
        pytest.param(["--endpoints", "embeddings"], "enterprise", 403, id="another endpoint's key"),
        pytest.param([], "pro", 504, id="a key of another tier, which has its own"),
        pytest.param([], "enterprise", 200, id="a key like the first"),
    ],
)
def test_keys_of_one_tenant_may_not_all_have_what_is_kept(
    caller: Caller, asked: str, words: list[str], tier: str, status: int
) -> None:
    """What a key may not ask for it is not told, though its tenant has it."""
    caller.keep(asked)
    key = caller.stack.create_key("of the firm", "--tenant", TENANT, *words, tier=tier)
    assert caller.status(asked, key) == status
    assert len(caller.stack.sim_log("a")) == 1


@pytest.mark.parametrize("ending", ["revoked", "expired"])
def test_a_key_that_has_ended_gets_a_401_and_no_kept_answer(
    caller: Caller, asked: str, ending: str
) -> None:
    """It had the answer the moment before."""
    words = ["--expires", "6s"] if ending == "expired" else []
    key = caller.stack.create_key("ends", "--tenant", TENANT, *words)
    caller.keep(asked, key=key)
    if ending == "revoked":
        listed = json.loads(caller.stack.command("keys", "list", "--json"))
        (key_id,) = (k["key_id"] for k in listed if k["name"] == "ends" and k["state"] == "active")
        caller.stack.command("keys", "revoke", key_id)
    statuses = set()

    def ended() -> bool:
        answer = caller.ask(asked, key=key)
        statuses.add(answer.status_code)
        return answer.status_code == 401

    wait_for("the end of the key", ended)
    assert statuses <= {200, 401}
    assert caller.status(asked, key) == 401
    assert caller.status(asked) == 200
    assert len(caller.stack.sim_log("a")) == 1


HIT = "llm-edge; hit; ttl="
REFUSED = "llm-edge; fwd=request"


@pytest.mark.parametrize(
    ("headers", "status", "said"),
    [
        pytest.param([], 200, HIT, id="nothing"),
        pytest.param(["no-cache"], 200, REFUSED, id="a fresh one"),
        pytest.param(["NO-CACHE"], 200, REFUSED, id="in capitals"),
        pytest.param(["no-store"], 200, HIT, id="a kept one may be told"),
        pytest.param(["no-cache, no-store"], 200, REFUSED, id="neither"),
        pytest.param(["no-store", "no-cache"], 200, REFUSED, id="neither, in two headers"),
        pytest.param(["max-age=0"], 200, REFUSED, id="none is young enough"),
        pytest.param(["max-age=600"], 200, HIT, id="young enough"),
        pytest.param(["max-age=600", "max-age=60"], 200, REFUSED, id="two ages that differ"),
        pytest.param(["max-age=soon"], 200, REFUSED, id="an age that is none"),
        pytest.param(["only-if-cached"], 200, HIT, id="a kept one or none"),
        pytest.param(["only-if-cached", "Max-Age=0"], 504, "", id="a kept one, none young enough"),
        pytest.param(["only-if-cached, no-cache"], 504, "", id="a kept one that is fresh"),
    ],
)
def test_what_a_caller_asks_of_the_cache(
    caller: Caller, asked: str, headers: list[str], status: int, said: str
) -> None:
    """The header as it comes over the wire, once or several times."""
    caller.keep(asked)
    answer = caller.ask(asked, *[("Cache-Control", value) for value in headers])
    assert answer.status_code == status
    assert answer.headers.get("cache-status", "").startswith(said)
    assert ("age" in answer.headers) is (said == HIT)
    assert len(caller.stack.sim_log("a")) == (2 if said == REFUSED else 1)
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("header", "query"),
    [
        pytest.param(("x-llm-provider", "a"), "", id="a pinned provider"),
        pytest.param(("x-llm-strategy", "weighted"), "", id="another strategy"),
        pytest.param(("openai-beta", "x"), "", id="a trial"),
        pytest.param(("x-of-nobody", "x"), "?x=1", id="a query"),
    ],
)
def test_headers_that_change_answers_ask_another_question(
    caller: Caller, asked: str, header: tuple[str, str], query: str
) -> None:
    """And those that do not ask the same."""
    caller.keep(asked)
    only = ("cache-control", "only-if-cached")
    assert caller.ask(asked, header, only, path=CHAT + query).status_code == 504
    assert caller.ask(asked, ("x-of-nobody", "x"), ("x-llm-timeout-ms", "9000"), only).is_success


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({"n": 2}, "choices", id="two choices"),
        pytest.param({"store": True}, "store", id="one to be stored"),
        pytest.param({"temperature": 1.5}, "temperature", id="a hot one"),
        pytest.param({"web_search_options": {}}, "hosted-tools", id="one that searches"),
    ],
)
def test_calls_the_cache_has_no_part_in(
    caller: Caller, asked: str, fields: dict[str, Any], reason: str
) -> None:
    """Each goes upstream, and the header says why."""
    before = caller.counted("cache", "bypass")
    for _ in range(2):
        answer = caller.ask(asked, **fields)
        assert answer.headers["cache-status"] == f"llm-edge; fwd=bypass; detail={reason}"
    assert len(caller.stack.sim_log("a")) == 2
    assert caller.counted("cache", "bypass") == before + 2


def said(content: str | None = "hello", end: str = "stop", **more: Any) -> dict[str, Any]:
    """Return a chat completion."""
    message = {"role": "assistant", "content": content, **more}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "canned",
        "choices": [{"index": 0, "message": message, "finish_reason": end}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


CALLS = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        pytest.param(said("x", "content_filter"), "content-filter", id="a filter stopped it"),
        pytest.param(said(None, refusal="No."), "refusal", id="the model refused"),
        pytest.param(said(None, "tool_calls", tool_calls=CALLS), "tool-calls", id="calls of tools"),
        pytest.param(said(None, "stop", tool_calls=CALLS), "tool-calls", id="a forced call"),
        pytest.param(said("x", "of tomorrow"), "unreadable", id="an end nobody knows"),
        pytest.param(said("x" * 4096), "too-large", id="too long"),
        pytest.param({**said(), "error": {"message": "x"}}, "unreadable", id="an error inside"),
    ],
)
def test_answers_that_are_not_kept(
    caller: Caller, asked: str, answer: dict[str, Any], result: str
) -> None:
    """Once the log has come and said why: the next call asks again."""
    caller.canned.answer = answer
    for count in (1, 2):
        before = caller.counted("cache_fills", result)
        assert caller.ask(asked, model="canned").json() == answer
        wait_for(
            "the answer to be judged",
            lambda n=before: caller.counted("cache_fills", result) == n + 1,
        )
        assert caller.canned.asked == count
    assert caller.status(asked, model="canned") == 504


def test_nobody_gets_another_callers_headers(caller: Caller, asked: str) -> None:
    """A cookie is for whom the provider gave it to."""
    caller.canned.answer = said()
    before = caller.counted("cache", "hit")
    caller.keep(asked, model="canned")
    hit = caller.ask(asked, model="canned")
    assert hit.json() == said()
    assert hit.headers["cache-status"].startswith(HIT)
    assert not {"set-cookie", "x-of-the-first-caller"} & hit.headers.keys()
    assert b"of-the-first-caller" not in hit.content
    assert caller.canned.asked == 1
    assert caller.counted("cache", "hit") >= before + 2


def test_what_a_fallback_said_is_not_what_the_first_choice_says(caller: Caller, asked: str) -> None:
    """It is kept as the fallback's, and the first choice is asked as soon as it can answer."""
    stack = caller.stack
    stack.behave("b", status=500)
    answer = caller.ask(asked, model="failover")
    assert (answer.headers["x-llm-model"], answer.headers["x-llm-attempts"]) == (
        "second-model",
        "2",
    )
    of_it = "SELECT * FROM outcomes WHERE request_id = ?", answer.headers["x-request-id"]
    wait_for("it to be settled, and with that kept", lambda: stack.rows(*of_it))
    stack.behave("b")
    assert caller.status(asked, model="failover") == 504
    again = caller.ask(asked, model="failover")
    assert (again.headers["x-llm-model"], again.headers["x-llm-provider"]) == ("first", "b")
    wait_for("it to be kept", lambda: caller.status(asked, model="failover") == 200)
    assert caller.ask(asked, model="failover").headers["x-llm-model"] == "first"
