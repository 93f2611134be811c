"""A stream that passes unchanged: the same bytes however they are cut, and its error event."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.dialects.unchanged import MAX_HELD_BYTES, Api, Unchanged, api_of

APIS: tuple[Api, ...] = ("chat", "responses", "messages")
MESSAGE = "The provider broke off its answer."


def said(api: Api, *chunks: bytes) -> tuple[bytes, bytes]:
    """Return what is passed on of these chunks, and what is said when nothing more comes."""
    stream = Unchanged(api)
    return b"".join([stream.feed(chunk) for chunk in chunks]), stream.broken()


PIECES = (b"\r", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n", b"data: x", b"event: y", b": ping", b"\xff")
BYTES = st.one_of(st.binary(max_size=80), st.lists(st.sampled_from(PIECES)).map(b"".join))


def cut(whole: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(whole) + 1) for place in places} | {0, len(whole)})
    return [whole[start:stop] for start, stop in pairwise(ends)]


@given(BYTES, st.lists(st.integers(0, 1000), max_size=8))
def test_the_bytes_are_the_same_however_they_are_cut(whole: bytes, places: list[int]) -> None:
    """What is held back comes with the end."""
    stream = Unchanged("chat")
    passed = [stream.feed(chunk) for chunk in cut(whole, places)]
    assert b"".join(passed) + stream.rest() == whole
    assert stream.rest() == b""


ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n")


@pytest.mark.parametrize("end", ENDS)
def test_half_an_event_is_held_back(end: bytes) -> None:
    """Whatever the provider ends its lines with, and wherever the end itself is cut."""
    whole, half = b"event: a" + end[: len(end) // 2] + b"data: 1" + end, b"data: 2"
    for at in range(len(whole) + 1):
        stream = Unchanged("chat")
        passed = stream.feed(whole[:at]) + stream.feed(whole[at:] + half)
        # Where the cut is between CR and LF, the CR has ended the event and the LF may come later.
        late = b"\n" if whole[at - 1 : at + 1] == b"\r\n" and at == len(whole) - 1 else b""
        assert (passed + late, stream.rest()) == (whole, late + half)


def test_an_event_is_passed_on_as_soon_as_it_has_ended() -> None:
    """Nothing waits for the next one; a CR LF in the middle is no empty line."""
    stream = Unchanged("chat")
    assert stream.feed(b"data: 1\n\n") == b"data: 1\n\n"
    assert stream.feed(b"event: x\r\n") == b""
    assert stream.feed(b"data: 2\r\n\r\n") == b"event: x\r\ndata: 2\r\n\r\n"


def test_chat_is_told_by_openais_error() -> None:
    """In the shape that its clients raise on."""
    passed, event = said("chat", b'data: {"choices":[]}\n\n', b'data: {"cho')
    assert passed == b'data: {"choices":[]}\n\n'
    error = {"message": MESSAGE, "type": "server_error", "param": None, "code": None}
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert json.loads(event[6:]) == {"error": error}


def test_messages_are_told_by_anthropics_error() -> None:
    """Under its name, because that is what its clients look at."""
    _, event = said("messages", b'event: ping\ndata: {"type":"ping"}\n\n')
    name, data, *rest = event.split(b"\n")
    assert (name, rest) == (b"event: error", [b"", b""])
    assert json.loads(data[6:]) == {
        "type": "error",
        "error": {"type": "api_error", "message": MESSAGE},
    }


@pytest.mark.parametrize(
    ("last", "number"),
    [
        (b'data: {"type":"x","sequence_number":7,"delta":"a"}\n\n', 8),
        (b'data: {"sequence_number":1}\n\ndata: {"sequence_number": 2}\n\n', 3),
        (rb'data: {"sequence_number":3,"delta":"\"sequence_number\":9"}' + b"\n\n", 4),
        (b": ping\n\n", 0),
    ],
)
def test_responses_are_told_by_their_error_with_the_next_number(last: bytes, number: int) -> None:
    """Both as an object and beside the type, because the API's reference and the API differ."""
    _, event = said("responses", last)
    name, data, *_ = event.split(b"\n")
    told = json.loads(data[6:])
    assert name == b"event: error"
    assert (told["type"], told["sequence_number"]) == ("error", number)
    assert told["error"]["message"] == told["message"] == MESSAGE
    assert told["code"] is told["param"] is None


@pytest.mark.parametrize(
    ("api", "last"),
    [
        ("chat", b"data: [DONE]\n\n"),
        ("chat", b'data: {"choices":[]}\r\n\r\ndata:[DONE]\r\n\r\n'),
        ("chat", b'data: {"error":{"message":"overloaded"}}\n\n'),
        ("messages", b'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
        ("messages", b'data: {"type": "message_stop"}\n\n'),
        ("messages", b'event: error\ndata: {"type":"error","error":{}}\n\n'),
        ("responses", b'event: response.completed\ndata: {"type":"response.completed"}\n\n'),
        ("responses", b'event: response.incomplete\ndata: {"type":"response.incomplete"}\n\n'),
        ("responses", b'data: {"type":"response.failed"}\n\n'),
    ],
)
@pytest.mark.parametrize("later", [b"", b"data: late\n\n"])
def test_a_stream_that_said_all_has_no_error(api: Api, last: bytes, later: bytes) -> None:
    """Its provider only forgot to end it; nor does its own error get another one after it."""
    assert said(api, b"data: {}\n\n" + last[:9], last[9:], later) == (
        b"data: {}\n\n" + last + later,
        b"",
    )


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "last",
    [
        b'data: {"content":"data: [DONE]"}\n\n',
        rb'data: {"content":"\nevent: message_stop\n{\"type\":\"message_stop\"}"}' + b"\n\n",
        b'event: response.completed_not\ndata: {"type":"response.in_progress"}\n\n',
        b'data: {"id":"c","error":null}\n\n',
    ],
)
def test_what_only_looks_like_an_end_is_none(api: Api, last: bytes) -> None:
    """A model may say anything."""
    assert said(api, last)[1] != b""


def test_an_event_that_is_too_long_is_passed_on_in_pieces() -> None:
    """Memory is bounded; within it there is no place for another event, after it there is."""
    stream = Unchanged("chat")
    assert stream.feed(b"data: " + b"x" * (MAX_HELD_BYTES - 6)) == b""
    assert len(stream.feed(b"xx")) == MAX_HELD_BYTES + 2
    assert stream.feed(b"more") == b""
    assert stream.broken() == b""
    assert stream.feed(b"\n\ndata: ") == b"more\n\n"
    assert stream.broken() != b""
    assert stream.rest() == b"data: "


@pytest.mark.parametrize(
    ("path", "api"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/completions", "chat"),
        ("/openai/v1/responses?x=/messages", "responses"),
        ("/v1/messages?beta=true", "messages"),
        ("", "chat"),
    ],
)
def test_whose_events_a_path_has(path: str, api: Api) -> None:
    """Below any base path, with any query."""
    assert api_of(path) == api
