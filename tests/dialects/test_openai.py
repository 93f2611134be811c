"""The OpenAI dialect: what a body may say, what it is read as, and that rewriting only splices."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from extproc.dialects.openai import read
from extproc.domain import ENDPOINTS, Call, Endpoint, Span
from extproc.errors import Denied

Name = Literal["chat", "completions", "embeddings", "responses"]
MINIMAL_NAMES = typing.get_args(Name)
BY_NAME: Mapping[str, Endpoint] = {
    one.name: one for one in ENDPOINTS.values() if one.name in MINIMAL_NAMES
}
MESSAGES = [{"role": "user", "content": "hello"}]
MINIMAL: Mapping[str, dict[str, Any]] = {
    "chat": {"model": "m", "messages": MESSAGES},
    "completions": {"model": "m", "prompt": "hello"},
    "embeddings": {"model": "m", "input": "hello"},
    "responses": {"model": "m", "input": "hello"},
}
SECRET = "hunter2"


def asked(name: str, **more: Any) -> Call:
    return read(BY_NAME[name], json.dumps({**MINIMAL[name], **more}).encode())


def refused(name: str, body: bytes) -> Denied:
    with pytest.raises(Denied) as caught:
        read(BY_NAME[name], body)
    assert (caught.value.code, caught.value.status) == ("invalid_request_error", 400)
    return caught.value


def said(role: Any = "user", content: Any = "x", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


# endpoint, member, param where it differs, values that are refused there
ILLEGAL: list[tuple[str, str, str | None, list[Any]]] = [
    ("chat", "model", None, [None, "", 5, True, ["m"], "x" * 257]),
    ("chat", "messages", None, [None, [], {}, "x", 1]),
    ("chat", "messages", "messages[0]", [["x"], [None], [[]], [1]]),
    ("chat", "messages", "messages[1].role", [[said(), said("root")], [said(), said(None)]]),
    ("chat", "messages", "messages[0].role", [[{}], [{"content": "x"}], [said(1)], [said("User")]]),
    ("chat", "messages", "messages[0].content", [[said("user", 1)], [said("user", {})]]),
    ("chat", "messages", "messages[0].content[0]", [[said("user", ["x"])]]),
    ("chat", "messages", "messages[0].content[0].type", [[said("user", [{}])]]),
    ("chat", "stream", None, ["true", 1, 0, {}]),
    ("chat", "stream_options", None, [True, [], "x", {}, {"include_usage": True}]),
    ("chat", "stream_options", "stream_options.include_usage", [{"include_usage": 1}]),
    ("chat", "max_tokens", None, [0, -1, 1.0, 1.5, "5", True, [], 2**31, 10**30]),
    ("chat", "max_completion_tokens", None, [0, True, "5"]),
    ("chat", "n", None, [0, 129, 1.0, True, "1"]),
    ("chat", "temperature", None, [-0.1, 2.1, "1", True, []]),
    ("chat", "top_p", None, [-0.1, 1.1, False]),
    ("chat", "presence_penalty", None, [-2.1, 3, "0"]),
    ("chat", "frequency_penalty", None, [-2.1, 3, "0"]),
    ("chat", "logprobs", None, [1, "true"]),
    ("chat", "top_logprobs", None, [-1, 21, True, 1.0]),
    ("chat", "stop", None, [1, {}, ["a"] * 5]),
    ("chat", "stop", "stop[1]", [["a", 1], ["a", None]]),
    ("chat", "tools", None, [{}, "x"]),
    ("chat", "tools", "tools[0]", [["x"], [None]]),
    ("chat", "tool_choice", None, [1, [], True]),
    ("chat", "response_format", None, ["json", []]),
    ("chat", "seed", None, [1.5, "1", True, 2**63]),
    ("chat", "user", None, [1, {}, True]),
    ("completions", "prompt", None, [{}, 1, [], ["a", 1], [1, [1]]]),
    ("completions", "prompt", "prompt[0]", [[None], [True], [1.5], [{}], [[]]]),
    ("completions", "max_tokens", None, [0, "5", True]),
    ("completions", "best_of", None, [-1, 21, True]),
    ("completions", "stream_options", None, [{"include_usage": True}]),
    ("embeddings", "model", None, [None, ""]),
    ("embeddings", "input", None, [None, "", [], {}, 1, ["a", 1], ["a", [1]], [1, [1]]]),
    ("embeddings", "input", "input[0]", [[None], [True], [1.5], [{}], [[]]]),
    ("embeddings", "input", "input[1][0]", [[[1], ["a"]], [[1], [True]]]),
    ("embeddings", "dimensions", None, [0, 1.5, "1", True]),
    ("embeddings", "encoding_format", None, ["hex", 1]),
    ("responses", "input", None, [1, {}, True]),
    ("responses", "input", "input[0]", [["x"], [None]]),
    ("responses", "max_output_tokens", None, [0, True, "5"]),
    ("responses", "stream", None, ["true", 1]),
    ("responses", "temperature", None, [3, "1"]),
    ("responses", "tools", None, [{}, "x"]),
]


@pytest.mark.parametrize(
    ("name", "member", "param", "values"),
    ILLEGAL,
    ids=[f"{name} refuses an illegal {param or member}" for name, member, param, _ in ILLEGAL],
)
def test_refuses_naming_the_field(
    name: str, member: str, param: str | None, values: list[Any]
) -> None:
    """A wrong type or range is a 400 that names the field in brackets and says what is legal."""
    for value in values:
        denied = refused(name, json.dumps({**MINIMAL[name], member: value}).encode())
        assert denied.param == (param or member), value
        assert f"'{param or member}'" in denied.message, value


@pytest.mark.parametrize(
    ("name", "member"),
    [("chat", "model"), ("chat", "messages"), ("completions", "prompt"), ("embeddings", "input")],
)
def test_a_required_member_is_missed(name: str, member: str) -> None:
    """What is missing is named."""
    body = {key: value for key, value in MINIMAL[name].items() if key != member}
    denied = refused(name, json.dumps(body).encode())
    assert denied.param == member
    assert denied.message == f"Missing required parameter: '{member}'."


@pytest.mark.parametrize(
    "messages",
    [
        [said(SECRET)],
        [said(f"x - at `$.{SECRET}`")],
        [{SECRET: 1}],
        [said(), {"role": "user", "content": [{"type": [SECRET]}]}],
        [{"role": "user", "content": {SECRET: SECRET}}],
    ],
    ids=["a role", "a role that looks like a path", "a name", "a part", "content"],
)
def test_content_never_reaches_an_error(messages: list[Any]) -> None:
    """A refusal quotes no value and no name of the caller's."""
    denied = refused("chat", json.dumps({"model": "m", "messages": messages}).encode())
    assert SECRET not in denied.message + str(denied.param)
    assert (denied.param or "").startswith("messages[")
    assert denied.__suppress_context__


LEGAL: list[tuple[str, dict[str, Any]]] = [
    ("chat", {"model": "x" * 256, "messages": [said("developer"), said("tool", None)]}),
    ("chat", {"messages": [{"role": "assistant"}, said("user", [{"type": "text", "text": 1}])]}),
    ("chat", {"temperature": 0, "top_p": 1, "presence_penalty": -2, "frequency_penalty": 2.0}),
    ("chat", {"logprobs": True, "top_logprobs": 20, "seed": -(2**63), "stop": ["a"] * 4, "n": 128}),
    ("chat", {"tools": [{"type": "function"}], "tool_choice": "auto", "response_format": {}}),
    ("chat", {"stream": False, "stream_options": None, "unknown": {"a": [1]}, "user": ""}),
    ("chat", dict.fromkeys(["temperature", "top_p", "n", "stop", "seed", "user", "max_tokens"])),
    ("completions", {"prompt": None, "logprobs": 5, "stop": None, "best_of": 0}),
    ("completions", {"prompt": ""}),
    ("embeddings", {"input": ["a", ""], "dimensions": 1, "encoding_format": "base64"}),
    ("embeddings", {"stream": "not a field of embeddings", "temperature": 9}),
    ("responses", {"input": [said()], "stream": True, "stream_options": {}, "tools": []}),
    ("responses", {"input": None, "prompt": {"id": "p"}}),
]


@pytest.mark.parametrize(("name", "more"), LEGAL, ids=[f"{n} {list(m)}" for n, m in LEGAL])
def test_accepts(name: str, more: dict[str, Any]) -> None:
    """Values at the edge of the documented ranges, nulls and unknown fields pass."""
    assert asked(name, **more).endpoint.name == name


def of(name: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return name, more


@pytest.mark.parametrize(
    ("call", "bound", "choices"),
    [
        (of("chat"), None, 1),
        (of("chat", max_tokens=7, n=3), 7, 3),
        (of("chat", max_tokens=7, max_completion_tokens=9), 9, 1),
        (of("completions", max_tokens=5, n=2, best_of=4), 5, 4),
        (of("completions", prompt=["a", "b", "c"], n=2), None, 6),
        (of("completions", prompt=[1, 2, 3], n=2), None, 2),
        (of("completions", prompt=[[1], [2, 3]]), None, 2),
        (of("embeddings", input=["a", "b"], max_tokens=5), None, 1),
        (of("responses", max_output_tokens=11), 11, 1),
    ],
    ids=str,
)
def test_reads_what_may_be_generated(
    call: tuple[str, dict[str, Any]], bound: int | None, choices: int
) -> None:
    """The bound is per answer and every answer the provider will bill is counted."""
    got = asked(call[0], **call[1])
    assert (got.max_output_tokens, got.choices) == (bound, choices)


def test_reads_a_call_by_offset() -> None:
    """The call points into the body, whatever the order, white space and escapes of its names."""
    body = rb' {"messages":[{"role":"user"}],"mod\u0065l" : "gpt\u002d4" ,"stream_options": null }'
    call = read(BY_NAME["chat"], body)
    null, name = body.index(b"null"), body.index(b'"gpt')
    assert (call.model, call.object_start, call.text_bytes) == ("gpt-4", 2, len(body))
    assert call.model_span == Span(name, name + len(rb'"gpt\u002d4"'))
    assert call.stream_options_span == Span(null, null + 4)
    assert (call.stream, call.wants_usage) == (False, False)


M = '"messages":[{"role":"user"}]'
MODELS: dict[str, tuple[str, str, str | None]] = {  # sent, the upstream's model, forwarded
    "nothing to change": (f'{{"model":"a",{M}}}', "a", None),
    "the model alone": (f'{{ {M}, "model" : "a" }}', "bb", f'{{ {M}, "model" : "bb" }}'),
    "a model is escaped": (f'{{"model":"a",{M}}}', 'b"é', f'{{"model":"b\\"é",{M}}}'),
    "an equal model keeps its spelling": (f'{{"model":"\\u0061",{M}}}', "a", None),
}
