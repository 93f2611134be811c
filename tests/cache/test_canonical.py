"""One text for all spellings of a request, another for every request that may be answered otherwise."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.cache.canonical import (
    LEFT_OUT,
    SAYS_NOTHING,
    around_input,
    exact,
    form,
    number,
    read,
)
from extproc.dialects import json_body
from extproc.domain import EndpointName
from extproc.errors import Denied
from tests.cache import oracle, spellings

ENDPOINTS: tuple[EndpointName, ...] = ("chat", "completions", "embeddings", "responses", "messages")


def text(
    body: str | bytes | dict[str, Any], endpoint: EndpointName = "chat", **more: bool
) -> bytes:
    """Return the canonical text of a body that has one, the same however it was read."""
    raw = json.dumps(body).encode() if isinstance(body, dict) else body
    raw = raw if isinstance(raw, bytes) else raw.encode()
    values = read(raw)
    assert values is not None
    found = form(endpoint, values, **more)
    assert found is not None
    taken_apart = _taken_apart(raw)
    assert taken_apart is None or form(endpoint, taken_apart, **more) == found
    return found


def _taken_apart(raw: bytes) -> dict[str, Any] | None:
    try:
        members = json_body.members(raw)
    except Denied:  # deeper than a call may be, or a number of more digits
        return None
    values = exact(members, raw)
    assert values is not None
    return values


@pytest.mark.parametrize(
    ("endpoint", "one", "other"),
    [
        pytest.param("chat", '{"messages":[],"seed":7}', ' { "seed" : 7 , "messages" : [ ] } ', id="order and space"),
        pytest.param("chat", '{"top_p":0.5}', '{"top_p":5e-1}', id="forms of a fraction"),
        pytest.param("chat", '{"seed":100}', '{"seed":1E+2}', id="a whole number with an exponent"),
        pytest.param("chat", '{"seed":100}', '{"seed":100.000}', id="a whole number with a fraction"),
        pytest.param("chat", '{"a":[{"b":-0.0}]}', '{"a":[{"b":0}]}', id="zero has no sign"),
        pytest.param("chat", '{"a":100000000000000000000000}', '{"a":1e23}', id="a large number, which no double holds"),
        pytest.param("chat", r'{"a":"\u00e9\ud83d\ude00\/"}', '{"a":"é😀/"}', id="escapes"),
        pytest.param("chat", '{"temperature":1}', "{}", id="the usual temperature"),
        pytest.param("chat", '{"temperature":1.0,"n":1,"top_p":1.00,"user":"u"}', '{"n":null}', id="several defaults"),
        pytest.param("chat", '{"response_format":{"type":"text"}}', "{}", id="text is the usual format"),
        pytest.param("chat", '{"tool_choice":"none"}', "{}", id="no choice where there are no tools"),
        pytest.param("chat", '{"tools":[{}],"tool_choice":"auto"}', '{"tools":[{}]}', id="a free choice where there are tools"),
        pytest.param("chat", '{"stop":"x"}', '{"stop":["x"]}', id="one stop sequence"),
        pytest.param("completions", '{"prompt":["x"]}', '{"prompt":"x"}', id="one prompt in a list"),
        pytest.param("completions", '{"prompt":[[1,2]]}', '{"prompt":[1,2.0]}', id="one prompt of tokens in a list"),
        pytest.param("embeddings", '{"input":["x"],"encoding_format":"float"}', '{"input":"x"}', id="one input in a list"),
        pytest.param("responses", '{"text":{"format":{"type":"text"}},"store":true}', "{}", id="defaults of responses"),
        pytest.param("messages", '{"temperature":1.0,"metadata":{"user_id":"u"}}', "{}", id="defaults of messages"),
    ],
)  # fmt: skip
def test_what_is_one_request_has_one_text(endpoint: EndpointName, one: str, other: str) -> None:
    assert text(one, endpoint) == text(other, endpoint)


@pytest.mark.parametrize(
    ("endpoint", "one", "other"),
    [
        pytest.param("chat", '{"a":"\u00e9"}', '{"a":"e\u0301"}', id="composed and decomposed"),
        pytest.param("chat", '{"a":"x"}', '{"a":"x "}', id="a space at the end"),
        pytest.param("chat", '{"a":1}', '{"a":"1"}', id="a number and its text"),
        pytest.param("chat", '{"a":1}', '{"a":true}', id="one and true"),
        pytest.param("chat", '{"n":1}', '{"n":true}', id="a default and what Python takes for it"),
        pytest.param("chat", '{"a":0}', '{"a":false}', id="zero and false"),
        pytest.param("chat", '{"a":null}', "{}", id="null in a field that is not known"),
        pytest.param("chat", '{"a":[]}', '{"a":{}}', id="an empty list and an empty object"),
        pytest.param("chat", '{"a":7e-1}', '{"a":"7e-1"}', id="a fraction and the text it is written as"),
        pytest.param("chat", '{"seed":9007199254740993}', '{"seed":9007199254740992}', id="integers one double stands for"),
        pytest.param("chat", '{"a":0.1}', '{"a":0.1000000000000000055511151231257827}', id="fractions one double stands for"),
        pytest.param("chat", '{"a":1e-400}', '{"a":0}', id="what a double takes for zero"),
        pytest.param("chat", '{"a":[1,2]}', '{"a":[2,1]}', id="the order of a list"),
        pytest.param("chat", '{"stop":["a","b"]}', '{"stop":["b","a"]}', id="the order of stop sequences"),
        pytest.param("chat", '{"stop":[]}', "{}", id="an empty list of stop sequences"),
        pytest.param("chat", '{"tool_choice":"none","tools":[{}]}', '{"tools":[{}]}', id="no call though there are tools"),
        pytest.param("chat", '{"max_tokens":5}', '{"max_completion_tokens":5}', id="two names of a bound"),
        pytest.param("chat", '{"messages":[{"role":"user","content":"x"}]}', '{"messages":[{"role":"user","content":[{"type":"text","text":"x"}]}]}', id="a string and one part of text"),
        pytest.param("messages", '{"system":"x"}', '{"system":[{"type":"text","text":"x"}]}', id="a system prompt as blocks"),
        pytest.param("chat", '{"service_tier":"flex"}', "{}", id="another service tier"),
        pytest.param("completions", '{"max_tokens":16}', "{}", id="a bound the gateway may set otherwise"),
        pytest.param("completions", '{"prompt":[5]}', '{"prompt":5}', id="a prompt of one token"),
        pytest.param("completions", '{"prompt":["a","b"]}', '{"prompt":"a"}', id="two prompts"),
        pytest.param("embeddings", '{"input":"x","dimensions":256}', '{"input":"x"}', id="fewer dimensions"),
        pytest.param("embeddings", '{"input":"x","encoding_format":"base64"}', '{"input":"x"}', id="another encoding"),
        pytest.param("responses", '{"metadata":{"a":"1"}}', '{"metadata":{"a":"2"}}', id="metadata that the answer repeats"),
        pytest.param("responses", '{"user":"a"}', '{"user":"b"}', id="a user that the answer repeats"),
        pytest.param("messages", '{"top_p":1}', "{}", id="a default the API does not name"),
    ],
)  # fmt: skip
def test_what_may_be_answered_otherwise_has_another_text(
    endpoint: EndpointName, one: str, other: str
) -> None:
    assert text(one, endpoint) != text(other, endpoint)


RICH: dict[str, Any] = {
    "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}]}],
    "temperature": 0.2, "top_p": 0.9, "seed": 1, "max_tokens": 10, "stop": ["a"], "n": 2, "logprobs": True, "top_logprobs": 2, "presence_penalty": 0.5, "frequency_penalty": -0.5,
    "logit_bias": {"50256": -100}, "response_format": {"type": "json_object"}, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": "required", "parallel_tool_calls": False, "reasoning_effort": "low", "modalities": ["text", "audio"], "store": True, "of_tomorrow": {"x": 1},
}  # fmt: skip


def _changed(value: Any) -> list[Any]:
    """Return the value with each of its leaves, names and items changed or gone, one at a time."""
    match value:
        case dict():
            found: list[Any] = [{**value, "new": 1}]
            for name in value:
                rest = {other: one for other, one in value.items() if other != name}
                found += [rest, {**rest, f"{name}_": value[name]}]
                found += [{**value, name: one} for one in _changed(value[name])]
            return found
        case list():
            found = [[*value, "new"], value[:-1]]
            for at, item in enumerate(value):
                found += [[*value[:at], one, *value[at + 1 :]] for one in _changed(item)]
            return found
        case bool():
            return [not value]
        case str():
            return [value + "x", value.upper() + "\u200b", ""]
        case _:
            return [value + 1, -value - 7, str(value)]


def test_changing_any_field_that_matters_gives_another_text() -> None:
    everything = [RICH, *_changed(RICH)]
    # As JSON values they differ from each other, so as texts they must; but for four changes to the
    # default, which say the same as the change that leaves the field out.
    different = {json.dumps(one, sort_keys=True) for one in everything}
    to_default = {
        "logprobs": False,
        "store": False,
        "parallel_tool_calls": True,
        "modalities": ["text"],
    }
    different -= {
        json.dumps({**RICH, name: value}, sort_keys=True) for name, value in to_default.items()
    }
    assert len(different) > 150
    assert len({text(one) for one in everything}) == len(different)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_who_asks_and_how_the_answer_travels_is_left_out(endpoint: EndpointName) -> None:
    extra = dict.fromkeys(LEFT_OUT[endpoint], "anything")
    assert text({**RICH, **extra}, endpoint) == text(RICH, endpoint)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_value_that_says_nothing_is_as_good_as_its_absence(endpoint: EndpointName) -> None:
    for name, silent in SAYS_NOTHING[endpoint].items():
        rest = {other: value for other, value in RICH.items() if other != name}
        for value in silent:
            assert text({**rest, name: value}, endpoint) == text(rest, endpoint), (name, value)


def test_other_defaults_than_the_api_has_can_be_told_apart() -> None:
    assert text({"temperature": 1}, api_defaults=False) != text({}, api_defaults=False)
    assert text({"temperature": None}, api_defaults=False) == text({}, api_defaults=False)
    assert text({"tool_choice": "none"}, api_defaults=False) != text({}, api_defaults=False)


@given(
    body=spellings.bodies,
    seeds=st.tuples(st.integers(0), st.integers(0)),
    endpoint=st.sampled_from(ENDPOINTS),
)
def test_every_spelling_has_the_text_that_the_document_says(
    body: Any, seeds: tuple[int, int], endpoint: EndpointName
) -> None:
    one, other = (spellings.spell(body, Random(seed)).encode() for seed in seeds)
    assert text(one, endpoint) == text(other, endpoint) == oracle.canonical(endpoint, one)
    plain = text(one, endpoint, api_defaults=False)
    assert plain == oracle.canonical(endpoint, other, api_defaults=False)


@given(body=spellings.bodies, seed=st.integers(0))
def test_what_has_a_text_was_accepted_as_a_body(body: Any, seed: int) -> None:
    """Spellings are ones that clients may send: the strict reader takes them."""
    written = spellings.spell(body, Random(seed)).encode()
    assert json_body.members(written).values.keys() == body.keys()


@given(body=spellings.bodies)
def test_reading_leaves_the_values_as_they_are(body: Any) -> None:
    values = read(spellings.spell(body, Random(0)).encode())
    assert values is not None
    before = msgspec.json.encode(values)
    for endpoint in ENDPOINTS:
        form(endpoint, values)
    assert msgspec.json.encode(values) == before


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("0.70", "7e-1"), ("-0.5", "-5e-1"), ("1e2", "100"), ("12.5e1", "125"), ("-1.0", "-1"), ("0e99", "0"), ("-0.0", "0"), ("1E-7", "1e-7"), ("100e-2", "1"),
        ("1e22", "1" + "0" * 22), ("123456789012345678901234567890.5", "1234567890123456789012345678905e-1"), ("5e-99999999999999999999", "5e-99999999999999999999"),
    ],
)  # fmt: skip
def test_a_number_has_one_exact_spelling(written: str, canonical: str) -> None:
    assert text(f'{{"a":{written}}}') == f'{{"a":{canonical}}}'.encode()


@pytest.mark.parametrize(
    "written",
    ["", "1.", ".5", "0x1", "1e", "NaN", "1.0\n", "\u0661.\u0665", "1e401", "1e99999999999"],
)
def test_what_is_no_number_of_a_body_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"number"):
        number(written)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"a":1e999}', id="beyond a double"),
        pytest.param(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="100,000 levels"),
        pytest.param(b'{"a":"\xff"}', id="no UTF-8"),
        pytest.param(rb'{"a":"\ud800"}', id="a lone surrogate"),
        pytest.param(b'{"a":1', id="no JSON"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b'{"a":1e-' + b"9" * 10_000 + b"}", id="an exponent of 10,000 digits"),
    ],
)
def test_what_cannot_be_read_exactly_has_no_text_and_is_no_error(body: bytes) -> None:
    assert read(body) is None


@pytest.mark.parametrize("depth", [100, 190, 400])
def test_depth_alone_is_no_reason(depth: int) -> None:
    """The strict reader accepts 200 levels, wherever the interpreter's own stack stands."""
    assert text(b'{"a":' + b"[" * depth + b"]" * depth + b"}").count(b"[") == depth


def test_values_that_have_no_text_are_no_error() -> None:
    assert form("chat", {"a": "\ud800"}) is None
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert form("chat", {"a": deep}) is None
    assert around_input({"input": 1, "z": "\ud800"}) is None


@given(rest=st.dictionaries(spellings.texts, spellings.values, max_size=4), piece=spellings.texts)
def test_an_input_of_a_batch_has_the_text_of_a_call_for_it_alone(rest: Any, piece: str) -> None:
    body = spellings.spell({**rest, "input": [piece, "another"]}, Random(1)).encode()
    alone = spellings.spell({**rest, "input": piece}, Random(2)).encode()
    values = read(body)
    assert values is not None
    around = around_input(values)
    assert around is not None
    before, after = around
    assert before + msgspec.json.encode(piece) + after == text(alone, "embeddings")
