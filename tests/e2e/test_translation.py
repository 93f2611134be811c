"""Each official client against a provider of the other dialect, through a real Envoy."""

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
from anthropic import Anthropic, AsyncAnthropic
from openai import AsyncOpenAI, OpenAI

from .stack import Stack

SAID: Any = [{"role": "user", "content": "Say something short."}]
PNG = "iVBORw0KGgo="
ARGUMENTS = {"city": 'tok0 "é"\n'}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTIONS: Any = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
TOOLS: Any = [{"name": "weather", "input_schema": SCHEMA}]
WORDS = [f"tok{index}" for index in range(16)]


@pytest.fixture
def chat(stack: Stack, key: str):
    """Return OpenAI's client; it will ask for a model at the Anthropic provider."""
    with OpenAI(base_url=f"{stack.base}/v1", api_key=key, max_retries=0) as made:
        yield made


@pytest.fixture
def claude(stack: Stack, key: str):
    """Return Anthropic's client; it will ask for a model at an OpenAI provider."""
    with Anthropic(base_url=stack.base, api_key=key, max_retries=0) as made:
        yield made


def test_a_chat_at_an_anthropic_provider(stack: Stack, chat: OpenAI) -> None:
    """A plain chat: the provider gets its own API with its own model name, the client its own."""
    raw = chat.chat.completions.with_raw_response.create(
        model="claude-renamed",
        messages=[{"role": "system", "content": "Be kind."}, *SAID],
        seed=7,
        extra_headers={"x-sim-cache-read-tokens": "4"},
    )
    answer = raw.parse()
    truth = stack.sim_log("claude")[-1]
    assert answer.choices[0].message.content.split() == WORDS
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == truth["prompt_tokens"]
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer.usage.completion_tokens == 16
    assert (truth["path"], truth["model"]) == ("/v1/messages", "upstream-claude")
    assert raw.headers["x-llm-lossy"] == "seed"
    assert (raw.headers["x-llm-provider"], raw.headers["x-llm-attempts"]) == ("claude", "1")
    assert raw.headers["x-llm-model"] == "upstream-claude"


@pytest.mark.parametrize("asked", [True, False], ids=["usage asked for", "usage not asked for"])
def test_a_streamed_chat_at_an_anthropic_provider(chat: OpenAI, asked: bool) -> None:
    """Chunks arrive one by one, and usage to those who asked."""
    more: Any = {"stream_options": {"include_usage": True}} if asked else {}
    chunks = list(chat.chat.completions.create(model="claude", messages=SAID, stream=True, **more))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text.split() == WORDS
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert ([c.usage.completion_tokens for c in chunks if c.usage] == [16]) is asked
    assert all(c.choices for c in chunks) is not asked


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_functions_at_an_anthropic_provider(stack: Stack, chat: OpenAI, stream: bool) -> None:
    """Parallel calls with words before them, streamed arguments included."""
    fields: Any = {"model": "claude", "messages": SAID, "tools": FUNCTIONS}
    headers = {"x-sim-tool-calls": "2", "x-sim-output-tokens": "3"}
    if stream:
        with chat.chat.completions.stream(**fields, extra_headers=headers) as streamed:
            choice = streamed.get_final_completion().choices[0]
    else:
        choice = chat.chat.completions.create(**fields, extra_headers=headers).choices[0]
    calls = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "tok0 tok1 tok2 "
    assert [json.loads(call.function.arguments) for call in calls] == [ARGUMENTS, ARGUMENTS]
    answers: Any = [
        *SAID,
        choice.message.model_dump(exclude_none=True),
        *({"role": "tool", "tool_call_id": call.id, "content": "sun"} for call in calls),
    ]
    again = chat.chat.completions.create(model="claude", messages=answers, tools=FUNCTIONS)
    assert again.choices[0].message.content.split() == WORDS
    assert stack.sim_log("claude")[-1]["status"] == 200


def test_images_at_an_anthropic_provider(stack: Stack, chat: OpenAI) -> None:
    """By address and as data: the provider is sent a message with both."""
    parts: Any = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
    ]
    raw = chat.chat.completions.with_raw_response.create(
        model="claude", messages=[{"role": "user", "content": parts}]
    )
    assert raw.parse().choices[0].message.content.split() == WORDS
    assert "x-llm-lossy" not in raw.headers


ERRORS = [
    pytest.param(400, openai.BadRequestError, "invalid_request_error", id="400"),
    pytest.param(401, openai.AuthenticationError, "authentication_error", id="401"),
    pytest.param(404, openai.NotFoundError, "invalid_request_error", id="404"),
    pytest.param(429, openai.RateLimitError, "rate_limit_error", id="429"),
    pytest.param(500, openai.InternalServerError, "server_error", id="500"),
    pytest.param(529, openai.InternalServerError, "server_error", id="529"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("status", "error", "kind"), ERRORS)
def test_errors_of_an_anthropic_provider(
    chat: OpenAI, status: int, error: type[openai.APIStatusError], kind: str, stream: bool
) -> None:
    """Each is the class of the caller's client, with the provider's own words."""
    with pytest.raises(error) as caught:
        chat.chat.completions.create(
            model="claude",
            messages=SAID,
            stream=stream,
            extra_headers={"x-sim-status": str(status)},
        )
    assert (caught.value.status_code, caught.value.type) == (status, kind)
    assert caught.value.body["message"]


def test_a_message_at_an_openai_provider(stack: Stack, claude: Anthropic) -> None:
    """A plain message: the provider gets a chat completion, the client a message."""
    raw = claude.messages.with_raw_response.create(
        model="renamed",
        max_tokens=50,
        messages=SAID,
        system="Be kind.",
        extra_body={"top_k": 5},
        extra_headers={"x-sim-cache-read-tokens": "4"},
    )
    answer = raw.parse()
    truth = stack.sim_log("a")[-1]
    assert answer.content[0].text.split() == WORDS
    assert answer.stop_reason == "end_turn"
    usage = answer.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == truth["prompt_tokens"]
    assert (usage.cache_read_input_tokens, usage.output_tokens) == (4, 16)
    assert (truth["path"], truth["model"]) == ("/v1/chat/completions", "upstream-name")
    assert raw.headers["x-llm-lossy"] == "top_k"
    assert answer._request_id == raw.headers["x-request-id"]


def test_a_streamed_message_at_an_openai_provider(stack: Stack, claude: Anthropic) -> None:
    """Events arrive in the order the client's own accumulator insists on."""
    with claude.messages.stream(model="gpt-4o-mini", max_tokens=50, messages=SAID) as streamed:
        text = "".join(streamed.text_stream)
        final = streamed.get_final_message()
    assert text.split() == WORDS
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 16)
    assert final.usage.input_tokens == stack.sim_log("a")[-1]["prompt_tokens"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_tools_at_an_openai_provider(stack: Stack, claude: Anthropic, stream: bool) -> None:
    """Parallel calls with words before them, streamed arguments included, and their results."""
    fields: Any = {"model": "gpt-4o-mini", "max_tokens": 99, "messages": SAID, "tools": TOOLS}
    headers = {"x-sim-tool-calls": "2", "x-sim-output-tokens": "3"}
    if stream:
        with claude.messages.stream(**fields, extra_headers=headers) as streamed:
            message = streamed.get_final_message()
    else:
        message = claude.messages.create(**fields, extra_headers=headers)
    assert message.stop_reason == "tool_use"
    assert message.content[0].text == "tok0 tok1 tok2 "
    assert [block.input for block in message.content[1:]] == [ARGUMENTS, ARGUMENTS]
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "sun"}
        for block in message.content[1:]
    ]
    said: Any = [
        *SAID,
        {
            "role": "assistant",
            "content": [b.model_dump(exclude_none=True) for b in message.content],
        },
        {"role": "user", "content": results},
    ]
    again = claude.messages.create(**{**fields, "messages": said})
    assert again.content[0].text.split() == WORDS


def test_images_at_an_openai_provider(claude: Anthropic) -> None:
    """By address and as data, without loss."""
    url = {"type": "url", "url": "https://example.com/cat.png"}
    data = {"type": "base64", "media_type": "image/png", "data": PNG}
    blocks: Any = [
        {"type": "text", "text": "What is this?"},
        *({"type": "image", "source": source} for source in (url, data)),
    ]
    raw = claude.messages.with_raw_response.create(
        model="gpt-4o-mini", max_tokens=50, messages=[{"role": "user", "content": blocks}]
    )
    assert raw.parse().content[0].text.split() == WORDS
    assert "x-llm-lossy" not in raw.headers


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        pytest.param(400, anthropic.BadRequestError, "invalid_request_error", id="400"),
        pytest.param(401, anthropic.AuthenticationError, "authentication_error", id="401"),
        pytest.param(404, anthropic.NotFoundError, "not_found_error", id="404"),
        pytest.param(429, anthropic.RateLimitError, "rate_limit_error", id="429"),
        pytest.param(500, anthropic.InternalServerError, "api_error", id="500"),
        pytest.param(503, anthropic.InternalServerError, "overloaded_error", id="503"),
    ],
)
def test_errors_of_an_openai_provider(
    claude: Anthropic, status: int, error: type[anthropic.APIStatusError], kind: str, stream: bool
) -> None:
    """Each is the class of the caller's client, with the provider's words and the gateway's id."""
    with pytest.raises(error) as caught:
        claude.messages.create(
            model="gpt-4o-mini",
            max_tokens=50,
            messages=SAID,
            stream=stream,
            extra_headers={"x-sim-status": str(status)},
        )
    body: Any = caught.value.body
    assert (caught.value.status_code, body["error"]["type"]) == (status, kind)
    assert body["request_id"] == caught.value.response.headers["x-request-id"]


async def test_the_async_clients_do_it_too(stack: Stack, key: str) -> None:
    """Both asynchronous clients, streamed, at the other one's provider."""
    async with AsyncOpenAI(base_url=f"{stack.base}/v1", api_key=key, max_retries=0) as chat:
        stream = await chat.chat.completions.create(model="claude", messages=SAID, stream=True)
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks).split() == WORDS
    async with AsyncAnthropic(base_url=stack.base, api_key=key, max_retries=0) as claude:
        async with claude.messages.stream(
            model="gpt-4o-mini", max_tokens=50, messages=SAID
        ) as events:
            assert (await events.get_final_text()).split() == WORDS


FAILOVER = [
    pytest.param("to-claude", "b", "claude", id="from an OpenAI to an Anthropic provider"),
    pytest.param("from-claude", "claude", "b", id="from an Anthropic to an OpenAI provider"),
]


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
        fresh = truth["prompt_tokens"] - 40
        assert row["cost_pico_usd"] == fresh * 150_000 + 40 * 75_000 + 33 * 600_000


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
