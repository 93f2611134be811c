"""The official OpenAI client against the real gateway: answers, streams, and its own errors."""

from __future__ import annotations

import base64
import json
import re
import time

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from .stack import Stack

MESSAGES = [{"role": "user", "content": "Say something short."}]


@pytest.fixture
def client(stack: Stack, key: str):
    """Return the sync client, without its own retries, so that every answer is the gateway's."""
    with OpenAI(base_url=f"{stack.base}/v1", api_key=key, max_retries=0) as made:
        yield made


def test_chat_answers_with_usage_and_headers(stack: Stack, client: OpenAI) -> None:
    """A plain chat is parsed by the client and says who served it."""
    raw = client.chat.completions.with_raw_response.create(model="renamed", messages=MESSAGES)
    parsed = raw.parse()
    assert parsed.choices[0].message.content
    assert parsed.usage.completion_tokens == 16
    assert raw.headers["x-llm-provider"] == "a"
    assert raw.headers["x-llm-model"] == "upstream-name"
    assert raw.headers["x-llm-attempts"] == "1"
    assert stack.sim_log("a")[-1]["model"] == "upstream-name"


def test_an_answer_says_where_its_time_went(client: OpenAI) -> None:
    """Until it was sent to the provider, and until that answered, in milliseconds."""
    raw = client.chat.completions.with_raw_response.create(
        model="gpt-4o-mini", messages=MESSAGES, extra_headers={"x-sim-latency-ms": "81"}
    )
    told = re.fullmatch(r"gateway;dur=(\d+), provider;dur=(\d+)", raw.headers["server-timing"])
    assert told is not None
    assert int(told[2]) >= 80  # one less, because the provider's loop counts whole milliseconds


def test_streamed_chat_hides_the_usage_nobody_asked_for(stack: Stack, client: OpenAI) -> None:
    """The provider is asked for usage, the client does not see the chunk."""
    chunks = list(
        client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True)
    )
    assert all(chunk.choices for chunk in chunks)
    assert "".join(c.choices[0].delta.content or "" for c in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    truth = stack.sim_log("a")[-1]
    assert truth["include_usage"] is True
    assert truth["usage_sent"]["completion_tokens"] == 16


def test_streamed_chat_shows_the_usage_that_was_asked_for(client: OpenAI) -> None:
    """`include_usage` gives the last chunk with the counts."""
    chunks = list(
        client.chat.completions.create(
            model="gpt-4o-mini",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 16


async def test_async_client_does_all_of_it(stack: Stack, key: str) -> None:
    """The asynchronous client: chat, stream, embeddings, models, responses."""
    async with AsyncOpenAI(base_url=f"{stack.base}/v1", api_key=key, max_retries=0) as client:
        plain = await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
        assert plain.usage.completion_tokens == 16
        stream = await client.chat.completions.create(
            model="gpt-4o-mini", messages=MESSAGES, stream=True
        )
        assert [chunk async for chunk in stream][-1].choices[0].finish_reason == "stop"
        vectors = await client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
        assert len(vectors.data) == 2
        assert {model.id async for model in client.models.list()} == set(stack.config["models"])
        answer = await client.responses.create(model="gpt-4o-mini", input="hello")
        assert answer.usage.output_tokens == 16
        events = [
            event.type
            async for event in await client.responses.create(
                model="gpt-4o-mini", input="hello", stream=True
            )
        ]
        assert events[-1] == "response.completed"
        text = await client.completions.create(model="gpt-4o-mini", prompt="once")
        assert text.choices[0].text


def test_embeddings_and_models(client: OpenAI, stack: Stack) -> None:
    """Embeddings parse in both encodings; one model can be asked for by name."""
    floats = client.embeddings.create(
        model="text-embedding-3-small", input="x", encoding_format="float"
    )
    assert len(floats.data[0].embedding) > 1
    packed = client.embeddings.with_raw_response.create(
        model="text-embedding-3-small", input="x", encoding_format="base64"
    )
    assert base64.b64decode(packed.http_response.json()["data"][0]["embedding"])
    assert client.models.retrieve("renamed").id == "renamed"


@pytest.mark.parametrize(
    ("make", "error", "code"),
    [
        pytest.param(
            {"key": "sk_" + "x" * 43}, openai.AuthenticationError, "invalid_api_key", id="wrong key"
        ),
        pytest.param(
            {"key": "nonsense"}, openai.AuthenticationError, "invalid_api_key", id="not a key"
        ),
        pytest.param(
            {"model": "no-such"}, openai.NotFoundError, "model_not_found", id="unknown model"
        ),
        pytest.param(
            {"temperature": 9}, openai.BadRequestError, "invalid_request_error", id="range"
        ),
        pytest.param(
            {"sim": {"x-sim-status": "500"}}, openai.InternalServerError, None, id="provider 500"
        ),
        pytest.param(
            {"sim": {"x-sim-status": "429"}}, openai.RateLimitError, None, id="provider 429"
        ),
        pytest.param(
            {"sim": {"x-sim-status": "400"}}, openai.BadRequestError, None, id="provider 400"
        ),
        pytest.param(
            {"model": "doomed"}, openai.InternalServerError, "upstream_error", id="nobody listens"
        ),
        pytest.param(
            {"sim": {"x-sim-latency-ms": "3000", "x-llm-timeout-ms": "200"}},
            openai.InternalServerError,
            "upstream_timeout",
            id="timeout",
        ),
    ],
)
def test_errors_arrive_as_the_clients_own_classes(
    stack: Stack, key: str, make: dict, error: type[openai.APIStatusError], code: str | None
) -> None:
    """Every refusal is an exception the client knows, with the gateway's code."""
    with OpenAI(base_url=f"{stack.base}/v1", api_key=make.get("key", key), max_retries=0) as client:
        with pytest.raises(error) as caught:
            client.chat.completions.create(
                model=make.get("model", "gpt-4o-mini"),
                messages=MESSAGES,
                temperature=make.get("temperature", 1),
                extra_headers=make.get("sim"),
            )
    assert caught.value.response.headers["content-type"] == "application/json"
    if code is not None:
        assert caught.value.code == code


def test_keys_see_and_use_only_what_they_may(stack: Stack) -> None:
    """Allow-lists of models and endpoints hold in the listing and in the call."""
    narrow = stack.create_key("narrow", "--models", "renamed", "--endpoints", "chat")
    with OpenAI(base_url=f"{stack.base}/v1", api_key=narrow, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["renamed"]
        assert client.chat.completions.create(model="renamed", messages=MESSAGES).choices
        with pytest.raises(openai.PermissionDeniedError):
            client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
        with pytest.raises(openai.PermissionDeniedError):
            client.embeddings.create(model="renamed", input="x")


def test_failover_reaches_the_next_target(stack: Stack, client: OpenAI) -> None:
    """Connect failure, then 503, then an answer, each under its own model name."""
    stack.behave("b", status=503)
    raw = client.chat.completions.with_raw_response.create(model="triple", messages=MESSAGES)
    assert raw.parse().choices[0].message.content
    assert raw.headers["x-llm-attempts"] == "3"
    assert raw.headers["x-llm-provider"] == "c"
    assert raw.headers["x-llm-model"] == "x"
    assert [r["model"] for r in stack.sim_log("b")] == ["two-two"]
    assert [r["model"] for r in stack.sim_log("c")] == ["x"]


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_failover_on_every_retriable_status(stack: Stack, client: OpenAI, status: int) -> None:
    """A provider's 5xx and 429 go to the next target, streams too."""
    stack.behave("b", status=status)
    raw = client.chat.completions.with_raw_response.create(
        model="failover", messages=MESSAGES, stream=True
    )
    assert len(list(raw.parse())) > 10
    assert raw.headers["x-llm-provider"] == "a"
    assert raw.headers["x-llm-attempts"] == "2"


def test_no_failover_after_the_first_byte(stack: Stack, client: OpenAI) -> None:
    """A stream that breaks in the middle ends; nobody else is asked."""
    stack.behave("b", abort_after_chunks=3)
    with pytest.raises((openai.APIError, httpx.TransportError)):
        list(client.chat.completions.create(model="failover", messages=MESSAGES, stream=True))
    assert stack.sim_log("a") == []


def test_a_pinned_provider_is_the_only_one_tried(stack: Stack, client: OpenAI) -> None:
    """`x-llm-provider` leaves one target; one that does not serve the model is an error."""
    raw = client.chat.completions.with_raw_response.create(
        model="failover", messages=MESSAGES, extra_headers={"x-llm-provider": "a"}
    )
    assert raw.headers["x-llm-provider"] == "a"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="failover", messages=MESSAGES, extra_headers={"x-llm-provider": "c"}
        )
    assert caught.value.param == "x-llm-provider"


def test_a_revoked_key_stops_within_a_second(stack: Stack) -> None:
    """Revocation needs no restart."""
    key = stack.create_key("doomed-key")
    listed = stack.command("keys", "list", "--json")
    key_id = next(k["key_id"] for k in json.loads(listed) if k["name"] == "doomed-key")
    stack.command("keys", "revoke", key_id)
    deadline = time.monotonic() + 1.0
    status = 200
    while status != 401 and time.monotonic() < deadline:
        status = httpx.get(
            f"{stack.base}/v1/models", headers={"authorization": f"Bearer {key}"}
        ).status_code
    assert status == 401
