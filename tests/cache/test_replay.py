"""Kept answers told again: which form is which bytes, and that nothing else ever comes out."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.answers import Form
from extproc.cache.replay import DOCUMENT, EVENTS, CannotTell, Told, other_form, replay
from extproc.dialects.sse import Reader, TooLong
from extproc.simulator.behaviour import Behaviour

from .told import entry, events, simulated

HI = [{"role": "user", "content": "hi"}]
REQUESTS: dict[str, dict[str, Any]] = {
    "chat": {"model": "m", "messages": HI},
    "completions": {"model": "m", "prompt": "a"},
    "responses": {"model": "m", "input": "hi"},
    "messages": {"model": "m", "messages": HI, "max_tokens": 9},
}
ASKED = {"stream_options": {"include_usage": True}}
HOW = Behaviour(output_tokens=3)
DOCUMENTS = {name: simulated(name, request, HOW) for name, request in REQUESTS.items()}
STREAMS = {
    name: simulated(
        name, request | {"stream": True} | (ASKED if name in {"chat", "completions"} else {}), HOW
    )
    for name, request in REQUESTS.items()
}


@pytest.mark.parametrize("endpoint", REQUESTS)
@pytest.mark.parametrize("include_usage", [False, True])
def test_a_document_asked_for_is_the_recorded_one(endpoint: str, include_usage: bool) -> None:
    """The same bytes, not a copy."""
    body = DOCUMENTS[endpoint]
    told = replay(entry(endpoint, "json", body), stream=False, include_usage=include_usage)
    assert told == Told(DOCUMENT, body)
    assert told.body is body


@pytest.mark.parametrize("endpoint", REQUESTS)
@pytest.mark.parametrize("include_usage", [False, True])
def test_a_stream_asked_for_is_the_recorded_one(endpoint: str, include_usage: bool) -> None:
    """The same bytes, but for the usage event of those streams that have it on request."""
    body = STREAMS[endpoint]
    told = replay(entry(endpoint, "sse", body), stream=True, include_usage=include_usage)
    assert told.content_type == EVENTS
    if include_usage or endpoint in {"responses", "messages"}:
        assert told.body is body
    else:
        head, _, tail = body.rpartition(b'data: {"id"')
        assert told.body == head + b"data: [DONE]\n\n"
        assert b'"usage":{' in tail


@pytest.mark.parametrize("endpoint", ["embeddings", "count_tokens", "models", "new"])
def test_an_endpoint_that_does_not_stream_has_one_form(endpoint: str) -> None:
    """Its documents are told as they are, and nothing else."""
    assert replay(entry(endpoint, "json", b"{}"), stream=False, include_usage=False).body == b"{}"
    for form, stream in (("json", True), ("sse", False)):
        with pytest.raises(CannotTell):
            replay(entry(endpoint, form, b"{}"), stream=stream, include_usage=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("endpoint", REQUESTS)
def test_the_end_of_the_other_form_says_the_same(endpoint: str) -> None:
    """Usage is in both, and told forms fold and unfold again to what was told."""
    kept = entry(endpoint, "sse", STREAMS[endpoint])
    document = replay(kept, stream=False, include_usage=True).body
    assert json.loads(document)["usage"] == json.loads(DOCUMENTS[endpoint])["usage"]
    stream = replay(entry(endpoint, "json", document), stream=True, include_usage=True).body
    again = replay(entry(endpoint, "sse", stream), stream=False, include_usage=True).body
    assert json.loads(again) == json.loads(document)


@pytest.mark.parametrize("endpoint", REQUESTS)
def test_the_other_form_is_an_entry_of_its_own(endpoint: str) -> None:
    """All else about the answer is as it was; told in its form it is the same bytes."""
    kept = entry(endpoint, "sse", STREAMS[endpoint])
    other = other_form(kept)
    assert msgspec.structs.replace(other, form="sse", body=kept.body) == kept
    told = replay(kept, stream=False, include_usage=False)
    assert replay(other, stream=False, include_usage=False) == told == Told(DOCUMENT, other.body)


def test_a_document_nested_past_every_stack_is_a_miss() -> None:
    """Reading stops before the stack does, and so does writing."""
    deep = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for endpoint in REQUESTS:
        with pytest.raises(CannotTell):
            replay(entry(endpoint, "json", deep), stream=True, include_usage=True)
        with pytest.raises(CannotTell):
            replay(entry(endpoint, "sse", b"data: " + deep), stream=False, include_usage=True)


def check(endpoint: str, form: Form, body: bytes) -> None:
    """Tell the bytes in the other form: an answer of its kind, or a miss, and no other error."""
    for include_usage in (False, True):
        try:
            told = replay(
                entry(endpoint, form, body), stream=form == "json", include_usage=include_usage
            )
        except CannotTell:
            continue
        if form == "sse":
            assert type(json.loads(told.body)) is dict
        else:
            assert events(told.body)
    replay(entry(endpoint, form, body), stream=form == "sse", include_usage=False)


WHERE = st.tuples(st.sampled_from(sorted(REQUESTS)), st.sampled_from(["json", "sse"]))


@given(WHERE, st.binary(max_size=80), st.booleans())
def test_bytes_of_any_kind_are_an_answer_or_a_miss(where: Any, noise: bytes, framed: bool) -> None:
    """Never another error."""
    check(*where, b"data: %b\n\ndata: [DONE]\n\n" % noise if framed else noise)


@settings(max_examples=300)
@given(WHERE, st.data())
def test_a_damaged_answer_is_an_answer_or_a_miss(where: Any, data: st.DataObject) -> None:
    """Recorded bytes with a piece lost, doubled or replaced."""
    body = (DOCUMENTS if where[1] == "json" else STREAMS)[where[0]]
    start = data.draw(st.integers(0, len(body)))
    stop = data.draw(st.integers(start, min(len(body), start + 40)))
    other = data.draw(
        st.sampled_from(
            [b"", body[start:stop] * 2, b"null", b'"', b"[]", b"{", b"\n\n", b"\xff", b"1"]
        )
    )
    check(*where, body[:start] + other + body[stop:])


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to every value inside."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path] * bool(path) + [
        one for key, child in inner for one in places(child, (*path, key))
    ]


@settings(max_examples=300)
@given(WHERE, st.data())
def test_a_field_of_any_other_type_is_an_answer_or_a_miss(where: Any, data: st.DataObject) -> None:
    """Every field of every event, replaced."""
    endpoint, form = where
    told = [json.loads(DOCUMENTS[endpoint])] if form == "json" else events(STREAMS[endpoint])
    told = [one for one in told if one != "[DONE]"]
    *path, last = data.draw(st.sampled_from(places(told)))
    target: Any = told
    for key in path:
        target = target[key]
    target[last] = data.draw(JUNK)
    if form == "json":
        check(endpoint, form, json.dumps(told[0]).encode())
    else:
        framed = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in told)
        check(endpoint, form, framed + b"data: [DONE]\n\n")


def test_an_event_past_the_readers_bound_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the reader refuses is no answer."""

    def refuse(self: Reader, chunk: bytes) -> Any:
        raise TooLong

    monkeypatch.setattr(Reader, "feed", refuse)
    for endpoint in REQUESTS:
        with pytest.raises(CannotTell):
            replay(entry(endpoint, "sse", STREAMS[endpoint]), stream=False, include_usage=False)
