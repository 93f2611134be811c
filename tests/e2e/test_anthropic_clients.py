"""The official Anthropic client against the real gateway and a provider of its own dialect."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx
import httpx2
import pytest
from anthropic import Anthropic, AsyncAnthropic

from .stack import Stack

MESSAGES: Any = [{"role": "user", "content": "Say something short."}]
GOOD: Any = {"model": "claude", "max_tokens": 100, "messages": MESSAGES}
TOOLS: Any = [
    {
        "name": "weather",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]
ARGUMENTS = {"city": 'tok0 "é"\n'}


@pytest.fixture
def client(stack: Stack, key: str):
    """Return the sync client, without its own retries, so that every answer is the gateway's."""
    with Anthropic(base_url=stack.base, api_key=key, max_retries=0) as made:
        yield made


def test_a_message_is_passed_through_with_its_model_renamed(
    stack: Stack, client: Anthropic
) -> None:
    """A plain message is parsed by the client and says who served it, under which id."""
    raw = client.messages.with_raw_response.create(**{**GOOD, "model": "claude-renamed"})
    parsed = raw.parse()
    assert parsed.content[0].text.startswith("tok0 ")
    assert parsed.usage.output_tokens == 16
    assert raw.headers["x-llm-provider"] == "claude"
    assert raw.headers["x-llm-model"] == "upstream-claude"
    assert parsed._request_id == raw.headers["x-request-id"]
    assert "anthropic-organization-id" not in raw.headers
    truth = stack.sim_log("claude")[-1]
    assert (truth["model"], truth["path"]) == ("upstream-claude", "/v1/messages")
    sent = raw.http_request.headers["anthropic-version"]
    assert truth["headers"]["anthropic-version"] == sent


def test_a_stream_is_passed_through(stack: Stack, client: Anthropic) -> None:
    """Events arrive as they were sent, input tokens first and output tokens last."""
    with client.messages.stream(**GOOD) as streamed:
        text = "".join(streamed.text_stream)
        final = streamed.get_final_message()
    assert text.split() == [f"tok{index}" for index in range(16)]
    truth = stack.sim_log("claude")[-1]
    assert final.usage.input_tokens == truth["usage_sent"]["input_tokens"]
    assert final.usage.output_tokens == 16


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_tools_are_passed_through(client: Anthropic, stream: bool) -> None:
    """Tool calls come with their arguments, streamed ones piece by piece."""
    fields: Any = {**GOOD, "tools": TOOLS, "tool_choice": {"type": "any"}}
    if stream:
        with client.messages.stream(**fields) as streamed:
            message = streamed.get_final_message()
    else:
        message = client.messages.create(**fields)
    assert message.stop_reason == "tool_use"
    assert [(b.name, b.input) for b in message.content] == [("weather", ARGUMENTS)]


async def test_the_async_client_does_all_of_it(stack: Stack, key: str) -> None:
    """The asynchronous client: message, stream, count, models."""
    async with AsyncAnthropic(base_url=stack.base, api_key=key, max_retries=0) as client:
        plain = await client.messages.create(**GOOD)
        assert plain.usage.output_tokens == 16
        async with client.messages.stream(**GOOD) as streamed:
            assert (await streamed.get_final_message()).stop_reason == "end_turn"
        counted = await client.messages.count_tokens(model=GOOD["model"], messages=MESSAGES)
        assert counted.input_tokens == plain.usage.input_tokens
        listed = [model.id async for model in client.models.list()]
        assert listed == list(stack.config["models"])
        assert (await client.models.retrieve("claude-renamed")).type == "model"


@pytest.mark.parametrize(
    ("make", "error", "kind"),
    [
        pytest.param(
            {"key": "sk_" + "x" * 43},
            anthropic.AuthenticationError,
            "authentication_error",
            id="wrong key",
        ),
        pytest.param(
            {"model": "no-such"}, anthropic.NotFoundError, "not_found_error", id="unknown model"
        ),
        pytest.param(
            {"top_k": -1}, anthropic.BadRequestError, "invalid_request_error", id="a range"
        ),
        pytest.param(
            {"sim": {"x-sim-status": "400"}},
            anthropic.BadRequestError,
            "invalid_request_error",
            id="provider 400",
        ),
        pytest.param(
            {"sim": {"x-sim-status": "429"}},
            anthropic.RateLimitError,
            "rate_limit_error",
            id="provider 429",
        ),
        pytest.param(
            {"sim": {"x-sim-status": "529"}},
            anthropic.InternalServerError,
            "overloaded_error",
            id="provider 529",
        ),
        pytest.param(
            {"sim": {"x-sim-latency-ms": "3000", "x-llm-timeout-ms": "200"}},
            anthropic.InternalServerError,
            "api_error",
            id="timeout",
        ),
        pytest.param(
            {"model": "doomed"}, anthropic.InternalServerError, "api_error", id="nobody listens"
        ),
    ],
)
def test_errors_arrive_as_the_clients_own_classes(
    stack: Stack, key: str, make: dict, error: type[anthropic.APIStatusError], kind: str
) -> None:
    """Every refusal, Envoy's and the provider's too, has the client's class, shape and id."""
    fields = {**GOOD, "model": make.get("model", GOOD["model"])}
    with Anthropic(base_url=stack.base, api_key=make.get("key", key), max_retries=0) as client:
        with pytest.raises(error) as caught:
            client.messages.create(
                **fields,
                extra_body={"top_k": make["top_k"]} if "top_k" in make else None,
                extra_headers=make.get("sim"),
            )
    body: Any = caught.value.body
    assert caught.value.response.headers["content-type"] == "application/json"
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]


def test_models_refuse_in_the_callers_dialect(stack: Stack) -> None:
    """A caller that names a version of Anthropic's API is refused in its shape."""
    headers = {"anthropic-version": "2023-06-01", "x-api-key": "sk_" + "x" * 43}
    refused = httpx.get(f"{stack.base}/v1/models", headers=headers)
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"


def test_the_wrong_method_is_refused_in_the_callers_dialect(stack: Stack) -> None:
    """What Envoy answers on Anthropic's paths has Anthropic's shape."""
    refused = httpx.get(f"{stack.base}/v1/messages")
    assert (refused.status_code, refused.json()["type"]) == (404, "error")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_usage_is_settled_exactly(stack: Stack, stream: bool) -> None:
    """Input, cache reads, cache writes and output of the truth log are what the ledger says."""
    name = "claude-streamed" if stream else "claude-whole"
    key = stack.create_key(name)
    headers = {
        "x-sim-cache-read-tokens": "40",
        "x-sim-cache-creation-tokens": "20",
        "x-sim-output-tokens": "33",
    }
    long: Any = [{"role": "user", "content": "x" * 400}]
    with Anthropic(base_url=stack.base, api_key=key, max_retries=0) as client:
        fields = {**GOOD, "messages": long, "extra_headers": headers}
        if stream:
            with client.messages.stream(**fields) as streamed:
                streamed.get_final_message()
        else:
            client.messages.create(**fields)
        client.messages.count_tokens(model=GOOD["model"], messages=long)
    rows = {row["endpoint"]: row for row in stack.rows_for(name, 2)}
    sent = stack.sim_log("claude")[-2]["usage_sent"]
    total = sum(
        sent[part]
        for part in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    )
    row = rows["messages"]
    assert (row["input"], row["output"]) == (total, 33)
    assert (row["cached_input"], row["usage_source"]) == (40, "provider")
    assert row["cache_write"] == 20
    fresh = total - 40 - 20
    spent = fresh * 150_000 + 40 * 75_000 + 20 * 187_500 + 33 * 600_000
    assert row["cost_pico_usd"] == spent
    free = rows["count_tokens"]
    assert (free["input"], free["output"], free["cost_pico_usd"]) == (0, 0, 0)


def test_a_stream_that_breaks_is_charged_its_whole_prompt(stack: Stack) -> None:
    """The prompt was counted in the first event; the answer is estimated from what was seen."""
    name = "claude-partial"
    key = stack.create_key(name)
    with Anthropic(base_url=stack.base, api_key=key, max_retries=0) as client:
        headers = {"x-sim-abort-after-chunks": "9"}
        with client.messages.stream(**GOOD, extra_headers=headers) as streamed:
            with pytest.raises((anthropic.APIError, httpx2.TransportError)):
                streamed.get_final_message()
    (row,) = stack.rows_for(name, 1)
    assert (row["ended"], row["usage_source"]) == ("partial", "partial")
    assert row["input"] == stack.sim_log("claude")[-1]["prompt_tokens"]
    assert row["output"] > 0
