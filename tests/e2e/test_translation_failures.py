"""Translated calls that fail, break, are refused or are large, on a real Envoy."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import anthropic
import httpx
import httpx2
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI

from tests.e2e.test_translation import FAILOVER, SAID, WORDS

from .stack import Stack


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("model", "first", "second"), FAILOVER)
@pytest.mark.parametrize("status", [500, 429])
def test_failover_crosses_dialects(  # noqa: PLR0917
    stack: Stack, chat: OpenAI, claude: Anthropic, model: str, first: str, second: str, status: int,
    stream: bool,
) -> None:  # fmt: skip
    """Whichever client asks, the second provider gets its own API and the caller its own answer."""
    stack.behave(first, status=status)
    raw = chat.chat.completions.with_raw_response.create(model=model, messages=SAID, stream=stream)
    found = raw.parse()
    text = (
        "".join(chunk.choices[0].delta.content or "" for chunk in found)
        if stream
        else found.choices[0].message.content
    )
    assert text.split() == WORDS
    assert (raw.headers["x-llm-provider"], raw.headers["x-llm-attempts"]) == (second, "2")
    with claude.messages.stream(model=model, max_tokens=50, messages=SAID) as streamed:
        assert streamed.get_final_text().split() == WORDS
    assert [one["status"] for one in stack.sim_log(first)] == [status] * 2
    assert [one["status"] for one in stack.sim_log(second)] == [200] * 2


def test_a_chunked_upload_is_sent_as_it_was_after_a_translated_attempt(
    stack: Stack, key: str
) -> None:
    """The length that the translated attempt announced does not stay on the headers."""
    stack.behave("claude", status=500)
    body = json.dumps({"model": "from-claude", "messages": SAID}).encode()
    answer = httpx.post(
        f"{stack.base}/v1/chat/completions",
        content=iter([body[:9], body[9:]]),
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    assert (answer.status_code, answer.headers["x-llm-attempts"]) == (200, "2")
    assert stack.sim_log("b")[-1]["model"] == "b"


class Garbage(BaseHTTPRequestHandler):
    """Answers 200 with a document of no API."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: object) -> None:
        pass


def test_garbage_of_another_dialect_fails_over(stack: Stack, chat: OpenAI) -> None:
    """An answer that is none of its API is a failed attempt, not an answer."""
    port = urlsplit(stack.config["providers"]["garbled"]["endpoint"]).port
    with ThreadingHTTPServer(("127.0.0.1", port), Garbage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        raw = chat.chat.completions.with_raw_response.create(model="garbled", messages=SAID)
        server.shutdown()
    assert raw.parse().choices[0].message.content.split() == WORDS
    assert (raw.headers["x-llm-provider"], raw.headers["x-llm-attempts"]) == ("a", "2")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_usage_of_translated_calls_is_settled_exactly(stack: Stack, stream: bool) -> None:
    """Both directions: what the provider's truth log says is what the ledger charges."""
    name = "translated-streamed" if stream else "translated-whole"
    key = stack.create_key(name)
    headers = {
        "x-sim-cache-read-tokens": "40",
        "x-sim-cache-creation-tokens": "20",
        "x-sim-output-tokens": "33",
    }
    long: Any = [{"role": "user", "content": "x" * 400}]
    with OpenAI(base_url=f"{stack.base}/v1", api_key=key, max_retries=0) as chat:
        answer: Any = chat.chat.completions.create(
            model="claude", messages=long, stream=stream, extra_headers=headers
        )
        _ = list(answer) if stream else answer
    with Anthropic(base_url=stack.base, api_key=key, max_retries=0) as claude:
        answer = claude.messages.create(
            model="gpt-4o-mini", max_tokens=50, messages=long, stream=stream, extra_headers=headers
        )
        _ = list(answer) if stream else answer
    rows = {row["provider"]: row for row in stack.rows_for(name, 2)}
    for provider in ("claude", "a"):
        row, truth = rows[provider], stack.sim_log(provider)[-1]
        assert (row["input"], row["output"]) == (truth["prompt_tokens"], 33), provider
        assert (row["cached_input"], row["usage_source"]) == (40, "provider")
        # OpenAI's API has no writes to report, and the other one's have a price of their own.
        written = 20 if provider == "claude" else 0
        fresh = truth["prompt_tokens"] - 40 - written
        assert row["cache_write"] == written
        spent = fresh * 150_000 + 40 * 75_000 + written * 187_500 + 33 * 600_000
        assert row["cost_pico_usd"] == spent


@pytest.mark.parametrize("model", ["claude", "gpt-4o-mini"])
def test_a_translated_stream_that_breaks_ends_in_an_error(
    stack: Stack, chat: OpenAI, claude: Anthropic, model: str
) -> None:
    """The caller's client raises, and nobody else is asked."""
    headers = {"x-sim-abort-after-chunks": "6", "x-sim-chunk-ms": "20"}
    fields: Any = {"model": model, "messages": SAID, "stream": True, "extra_headers": headers}
    stream: Any = (
        chat.chat.completions.create(**fields)
        if model == "claude"
        else claude.messages.create(max_tokens=50, **fields)
    )
    broken = (openai.APIError, anthropic.APIError, httpx.TransportError, httpx2.TransportError)
    with pytest.raises(broken):
        list(stream)
    assert len(stack.sim_log("claude") + stack.sim_log("a")) == 1


@pytest.mark.parametrize("model", ["claude", "gpt-4o-mini"])
def test_envoys_own_errors_are_in_the_callers_dialect(
    chat: OpenAI, claude: Anthropic, model: str
) -> None:
    """The path is the provider's by then; the shape is that of the endpoint that was called."""
    headers = {"x-sim-latency-ms": "3000", "x-llm-timeout-ms": "200"}
    fields: Any = {"model": model, "messages": SAID, "extra_headers": headers}
    if model == "claude":
        with pytest.raises(openai.InternalServerError) as timed_out:
            chat.chat.completions.create(**fields)
        assert (timed_out.value.status_code, timed_out.value.code) == (504, "upstream_timeout")
        return
    with pytest.raises(anthropic.InternalServerError) as caught:
        claude.messages.create(max_tokens=50, **fields)
    body: Any = caught.value.body
    assert caught.value.status_code == 504
    assert (body["type"], body["error"]["type"]) == ("error", "api_error")


def test_a_strict_model_refuses_what_would_be_lost(stack: Stack, chat: OpenAI) -> None:
    """422 in the caller's shape, naming what; a call that loses nothing is served."""
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        chat.chat.completions.create(model="strict-claude", messages=SAID, seed=7)
    assert (caught.value.code, caught.value.param) == ("lossy_translation", "seed")
    assert stack.sim_log("claude") == []
    served = chat.chat.completions.create(model="strict-claude", messages=SAID)
    assert served.choices[0].message.content.split() == WORDS


def test_a_strict_model_prefers_a_provider_that_gets_all_of_it(stack: Stack, chat: OpenAI) -> None:
    """A target of the caller's own dialect is left in the plan."""
    raw = chat.chat.completions.with_raw_response.create(
        model="strict-either", messages=SAID, seed=7
    )
    assert raw.headers["x-llm-provider"] == "a"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "claude", "input": "x"}),
        ("/v1/responses", {"model": "claude", "input": "x"}),
        ("/v1/messages/count_tokens", {"model": "gpt-4o-mini", "messages": SAID}),
    ],
)
def test_what_no_translation_is_for_is_refused(
    stack: Stack, key: str, path: str, body: Any
) -> None:
    """An endpoint that the provider's dialect lacks is a 400 that says so."""
    headers = {"authorization": f"Bearer {key}"}
    refused = httpx.post(f"{stack.base}{path}", json=body, headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "invalid_request_error"
    assert stack.sim_log("a") == stack.sim_log("claude") == []


def test_a_large_conversation_is_translated(stack: Stack, chat: OpenAI, claude: Anthropic) -> None:
    """Megabytes pass the buffers of both filters, and the length is right."""
    large: Any = [{"role": "user", "content": "x" * 5_000_000}]
    assert chat.chat.completions.create(model="claude", messages=large).usage.prompt_tokens > 10**6
    answer = claude.messages.create(model="gpt-4o-mini", max_tokens=5, messages=large)
    assert answer.usage.input_tokens > 10**6
    long = {"x-sim-output-tokens": "300000"}
    raw = chat.chat.completions.with_raw_response.create(
        model="claude", messages=SAID, max_tokens=300_000, extra_headers=long
    )
    assert len(raw.parse().choices[0].message.content.split()) == 300_000
