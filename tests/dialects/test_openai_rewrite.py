"""A call's body is changed by splicing, and any body is a call or a refusal."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from extproc.dialects import openai_shapes
from extproc.dialects.json_body import members
from extproc.dialects.openai import read, rewrite
from extproc.domain import ENDPOINTS, Span
from extproc.errors import Denied
from tests.dialects.test_openai import BY_NAME, MINIMAL, MODELS, M, Name


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
    assert (got.body, got.model_span) == (body[:2] + inserted + body[2:], Span(start, start + 3))
    assert got.strip_usage


@pytest.mark.parametrize("name", ["embeddings", "responses"])
def test_no_usage_is_wished_for_where_it_always_comes(name: str) -> None:
    """Embeddings have no stream and Responses streams end with usage: nothing is injected."""
    body = json.dumps({**MINIMAL[name], "stream": True, "stream_options": {"a": 1}}).encode()
    call = read(BY_NAME[name], body)
    got = rewrite(body, call, "m")
    assert (got.body, got.model_span, got.strip_usage) == (None, call.model_span, False)


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


NAMES = st.sampled_from(sorted({*openai_shapes.LEGAL, "input", "x"})).map(
    lambda p: p.partition("[")[0]
)
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
            for inner in (openai_shapes.Message, openai_shapes.Part, openai_shapes.StreamOptions):
                if inner.__name__ in str(field.type):
                    item = "[]" if "list[" in str(field.type) else ""
                    yield from paths(inner, f"{prefix}{field.name}{item}.")

    for name in typing.get_args(Name):
        assert set(paths(openai_shapes.SHAPES[name])) <= set(openai_shapes.LEGAL_BY_ENDPOINT[name])


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
