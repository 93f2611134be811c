"""The OpenAI dialect: what a body may say, what it is read as, and that rewriting only splices."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from extproc.dialects import openai
from extproc.dialects.json_body import members
from extproc.dialects.openai import Rewritten, read, rewrite
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


@pytest.mark.parametrize(("sent", "model", "forwarded"), MODELS.values(), ids=MODELS.keys())
def test_rewrite_splices_the_model(sent: str, model: str, forwarded: str | None) -> None:
    """Only the model's value changes, and only where it differs."""
    body = sent.encode()
    got = rewrite(body, read(BY_NAME["chat"], body), model)
    assert got.body == (None if forwarded is None else forwarded.encode())
    assert got.strip_usage is False
    assert json.loads((got.body or body)[got.model_span.start : got.model_span.stop]) == model


OPTIONS: dict[str, tuple[str, str]] = {  # the value of stream_options as sent, as forwarded
    "usage was asked for": ('{"include_usage":true}', '{"include_usage":true}'),
    "usage was declined": ('{"x":1, "include_usage" : false }', '{"x":1, "include_usage" : true }'),
    "usage was null": ('{"include_usage":null}', '{"include_usage":true}'),
    "an escaped name": (r'{"include\u005fusage":false}', r'{"include\u005fusage":true}'),
    "other options are kept": ('{ "x":[1]}', '{"include_usage":true, "x":[1]}'),
    "empty options": ("{ }", '{"include_usage":true }'),
    "null options": ("null", '{"include_usage":true}'),
}


@pytest.mark.parametrize("order", ['"model":%s,{},', '{},"model" : %s ,'], ids=["after", "before"])
@pytest.mark.parametrize(("sent", "forwarded"), OPTIONS.values(), ids=OPTIONS.keys())
def test_rewrite_splices_stream_options(sent: str, forwarded: str, order: str) -> None:
    """The wish for usage is set where it was given, and the span follows the model."""
    text = '{"stream":true,' + order.format('"stream_options": {}') + M + "}"
    body = text.replace("{}", sent).replace("%s", '"a"').encode()
    expected = text.replace("{}", forwarded).replace("%s", '"longer"').encode()
    got = rewrite(body, read(BY_NAME["chat"], body), "longer")
    assert (got.body, got.strip_usage) == (expected, sent != forwarded)
    assert expected[got.model_span.start : got.model_span.stop] == b'"longer"'


def test_rewrite_inserts_stream_options() -> None:
    """Where the caller gave no options they come first, and nothing else moves."""
    body = f' {{ "model":"a","stream":true,{M}}}'.encode()
    got = rewrite(body, read(BY_NAME["chat"], body), "a")
    inserted = b'"stream_options":{"include_usage":true},'
    start = body.index(b'"a"') + len(inserted)
    assert got == Rewritten(
        body[:2] + inserted + body[2:], Span(start, start + 3), strip_usage=True
    )


@pytest.mark.parametrize("name", ["embeddings", "responses"])
def test_no_usage_is_wished_for_where_it_always_comes(name: str) -> None:
    """Embeddings have no stream and Responses streams end with usage: nothing is injected."""
    body = json.dumps({**MINIMAL[name], "stream": True, "stream_options": {"a": 1}}).encode()
    call = read(BY_NAME[name], body)
    assert rewrite(body, call, "m") == Rewritten(None, call.model_span, strip_usage=False)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
VALUES = st.none() | st.booleans() | st.integers() | TEXTS | st.lists(TEXTS, max_size=2)
EXTRA = st.dictionaries(TEXTS.map("x_{}".format), VALUES, max_size=3)
USAGE = st.fixed_dictionaries({}, optional={"include_usage": st.none() | st.booleans()})
STREAM_OPTIONS = st.none() | st.builds(lambda extra, usage: {**extra, **usage}, EXTRA, USAGE)
STREAMED = st.fixed_dictionaries(
    {"stream": st.just(value=True)}, optional={"stream_options": STREAM_OPTIONS}
)


@given(st.sampled_from(["chat", "completions"]), TEXTS, EXTRA, STREAMED | st.just({}), st.data())
def test_rewrite_equals_the_edit_of_the_value(
    name: str, upstream: str, extra: dict[str, Any], streamed: dict[str, Any], data: st.DataObject
) -> None:
    """In any order and layout, the forwarded body is the sent value plus exactly the edits."""
    sent = {**MINIMAL[name], **extra, **streamed, "model": data.draw(TEXTS)}
    order = data.draw(st.permutations(list(sent)))
    escape, indent = data.draw(st.booleans()), data.draw(st.sampled_from([None, 0, 2]))
    body = json.dumps({k: sent[k] for k in order}, ensure_ascii=escape, indent=indent).encode()
    got = rewrite(body, read(BY_NAME[name], body), upstream)
    options = sent.get("stream_options") or {}
    strip = bool(streamed) and options.get("include_usage") is not True
    expected = {**sent, "model": upstream}
    if strip:
        expected["stream_options"] = {**options, "include_usage": True}
    forwarded = body if got.body is None else got.body
    assert json.loads(forwarded) == expected
    assert got.strip_usage is strip
    assert (got.body is None) == (upstream == sent["model"] and not strip)
    span = got.model_span
    assert json.loads(forwarded[span.start : span.stop]) == upstream
    again = read(BY_NAME[name], forwarded)
    assert again.model_span == span
    assert rewrite(forwarded, again, upstream).body is None  # nothing is left to do
    if "stream_options" not in sent:
        forwarded = forwarded.replace(b'"stream_options":{"include_usage":true},', b"", 1)
    assert outside(forwarded) == outside(body)


def outside(body: bytes) -> bytes:
    """Return the bytes around the values of `model` and `stream_options`."""
    spans = members(body).spans
    for name in sorted(spans.keys() & {"model", "stream_options"}, key=lambda n: -spans[n].start):
        body = body[: spans[name].start] + body[spans[name].stop :]
    return body


NAMES = st.sampled_from(sorted({*openai._LEGAL, "input", "x"})).map(lambda p: p.partition("[")[0])
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["user", "text", ""]),
    lambda v: (
        st.lists(v, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "include_usage"]), v)
    ),
    max_leaves=8,
)


@given(st.sampled_from(sorted(BY_NAME)), st.dictionaries(NAMES, ANY), st.booleans())
@example("chat", {"stream": True, "stream_options": {"include_usage": 0}}, True)
def test_any_value_is_a_call_or_a_refusal(name: str, given_: dict[str, Any], whole: bool) -> None:
    """Whatever the members hold, no other exception escapes, and what is read can be rewritten."""
    body = json.dumps(given_ if whole else {**MINIMAL[name], **given_}).encode()
    with suppress(Denied):
        rewrite(body, read(BY_NAME[name], body), "other")


@given(st.sampled_from(sorted(BY_NAME)), st.binary())
def test_any_bytes_are_a_call_or_a_refusal(name: str, body: bytes) -> None:
    """Garbage in, one error type out."""
    with suppress(Denied):
        read(BY_NAME[name], body)


def test_every_field_says_what_is_legal() -> None:
    """Each field of each shape has its words, so a misfit always has an answer."""

    def paths(shape: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
        for field in msgspec.structs.fields(shape):
            yield prefix + field.name
            for inner in (openai._Message, openai._Part, openai._StreamOptions):
                if inner.__name__ in str(field.type):
                    item = "[]" if "list[" in str(field.type) else ""
                    yield from paths(inner, f"{prefix}{field.name}{item}.")

    for name in typing.get_args(Name):
        assert set(paths(openai._SHAPES[name])) <= set(openai._LEGAL_BY_ENDPOINT[name])


@pytest.mark.parametrize(
    ("path", "sent", "tokens", "forwarded"),
    [
        pytest.param(
            "/v1/chat/completions",
            '{"model":"m",M,"max_tokens":500}',
            20,
            '{"model":"m",M,"max_tokens":20}',
            id="a bound above what is left is lowered",
        ),
        pytest.param(
            "/v1/chat/completions",
            '{"model":"m",M,"max_tokens":20}',
            20,
            None,
            id="a bound that fits stays as it is written",
        ),
        pytest.param(
            "/v1/chat/completions",
            '{ "model":"m",M}',
            20,
            '{"max_completion_tokens":20, "model":"m",M}',
            id="an absent bound is set",
        ),
        pytest.param(
            "/v1/chat/completions",
            '{"max_completion_tokens":100,"model":"m","max_tokens":30,M}',
            20,
            '{"max_completion_tokens":20,"model":"m","max_tokens":20,M}',
            id="both names are lowered",
        ),
        pytest.param(
            "/v1/chat/completions",
            '{"max_completion_tokens":null,"model":"m","max_tokens":30,M}',
            20,
            '{"max_completion_tokens":null,"model":"m","max_tokens":20,M}',
            id="a null beside a bound is left alone",
        ),
        pytest.param(
            "/v1/chat/completions",
            '{"max_tokens":null,"model":"m",M}',
            20,
            '{"max_tokens":20,"model":"m",M}',
            id="a null is no bound and no second member",
        ),
        pytest.param(
            "/v1/completions",
            '{"model":"m","prompt":"x"}',
            7,
            '{"max_tokens":7,"model":"m","prompt":"x"}',
            id="completions have one name",
        ),
        pytest.param(
            "/v1/responses",
            '{"model":"m","input":"x","max_output_tokens":9}',
            7,
            '{"model":"m","input":"x","max_output_tokens":7}',
            id="responses have their own",
        ),
        pytest.param(
            "/v1/responses",
            '{"model":"m","input":"x"}',
            7,
            '{"max_output_tokens":7,"model":"m","input":"x"}',
            id="and get it where it is absent",
        ),
    ],
)
@pytest.mark.parametrize("upstream", ["m", "a-longer-name"])
@pytest.mark.parametrize("stream", [False, True])
def test_rewrite_bounds_the_output(
    path: str, sent: str, tokens: int, forwarded: str | None, *, upstream: str, stream: bool
) -> None:
    """No choice is longer than what is granted, whatever else is spliced into the body."""
    messages = '"messages":[{"role":"user","content":"hi"}]'
    body = sent.replace("M", messages).encode()
    expected = json.loads((forwarded or sent).replace("M", messages))
    if stream:
        body = body[:-1] + b',"stream":true}'
        expected["stream"] = True
        if path != "/v1/responses":
            expected["stream_options"] = {"include_usage": True}
    expected["model"] = upstream
    call = read(ENDPOINTS["POST", path], body)
    got = rewrite(body, call, upstream, tokens)
    out = got.body if got.body is not None else body
    assert json.loads(out) == expected
    assert json.loads(out[got.model_span.start : got.model_span.stop]) == upstream
    if forwarded is None and upstream == "m" and not stream:
        assert got.body is None
