"""Reading and rewriting Anthropic calls: what is refused, what is read, what stays as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.dialects import anthropic
from extproc.dialects.anthropic import read, rewrite
from extproc.domain import ENDPOINTS
from extproc.errors import Denied

MESSAGES = ENDPOINTS["POST", "/v1/messages"]
COUNT = ENDPOINTS["POST", "/v1/messages/count_tokens"]
SAID = {"role": "user", "content": "hi"}
GOOD: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [SAID]}
SECRET = "s3cr3t"


def refused(body: bytes, endpoint: Any = MESSAGES) -> Denied:
    with pytest.raises(Denied) as caught:
        read(endpoint, body)
    assert caught.value.status == 400
    return caught.value


ILLEGAL: list[tuple[str, str | None, list[Any]]] = [
    ("model", None, [None, "", 1, "x" * 257]),
    ("max_tokens", None, [None, 0, -1, 1.5, "9", True, 2**31]),
    ("messages", None, [None, [], "hi", {}]),
    ("messages", "messages[0]", [["x"], [None]]),
    ("messages", "messages[0].role", [[{**SAID, "role": "tool"}], [{"content": "x"}]]),
    ("messages", "messages[0].content", [[{"role": "user"}], [{**SAID, "content": None}]]),
    ("messages", "messages[0].content[0]", [[{**SAID, "content": ["x"]}]]),
    ("messages", "messages[0].content[0].type", [[{**SAID, "content": [{}]}]]),
    ("system", None, [1, {}]),
    ("system", "system[0]", [["x"]]),
    ("system", "system[0].type", [[{"type": 1}]]),
    ("stream", None, ["true", 1]),
    ("temperature", None, [-0.1, 1.1, "1", True]),
    ("top_p", None, [2, "1"]),
    ("top_k", None, [-1, 1.5, "1"]),
    ("stop_sequences", None, ["x", {}]),
    ("stop_sequences", "stop_sequences[1]", [["a", 1]]),
    ("tools", None, [{}, "x"]),
    ("tools", "tools[0]", [["x"]]),
    ("tool_choice", None, ["auto", []]),
    ("thinking", None, ["enabled", []]),
    ("metadata", None, ["x", []]),
]


@pytest.mark.parametrize(
    ("member", "param", "values"),
    ILLEGAL,
    ids=[f"refuses an illegal {param or member}" for member, param, _ in ILLEGAL],
)
def test_refuses_naming_the_field(member: str, param: str | None, values: list[Any]) -> None:
    """A wrong type or range is a 400 whose message names the field and says what is legal."""
    for value in values:
        denied = refused(json.dumps({**GOOD, member: value}).encode())
        assert denied.param == (param or member), value
        assert f"'{param or member}'" in denied.message, value


@pytest.mark.parametrize("member", ["model", "max_tokens", "messages"])
def test_a_required_member_is_missed(member: str) -> None:
    """What is missing is named."""
    body = {key: value for key, value in GOOD.items() if key != member}
    assert refused(json.dumps(body).encode()).message == f"Missing required parameter: '{member}'."


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"model":"a","model":"b"}', "Duplicate key 'model'"),
        (
            b'{"model":"a","max_tokens":1,"messages":[{"role":"user","role":"user"}]}',
            "Duplicate key 'messages[0].role'",
        ),
        (b"{", "not valid JSON"),
        (b"", "empty"),
    ],
    ids=["a key twice", "a key twice within a message", "not JSON", "nothing"],
)
def test_refuses_what_two_parsers_could_read_differently(body: bytes, says: str) -> None:
    """The body is read as strictly as in the other dialect."""
    assert says in refused(body).message


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0, "top_p": 1.0, "top_k": 0, "stop_sequences": []},
        {"messages": [{"role": "system", "content": [{"type": "text", "text": 1, "new": {}}]}]},
        {"system": [{"type": "text"}], "tools": [{"type": "bash"}], "tool_choice": {}},
        {"unknown": {"a": [1]}, "thinking": {"type": "adaptive"}, "metadata": {"user_id": "u"}},
        dict.fromkeys(["system", "temperature", "stream", "tools", "stop_sequences"]),
    ],
    ids=["ranges", "content blocks", "system blocks and tools", "unknown fields", "nulls"],
)
def test_accepts(more: dict[str, Any]) -> None:
    """Values at the edge of the documented ranges and fields nobody knows pass."""
    assert read(MESSAGES, json.dumps({**GOOD, **more}).encode()).endpoint is MESSAGES


@pytest.mark.parametrize("stream", [True, False, None])
def test_reads_a_call(stream: bool | None) -> None:
    """What the gateway needs to know of a call."""
    body = json.dumps({**GOOD, "stream": stream}).encode()
    call = read(MESSAGES, body)
    assert (call.model, call.stream, call.max_output_tokens) == ("m", stream is True, 9)
    assert (call.choices, call.text_bytes, call.wants_usage) == (1, len(body), True)
    assert body[call.model_span.start : call.model_span.stop] == b'"m"'


def test_a_count_needs_no_bound_and_generates_nothing() -> None:
    """`max_tokens` is not a field of count_tokens."""
    call = read(COUNT, json.dumps({"model": "m", "messages": [SAID]}).encode())
    assert (call.stream, call.max_output_tokens) == (False, 1)


@pytest.mark.parametrize("upstream", ["m", "a-longer-name", "é", 'q"'])
def test_only_the_model_changes(upstream: str) -> None:
    """All other bytes stay as the caller wrote them."""
    body = (
        b'{ "max_tokens": 1.0e1, "model" : "m", "messages":[{"role":"user","content":"\\u0041"}]}'
    )
    body = body.replace(b"1.0e1", b"10")
    call = read(MESSAGES, body)
    rewritten = rewrite(body, call, upstream)
    assert not rewritten.strip_usage
    if upstream == "m":
        assert rewritten.body is None
        return
    name = json.dumps(upstream, ensure_ascii=False).encode()
    assert rewritten.body == body.replace(b'"m"', name, 1)
    span = rewritten.model_span
    assert rewritten.body[span.start : span.stop] == name


@pytest.mark.parametrize(
    "messages",
    [[{"role": SECRET, "content": SECRET}], [{SECRET: 1}], [{**SAID, "content": {SECRET: SECRET}}]],
    ids=["a role", "a name", "content"],
)
def test_content_never_reaches_an_error(messages: list[Any]) -> None:
    """A refusal quotes no value and no name of the caller's."""
    denied = refused(json.dumps({**GOOD, "messages": messages}).encode())
    assert SECRET not in denied.message + str(denied.param)


def test_every_field_says_what_is_legal() -> None:
    """Each field of each shape has its words, so a misfit always has an answer."""

    def paths(shape: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
        for field in msgspec.structs.fields(shape):
            yield prefix + field.name
            for inner in (anthropic._Message, anthropic._Block):
                if inner.__name__ in str(field.type):
                    yield from paths(inner, f"{prefix}{field.name}[].")

    assert {*paths(anthropic._Create), *paths(anthropic._Count)} <= set(anthropic._LEGAL)


NAMES = st.sampled_from(sorted({*anthropic._LEGAL, "x"})).map(lambda p: p.partition("[")[0])
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["user", "text", ""]),
    lambda v: (
        st.lists(v, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), v)
    ),
    max_leaves=8,
)


@given(st.sampled_from([MESSAGES, COUNT]), st.dictionaries(NAMES, ANY), st.booleans())
def test_any_value_is_a_call_or_a_refusal(endpoint: Any, given_: dict, whole: bool) -> None:
    """Whatever the members hold, no other exception escapes, and what is read can be rewritten."""
    body = json.dumps(given_ if whole else {**GOOD, **given_}).encode()
    with suppress(Denied):
        rewrite(body, read(endpoint, body), "other")


HOUR = b'{"cache_control":{"type":"ephemeral","ttl":"1h"}}'


@pytest.mark.parametrize(
    ("written", "found"),
    [
        pytest.param(HOUR, True, id="an hour"),
        pytest.param(HOUR.replace(b"1h", b"\\u0031h"), True, id="with an escaped digit"),
        pytest.param(HOUR.replace(b"1h", b"1\\u0068"), True, id="with an escaped letter"),
        pytest.param(HOUR.replace(b"1h", b"5m"), False, id="five minutes"),
        pytest.param(b"{}", False, id="none"),
    ],
)
def test_a_body_says_whether_a_cache_may_keep_it_for_an_hour(written: bytes, found: bool) -> None:
    """However JSON spells it, because a budget depends on it."""
    assert anthropic.may_keep_an_hour(written) is found
