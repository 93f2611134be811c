"""Which calls have to do with the cache, and which answers are kept."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.answers import OVERHEAD_BYTES, Form
from extproc.cache.reasons import Reason
from extproc.cache.rules import bypass, may_record, may_store
from extproc.cache_policy import Policy
from extproc.domain import EndpointName
from tests.cache.answers import chat, chunks, delta, message
from tests.cache.asking import called

FUNCTION = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("endpoint", "fields", "reason"),
    [
        # What depends on, or leaves something with, the provider.
        pytest.param("responses", {"store": True}, Reason.STORE, id="a response to be stored"),
        pytest.param("responses", {"store": None}, Reason.STORE, id="a response stored by default"),
        pytest.param("chat", {"store": True}, Reason.STORE, id="a chat to be stored"),
        pytest.param("chat", {"store": "true"}, Reason.STORE, id="a chat to be stored, by a text"),
        pytest.param("responses", {"previous_response_id": "resp_1"}, Reason.STATE, id="a response that goes on"),
        pytest.param("responses", {"conversation": "conv_1"}, Reason.STATE, id="a response in a conversation"),
        pytest.param("responses", {"conversation": {"id": "conv_1"}}, Reason.STATE, id="a conversation as an object"),
        pytest.param("responses", {"prompt": {"id": "pmpt_1"}}, Reason.STATE, id="a prompt kept at the provider"),
        pytest.param("responses", {"background": True}, Reason.STATE, id="a response in the background"),
        pytest.param("messages", {"container": "c_1"}, Reason.STATE, id="a message in a container"),
        pytest.param("chat", {"audio": {"voice": "alloy"}, "modalities": ["text", "audio"]}, Reason.STATE, id="speech that expires"),
        pytest.param("chat", {"web_search_options": {}}, Reason.HOSTED_TOOLS, id="a chat that searches"),
        pytest.param("responses", {"tools": [{"type": "web_search"}]}, Reason.HOSTED_TOOLS, id="a response that searches"),
        pytest.param("responses", {"tools": [FUNCTION, {"type": "mcp"}]}, Reason.HOSTED_TOOLS, id="one hosted tool of two"),
        pytest.param("messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, Reason.HOSTED_TOOLS, id="a message that searches"),
        pytest.param("messages", {"mcp_servers": []}, Reason.HOSTED_TOOLS, id="servers of tools"),
        pytest.param("chat", {"tools": [{"type": ["function"]}]}, Reason.HOSTED_TOOLS, id="a tool whose type is no text"),
        pytest.param("completions", {"tools": [{}, 1]}, Reason.HOSTED_TOOLS, id="a tool that is none, where nobody checks"),
        pytest.param("completions", {"tools": "search"}, Reason.HOSTED_TOOLS, id="tools that are a text, where nobody checks"),
        # What wants variety.
        pytest.param("chat", {"n": 2}, Reason.CHOICES, id="two choices"),
        pytest.param("completions", {"best_of": 3}, Reason.CHOICES, id="the best of three"),
        pytest.param("completions", {"prompt": ["a", "b"]}, Reason.CHOICES, id="two prompts"),
        pytest.param("chat", {"temperature": 1.01}, Reason.TEMPERATURE, id="just above the bound"),
        pytest.param("chat", {"temperature": 2}, Reason.TEMPERATURE, id="far above the bound"),
        pytest.param("count_tokens", {}, Reason.ENDPOINT, id="a count"),
        # What may.
        pytest.param("chat", {}, None, id="a chat"),
        pytest.param("chat", {"temperature": 1.0}, None, id="at the bound"),
        pytest.param("chat", {"temperature": 0}, None, id="below the bound"),
        pytest.param("chat", {"temperature": None, "n": 1, "store": False}, None, id="defaults"),
        pytest.param("chat", {"stream": True, "stream_options": {"include_usage": True}}, None, id="a stream"),
        pytest.param("chat", {"tools": [FUNCTION]}, None, id="tools of the caller's"),
        pytest.param("chat", {"tools": [{"type": "custom", "custom": {"name": "f"}}]}, None, id="a custom tool of the caller's"),
        pytest.param("messages", {"tools": [{"name": "f", "input_schema": {}}]}, None, id="a tool without a type"),
        pytest.param("completions", {}, None, id="a completion"),
        pytest.param("completions", {"prompt": ["a"]}, None, id="one prompt in a list"),
        pytest.param("embeddings", {}, None, id="an embedding"),
        pytest.param("embeddings", {"input": ["a", "b"], "temperature": 2}, None, id="several embeddings"),
        pytest.param("responses", {}, None, id="a response that is not stored"),
        pytest.param("responses", {"background": False, "previous_response_id": None}, None, id="a response of no state"),
        pytest.param("messages", {"container": None}, None, id="a message"),
    ],
)  # fmt: skip
def test_which_calls_have_to_do_with_the_cache(
    endpoint: EndpointName, fields: dict[str, Any], reason: Reason | None
) -> None:
    assert bypass(Policy(True), *called(endpoint, **fields)) is reason


@pytest.mark.parametrize(
    ("bound", "temperature", "reason"),
    [
        pytest.param(0.0, None, Reason.TEMPERATURE, id="the default counts as 1"),
        pytest.param(0.0, 0, None, id="only what is as good as certain"),
        pytest.param(0.7, 0.7, None, id="a fraction at the bound"),
        pytest.param(0.7, 0.70001, Reason.TEMPERATURE, id="a fraction above the bound"),
        pytest.param(None, 2, None, id="no bound"),
    ],
)
def test_the_bound_of_temperature(
    bound: float | None, temperature: float | None, reason: Reason | None
) -> None:
    assert (
        bypass(Policy(True, max_temperature=bound), *called("chat", temperature=temperature))
        is reason
    )


@pytest.mark.parametrize(
    ("status", "content_type", "length", "verdict"),
    [
        pytest.param(500, "application/json", 10, Reason.STATUS, id="an error"),
        pytest.param(201, "application/json", 10, Reason.STATUS, id="another success"),
        pytest.param(206, "application/json", 10, Reason.STATUS, id="a part"),
        pytest.param(200, "text/html", 10, Reason.CONTENT_TYPE, id="a page"),
        pytest.param(200, "", 10, Reason.CONTENT_TYPE, id="no type"),
        pytest.param(200, "application/jsonl", 10, Reason.CONTENT_TYPE, id="a type that begins alike"),
        pytest.param(200, "application/json", 4097 - OVERHEAD_BYTES, Reason.TOO_LARGE, id="a byte too large"),
        pytest.param(200, "application/json", 4096 - OVERHEAD_BYTES, "json", id="as large as may be"),
        pytest.param(200, "Application/JSON; charset=utf-8", None, "json", id="a document"),
        pytest.param(200, "text/event-stream;charset=utf-8", None, "sse", id="a stream"),
    ],
)  # fmt: skip
def test_which_answers_are_recorded(
    status: int, content_type: str, length: int | None, verdict: Form | Reason
) -> None:
    policy = Policy(True, max_entry_bytes=4096)
    assert (
        may_record(policy, status=status, content_type=content_type, content_length=length)
        == verdict
    )


GOOD: dict[str, Any] = {
    "endpoint": "chat",
    "status": 200,
    "form": "json",
    "body": chat("stop"),
    "finished": True,
    "bounded": False,
}
TOOL_CALLS = {"body": chat("tool_calls", tool_calls=[{"id": "c"}])}
STREAM = {"form": "sse", "body": chunks(delta(content="x"), delta("stop"))}
KEEPS_TOOLS = Policy(True, tool_calls=True, max_entry_bytes=4096)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"status": 500}, Reason.STATUS, id="an error"),
        pytest.param({"status": 203}, Reason.STATUS, id="another success"),
        pytest.param({"finished": False}, Reason.UNFINISHED, id="an answer that settlement found cut"),
        pytest.param({"body": chat("stop", content="x" * 4096)}, Reason.TOO_LARGE, id="a large answer"),
        pytest.param({"body": chat("stop")[:-1]}, Reason.UNREADABLE, id="a document that was cut"),
        pytest.param({"form": "sse", "body": chunks(delta("stop"), end="")}, Reason.UNREADABLE, id="a stream without its end"),
        pytest.param({"body": chat("content_filter")}, Reason.CONTENT_FILTER, id="a filter"),
        pytest.param({"body": chat("stop", refusal="No.")}, Reason.REFUSAL, id="a refusal"),
        pytest.param({"endpoint": "messages", "body": message("refusal")}, Reason.REFUSAL, id="a message that refuses"),
        pytest.param({"endpoint": "messages", "body": message("end_turn", "server_tool_use")}, Reason.HOSTED_TOOLS, id="a tool of the provider's"),
        pytest.param({"endpoint": "embeddings"}, Reason.UNREADABLE, id="an answer of another endpoint"),
        pytest.param({"body": chat("length"), "bounded": True}, Reason.OUTPUT_BOUND, id="cut at the gateway's bound"),
        pytest.param({"body": chat("length")}, None, id="cut at the caller's bound"),
        pytest.param({"bounded": True}, None, id="ended before the gateway's bound"),
        pytest.param({}, None, id="a document"),
        pytest.param(STREAM, None, id="a stream"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "policy", [Policy(True, max_entry_bytes=4096), KEEPS_TOOLS], ids=["usual", "keeps tools"]
)
def test_which_answers_are_kept(
    policy: Policy, change: dict[str, Any], reason: Reason | None
) -> None:
    assert may_store(policy, **{**GOOD, **change}) is reason


@pytest.mark.parametrize(
    ("policy", "change", "reason"),
    [
        pytest.param(Policy(True), TOOL_CALLS, Reason.TOOL_CALLS, id="tool calls"),
        pytest.param(KEEPS_TOOLS, TOOL_CALLS, None, id="tool calls where they are kept"),
        pytest.param(KEEPS_TOOLS, {"body": chat("length", tool_calls=[{}])}, Reason.TOOL_CALLS, id="arguments that were cut"),
        pytest.param(KEEPS_TOOLS, {"body": chat("content_filter", tool_calls=[{}])}, Reason.CONTENT_FILTER, id="calls that were filtered"),
        pytest.param(KEEPS_TOOLS, {"endpoint": "messages", "body": message("tool_use", "tool_use")}, None, id="a message that calls"),
    ],
)  # fmt: skip
def test_tool_calls_are_kept_where_it_is_configured(
    policy: Policy, change: dict[str, Any], reason: Reason | None
) -> None:
    assert may_store(policy, **{**GOOD, **change}) is reason


def test_an_entry_may_weigh_as_much_as_is_configured() -> None:
    body = chat("stop")
    exact = len(body) + OVERHEAD_BYTES
    assert may_store(Policy(True, max_entry_bytes=exact), **GOOD) is None
    assert may_store(Policy(True, max_entry_bytes=exact - 1), **GOOD) is Reason.TOO_LARGE
