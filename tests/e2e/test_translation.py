"""Each official client against a provider of the other dialect, through a real Envoy."""

from __future__ import annotations

import json
from typing import Any

import anthropic
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
