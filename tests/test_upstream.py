"""A translated attempt as a script of messages: what goes in, what comes out, in which order."""

from __future__ import annotations

import json
from typing import Any

import pytest
from envoy_data_plane.envoy.service.ext_proc.v3 import HttpTrailers, ProcessingRequest

from extproc.exchange import OutOfOrder
from extproc.upstream import LEGAL, Event, State, Translation
from extproc.wire.messages import Malformed

from .attempts import chunk, head, request_body, response_head
from .calls import answer

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "seed": 1}
MESSAGE = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
SILENCE_S = 7.0
JSON, SSE = "application/json", "text/event-stream; charset=utf-8"


def asked(cluster: str = "claude+openai", body: Any = CHAT) -> tuple[Translation, Any]:
    """Play the request's half and return the exchange and the body it sends upstream."""
    exchange = Translation(lambda: 1_700_000_000.5, SILENCE_S)
    assert answer(exchange.receive(head(cluster, "upstream"))).request_headers is not None
    sent = answer(exchange.receive(request_body(json.dumps(body).encode())))
    return exchange, json.loads(sent.request_body.response.body_mutation.body)


def document(exchange: Translation, status: int, body: bytes) -> tuple[Any, dict[str, bytes]]:
    """Play an answer in one document; return it and the headers it sets."""
    exchange.receive(response_head(status, JSON))
    common = answer(exchange.receive(chunk(body, ends=True))).response_body.response
    headers = {one.header.key: one.header.raw_value for one in common.header_mutation.set_headers}
    return json.loads(common.body_mutation.body), headers


def test_a_chat_becomes_a_message_and_its_answer_a_completion() -> None:
    """The request is of the attempt's model; the answer is of the caller's dialect and the clock's."""
    exchange, sent = asked()
    assert (sent["model"], sent["max_tokens"]) == ("upstream", 4096)
    body = {"type": "message", "id": "msg_1", "content": [{"type": "text", "text": "Hi"}]}
    made, headers = document(exchange, 200, json.dumps(body).encode())
    assert (made["object"], made["created"]) == ("chat.completion", 1_700_000_000)
    assert ":status" not in headers
    assert exchange.state is State.ENDED


def test_a_message_becomes_a_chat_and_its_answer_a_message() -> None:
    """The other direction is told by the cluster's name."""
    exchange, sent = asked("a+anthropic", MESSAGE)
    assert (sent["model"], sent["max_completion_tokens"]) == ("upstream", 5)
    body = {"id": "c", "choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}
    made, _ = document(exchange, 200, json.dumps(body).encode())
    assert (made["type"], made["content"][0]["text"]) == ("message", "Hi")


def test_an_error_keeps_its_status_and_gets_the_requests_id() -> None:
    """A provider's refusal is the caller's, in the caller's shape."""
    exchange, _ = asked("a+anthropic", MESSAGE)
    made, headers = document(exchange, 429, b'{"error":{"message":"Slow down."}}')
    error = {"type": "rate_limit_error", "message": "Slow down."}
    assert made == {"type": "error", "error": error, "request_id": "r-1"}
    assert ":status" not in headers


def test_an_answer_that_is_none_is_a_bad_gateway() -> None:
    """A 5xx, so that Envoy asks the next provider."""
    exchange, _ = asked()
    made, headers = document(exchange, 200, b"<html>")
    assert headers[":status"] == b"502"
    assert made["error"]["message"] == "The provider answered with status 502."


def test_a_stream_is_translated_chunk_by_chunk() -> None:
    """Half an event gives nothing yet; the end of the body gives the end of the stream."""
    exchange, _ = asked()
    reply = answer(exchange.receive(response_head(200, SSE)))
    assert reply.mode_override is not None
    lossy = reply.response_headers.response.header_mutation.set_headers
    assert [(one.header.key, one.header.raw_value) for one in lossy] == [("x-llm-lossy", b"seed")]
    event = b'data: {"type":"message_start","message":{"id":"msg_1","model":"c"}}\n\n'
    first = answer(exchange.receive(chunk(event[:20]))).response_body.response
    assert streamed(first) == (b"", False)
    second = answer(exchange.receive(chunk(event[20:]))).response_body.response
    assert b'"role":"assistant"' in streamed(second)[0]
    last = answer(exchange.receive(chunk(b'data: {"type":"message_stop"}', ends=True)))
    assert streamed(last.response_body.response) == (b"data: [DONE]\n\n", True)
    assert exchange.state is State.ENDED


def streamed(common: Any) -> tuple[bytes, bool]:
    """Return what a reply sends of a stream, and whether that ends it."""
    found = common.body_mutation.streamed_response
    return found.body, found.end_of_stream


START = {
    "claude+openai": b'data: {"type":"message_start","message":{"id":"msg_1","model":"c"}}\n\n',
    "a+anthropic": b'data: {"id":"c","choices":[{"delta":{"content":"Hi"}}]}\n\n',
}
BROKEN = {
    "claude+openai": b'data: {"error":{"message":"The provider broke off its answer."',
    "a+anthropic": b'event: error\ndata: {"type":"error","error":{"type":"api_error"',
}


@pytest.mark.parametrize(
    ("cluster", "body"), [("claude+openai", CHAT), ("a+anthropic", MESSAGE)], ids=BROKEN
)
def test_a_stream_that_falls_silent_says_so_in_its_callers_dialect(cluster: str, body: Any) -> None:
    """Only a stream is waited for; the event does not end the body, the exchange is over."""
    exchange, _ = asked(cluster, body)
    assert exchange.patience_s is None
    exchange.receive(response_head(200, SSE))
    assert exchange.patience_s == SILENCE_S
    exchange.receive(chunk(START[cluster] + b"data: {"))  # half an event is none
    said, ends = streamed(answer(exchange.overdue()).response_body.response)
    assert said.startswith(BROKEN[cluster])
    assert said.endswith(b"\n\n")
    assert not ends
    assert (exchange.state, exchange.patience_s) == (State.ENDED, None)


def test_a_document_is_waited_for_by_envoy() -> None:
    """Its time limits are those of the whole call."""
    exchange, _ = asked()
    exchange.receive(response_head(200, JSON))
    assert exchange.patience_s is None


def test_a_document_before_trailers_is_whole() -> None:
    """Envoy says so by handing it on without calling it the end."""
    exchange, _ = asked()
    exchange.receive(response_head(200, JSON))
    body = json.dumps({"type": "message", "id": "m", "content": []}).encode()
    common = answer(exchange.receive(chunk(body))).response_body.response
    assert json.loads(common.body_mutation.body)["object"] == "chat.completion"
    assert exchange.state is State.ENDED


def test_trailers_follow_a_stream_that_is_whole() -> None:
    """The error event of one that is not goes before them."""
    trailers = bytes(ProcessingRequest(response_trailers=HttpTrailers()))
    for stop, whole in ((b'data: {"type":"message_stop"}\n\n', True), (b"", False)):
        exchange, _ = asked()
        exchange.receive(response_head(200, SSE))
        exchange.receive(chunk(START["claude+openai"] + stop))
        assert answer(exchange.receive(trailers)).response_trailers is not None
        assert exchange.state is State.ENDED
        if whole:
            assert exchange.owed == b""
        else:
            said, ends = streamed(answer(exchange.owed).response_body.response)
            assert said.startswith(BROKEN["claude+openai"])
            assert not ends


def test_events_under_an_error_status_are_a_document() -> None:
    """Only an answer is streamed; an error is one JSON body, whatever its type says."""
    exchange, _ = asked()
    exchange.receive(response_head(500, SSE))
    assert exchange.state is State.COLLECTS


def test_an_answer_without_a_body_ends_at_its_headers() -> None:
    """There is nothing to translate."""
    exchange, _ = asked()
    exchange.receive(response_head(204, JSON, ends=True))
    assert exchange.state is State.ENDED


MESSAGES = {
    Event.HEADERS: head("claude+openai", "m"),
    Event.BODY: request_body(json.dumps(CHAT).encode()),
    Event.DOCUMENT: response_head(200, JSON),
    Event.EVENTS: response_head(200, SSE),
    Event.NOTHING: response_head(200, JSON, ends=True),
    Event.CHUNK: chunk(b"x"),
    Event.LAST_CHUNK: chunk(b"x", ends=True),
    Event.TRAILERS: bytes(ProcessingRequest(response_trailers=HttpTrailers())),
}


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_what_the_table_does_not_list_raises(state: State, event: Event) -> None:
    """Every state with every event: the next state, or an error that names both."""
    exchange, _ = asked()
    exchange.state = state
    following = LEGAL.get((state, event))
    if following is None:
        with pytest.raises(OutOfOrder, match=f"{event} in state {state}"):
            exchange.receive(MESSAGES[event])
        assert exchange.state is state
    else:
        exchange.receive(MESSAGES[event])
        assert exchange.state is following


def test_messages_of_another_kind_have_no_place() -> None:
    """A request's trailers are not asked for, and bytes that are no message are malformed."""
    exchange, _ = asked()
    with pytest.raises(OutOfOrder):
        exchange.receive(bytes(ProcessingRequest(request_trailers=HttpTrailers())))
    with pytest.raises(Malformed):
        exchange.receive(b"\xff")
