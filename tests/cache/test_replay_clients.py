"""Official clients: the same result from upstream, from a kept document and from a kept stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState

from extproc.cache.replay import CannotTell, Told, replay
from extproc.simulator.behaviour import Behaviour

from .told import entry, simulated

USAGE_ASKED = {"stream_options": {"include_usage": True}}
HI: list[Any] = [{"role": "user", "content": "hi"}]
OPENAI_TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "clock"}},
]
ANTHROPIC_TOOLS: Any = [
    {
        "name": "weather",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
    {"name": "clock", "input_schema": {"type": "object"}},
]
CHAT = {"model": "m", "messages": HI}
MESSAGE = {"model": "m", "messages": HI, "max_tokens": 90}

Answered = pytest.mark.parametrize(
    ("endpoint", "request_", "behaviour"),
    [
        pytest.param("chat", CHAT, {}, id="chat, text"),
        pytest.param("chat", CHAT, {"tokens_per_chunk": 7}, id="chat, long pieces"),
        pytest.param("chat", CHAT | {"n": 3}, {}, id="chat, three choices"),
        pytest.param("chat", CHAT | {"max_tokens": 2}, {}, id="chat, cut short"),
        pytest.param("chat", CHAT, {"output_tokens": 0}, id="chat, nothing said"),
        pytest.param("chat", CHAT, {"usage": "missing"}, id="chat, no usage"),
        pytest.param("chat", CHAT, {"usage": "huge"}, id="chat, usage past 32 bits"),
        pytest.param("chat", CHAT, {"cache_read_tokens": 2}, id="chat, cached input"),
        pytest.param(
            "chat", CHAT | {"tools": OPENAI_TOOLS, "tool_choice": "required"}, {}, id="chat, a tool"
        ),
        pytest.param(
            "chat",
            CHAT | {"tools": OPENAI_TOOLS},
            {"tool_calls": 3},
            id="chat, text and parallel tools",
        ),
        pytest.param("completions", {"model": "m", "prompt": "a"}, {}, id="completion"),
        pytest.param(
            "completions", {"model": "m", "prompt": ["a", "b"], "n": 2}, {}, id="completions of two"
        ),
        pytest.param("responses", {"model": "m", "input": "hi"}, {}, id="response"),
        pytest.param(
            "responses",
            {"model": "m", "input": "hi", "max_output_tokens": 3},
            {},
            id="response, cut",
        ),
        pytest.param("messages", MESSAGE, {}, id="message"),
        pytest.param("messages", MESSAGE | {"max_tokens": 3}, {}, id="message, cut short"),
        pytest.param(
            "messages",
            MESSAGE | {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            {"cache_creation_tokens": 2, "cache_read_tokens": 1},
            id="message, thinking and a prompt cache",
        ),
        pytest.param(
            "messages",
            MESSAGE | {"tools": ANTHROPIC_TOOLS},
            {"tool_calls": 2},
            id="message, parallel tools",
        ),
    ],
)


@contextmanager
def client(kind: Any, told: Told) -> Iterator[Any]:
    """Yield an official client whose every call is answered with this."""

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=told.body, headers={"content-type": told.content_type})

    with (
        httpx2.Client(transport=httpx2.MockTransport(answer)) as transport,
        kind(api_key="k", base_url="http://t/v1", max_retries=0, http_client=transport) as made,
    ):
        yield made


def chat(told: Told, request: Any, streamed: bool) -> Any:
    with client(openai.OpenAI, told) as one:
        if not streamed:
            return one.chat.completions.create(**request)
        state = ChatCompletionStreamState()
        for chunk in one.chat.completions.create(**request, stream=True, **USAGE_ASKED):
            state.handle_chunk(chunk)
        whole = state.current_completion_snapshot
    for choice in whole.choices:
        if choice.message.tool_calls:  # servers begin such a message with null or with no text
            choice.message.content = choice.message.content or None
    return whole


def completions(told: Told, request: Any, streamed: bool) -> Any:
    with client(openai.OpenAI, told) as one:
        if not streamed:
            return one.completions.create(**request)
        chunks = list(one.completions.create(**request, stream=True, **USAGE_ASKED))
    # The client has no accumulator of its own for these.
    choices: dict[int, Any] = {}
    for piece in (choice for chunk in chunks for choice in chunk.choices):
        choice = choices.setdefault(piece.index, piece.model_copy(update={"text": ""}))
        choice.text += piece.text
        choice.finish_reason = piece.finish_reason or choice.finish_reason
    usage = chunks[-1].usage
    return chunks[0].model_copy(update={"choices": list(choices.values()), "usage": usage})


def responses(told: Told, request: Any, streamed: bool) -> Any:
    with client(openai.OpenAI, told) as one:
        if not streamed:
            return one.responses.create(**request)
        with one.responses.stream(**request) as events:
            *_, last = events
        return last.response


def messages(told: Told, request: Any, streamed: bool) -> Any:
    with client(anthropic.Anthropic, told) as one:
        if not streamed:
            return one.messages.create(**request)
        with one.messages.stream(**request) as events:
            return events.get_final_message()


CLIENTS: dict[str, Callable[[Told, Any, bool], Any]] = {
    "chat": chat,
    "completions": completions,
    "responses": responses,
    "messages": messages,
}


def parsed(endpoint: str, told: Told, request: Any, *, stream: bool) -> Any:
    """Return what the official client makes of an answer, unknown members and all."""
    return CLIENTS[endpoint](told, request, stream).model_dump()


@Answered
def test_a_kept_answer_parses_as_the_one_from_upstream(
    endpoint: str, request_: dict[str, Any], behaviour: dict[str, Any]
) -> None:
    """Whichever form was kept, and whichever is asked for: four ways, two results."""
    how = Behaviour(**{"output_tokens": 9} | behaviour)
    asked = USAGE_ASKED if endpoint in {"chat", "completions"} else {}
    document = simulated(endpoint, request_, how)
    stream = simulated(endpoint, request_ | {"stream": True} | asked, how)
    from_upstream = {
        False: parsed(endpoint, Told("application/json", document), request_, stream=False),
        True: parsed(endpoint, Told("text/event-stream", stream), request_, stream=True),
    }
    for kept in (entry(endpoint, "json", document), entry(endpoint, "sse", stream)):
        for wanted, expected in from_upstream.items():
            told = replay(kept, stream=wanted, include_usage=True)
            assert parsed(endpoint, told, request_, stream=wanted) == expected


@Answered
def test_a_stream_without_usage_is_as_upstream_sends_it(
    endpoint: str, request_: dict[str, Any], behaviour: dict[str, Any]
) -> None:
    """A caller who did not ask for usage sees none, but on streams that always tell it."""
    how = Behaviour(**{"output_tokens": 9} | behaviour)
    document = simulated(endpoint, request_, how)
    bare = simulated(endpoint, request_ | {"stream": True}, how)
    expected = parsed(endpoint, Told("text/event-stream", bare), request_, stream=True)
    told = replay(entry(endpoint, "json", document), stream=True, include_usage=False)
    assert parsed(endpoint, told, request_, stream=True) == expected
    if endpoint in {"chat", "completions"}:
        recorded = simulated(endpoint, request_ | {"stream": True} | USAGE_ASKED, how)
        told = replay(entry(endpoint, "sse", recorded), stream=True, include_usage=False)
        assert told.body.replace(b',"usage":null', b"") == bare
        assert parsed(endpoint, told, request_, stream=True) == expected


RECORDED = {
    "basic_response": True,
    "compaction_response": True,
    "fallback_credit_response": True,
    "fallback_response": True,
    "incomplete_partial_json_response": False,
    "refusal_response": True,
    "tool_use_response": True,
}


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_anthropics_own_recordings_fold_as_its_client_folds_them(
    name: str, shared_data: Path
) -> None:
    """The document a recording adds up to is what the client accumulates, streamed again too."""
    body = (shared_data / "sse" / "anthropic" / f"{name}.txt").read_bytes()
    kept = entry("messages", "sse", body)
    if not RECORDED[name]:
        with pytest.raises(CannotTell):
            replay(kept, stream=False, include_usage=False)
        return
    with client(anthropic.Anthropic, Told("text/event-stream", body)) as one:
        with one.beta.messages.stream(**MESSAGE) as events:
            expected = events.get_final_message().model_dump()
    told = replay(kept, stream=False, include_usage=False)
    with client(anthropic.Anthropic, told) as one:
        assert one.beta.messages.create(**MESSAGE).model_dump() == expected
    again = replay(entry("messages", "json", told.body), stream=True, include_usage=False)
    with client(anthropic.Anthropic, again) as one:
        with one.beta.messages.stream(**MESSAGE) as events:
            assert events.get_final_message().model_dump() == expected
