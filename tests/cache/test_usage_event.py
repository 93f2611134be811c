"""Streams without the event that carries usage alone. The probe's side is in tests/bundle."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.cache.usage_event import without_usage

TEXT = b'data: {"id":"c","choices":[{"delta":{"content":"a"}}],"usage":null}'
LAST = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":7}}'
DONE = b"data: [DONE]"


def stream(*events: bytes, newline: bytes = b"\n") -> bytes:
    return b"".join(one.replace(b"\n", newline) + newline * 2 for one in events)


DROPPED = [
    pytest.param(LAST, id="compact"),
    pytest.param(b'data: {"id": "c", "choices": [ ], "usage": {"x": {"y": [1]}}}', id="spaced"),
    pytest.param(b'data:{"usage":{},"choices":[]}', id="no space, usage first"),
    pytest.param(b'event: chunk\nid: 1\ndata: {"choices":[],"usage":{}}', id="a named event"),
    pytest.param(b'data: {"choices":[],\ndata: "usage":{}}', id="over several lines"),
    pytest.param(b'data: {"choices":[],"usage":{},"x":"\\"}{\\\\"}', id="escapes"),
    pytest.param(b'data: {"choices":[],"usage":{"a":1},"x":[{"choices":[]}]}', id="deeper too"),
]
KEPT = [
    pytest.param(TEXT, id="choices and no usage"),
    pytest.param(b'data: {"choices":[{}],"usage":{"x":1}}', id="choices and usage"),
    pytest.param(b'data: {"choices":[],"usage":null}', id="null usage"),
    pytest.param(b'data: {"choices":[],"prompt_filter_results":[{"usage":{}}]}', id="usage deeper"),
    pytest.param(b'data: {"x":{"choices":[],"usage":{}}}', id="both deeper"),
    pytest.param(b'data: {"x":{"choices":[]},"usage":{}}', id="choices deeper"),
    pytest.param(b'data: {"x":"\\"choices\\":[] \\"usage\\":{}"}', id="both in a text"),
    pytest.param(b': "choices":[] "usage":{', id="a comment"),
    pytest.param(b'data: x{"choices":[],"usage":{}}', id="data that is no object"),
    pytest.param(b'data: {"choices":[],"usage":{},"x":"', id="a text without an end"),
    pytest.param(b'data: [{"choices":[],"usage":{}}]', id="a list"),
    pytest.param(DONE, id="the end"),
]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("event", DROPPED)
def test_the_usage_event_is_dropped(event: bytes, newline: bytes) -> None:
    """Wherever it stands, and nothing else."""
    for before, after in (((), ()), ((TEXT,), (DONE,)), ((TEXT, b": ping"), (TEXT, DONE))):
        sent = stream(*before, event, *after, newline=newline)
        assert without_usage(sent) == stream(*before, *after, newline=newline)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("event", KEPT)
def test_other_events_are_kept(event: bytes, newline: bytes) -> None:
    """Byte for byte."""
    sent = stream(TEXT, event, DONE, newline=newline)
    assert without_usage(sent) == sent
    assert without_usage(stream(TEXT, event, LAST, DONE)) == stream(TEXT, event, DONE)


@pytest.mark.parametrize("before", [b"\n", b"\n\n\r\n", b"\r\n", b"\n\n\r", b"\n\n\n\n\n"])
def test_line_ends_before_it_are_kept(before: bytes) -> None:
    """They are no part of it; its own blank line is."""
    assert without_usage(before + LAST + b"\n\n" + before + LAST + b"\n\n") == before * 2
    told = TEXT + b"\n\n" + before
    assert without_usage(told + LAST + b"\n\n\n" + DONE) == told + b"\n" + DONE


@pytest.mark.parametrize("last", [b"", b"\n", b"\r\n"], ids=["none", "LF", "CRLF"])
def test_the_end_needs_no_blank_line(last: bytes) -> None:
    """A stream that ends with its usage ends before it."""
    assert without_usage(stream(TEXT) + LAST + last) == stream(TEXT)


def test_it_is_told_twice_and_dropped_twice() -> None:
    """Some servers repeat it."""
    assert without_usage(stream(LAST, TEXT, LAST, LAST, DONE)) == stream(TEXT, DONE)


EVENTS = st.sampled_from([one.values[0] for one in DROPPED + KEPT])


@given(st.lists(EVENTS, max_size=8), st.sampled_from([b"\n", b"\r\n"]))
def test_every_event_is_judged_alone(events: list[bytes], newline: bytes) -> None:
    """A stream without usage is its events without theirs."""
    each = b"".join(without_usage(stream(one, newline=newline)) for one in events)
    assert without_usage(stream(*events, newline=newline)) == each


@given(st.text(alphabet='{}[]":,\\ \n\r', max_size=60), st.text(alphabet='ab"\\{}[]:', max_size=20))
def test_garbage_loses_nothing_but_usage_events(noise: str, text: str) -> None:
    """What remains can be found in order in what there was, and nothing more is dropped."""
    sent = noise.encode() + stream(json.dumps({"t": text}).encode(), LAST, DONE)
    found = without_usage(sent)
    assert without_usage(found) == found
    assert found in {sent, sent.replace(LAST + b"\n\n", b"")}


def test_it_takes_no_longer_than_its_length() -> None:
    """A megabyte of what looks like it is read in linear time."""
    near = b'data: {"choices":[],"usage":null}\n\n'
    for sent in (
        near * 30_000,
        b'data: {"x":[' + b'"choices":[],' * 80_000 + b"1]}\n\n",
        b'"' * 1_000_000,
    ):
        began = time.process_time()
        assert without_usage(sent) == sent
        assert time.process_time() - began < 5  # quadratic, it would be minutes
