"""A watched attempt as a script of messages: what goes in, what comes out, in which order."""

from __future__ import annotations

import json
from typing import Any

import pytest
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ProcessingModeBodySendMode as Body,
)
from envoy_data_plane.envoy.service.ext_proc.v3 import HttpTrailers, ProcessingRequest

from extproc.exchange import OutOfOrder
from extproc.upstream import Event, State
from extproc.watch import LEGAL, Watch
from extproc.wire.messages import Malformed

from .attempts import chunk, head, request_body, response_head
from .calls import answer

SILENCE_S = 7.0
JSON, SSE = "application/json", "text/event-stream; charset=utf-8"
TRAILERS = bytes(ProcessingRequest(response_trailers=HttpTrailers()))


def watched(path: str = "/v1/chat/completions") -> Watch:
    """Play an answer's headers and return the exchange that has taken its stream on."""
    exchange = Watch(SILENCE_S)
    reply = answer(exchange.receive(response_head(200, SSE, path=path)))
    assert reply.mode_override.response_body_mode is Body.FULL_DUPLEX_STREAMED
    assert reply.mode_override.request_body_mode is Body.NONE
    assert exchange.state is State.STREAMS
    return exchange


def streamed(raw: bytes) -> tuple[bytes, bool]:
    """Return what a reply sends of a stream, and whether that ends it."""
    found = answer(raw).response_body.response.body_mutation.streamed_response
    return found.body, found.end_of_stream


def test_a_stream_passes_as_it_is() -> None:
    """Event by event; the end of the body brings what was left, blank line or not."""
    exchange = watched()
    assert streamed(exchange.receive(chunk(b"data: 1\n\ndata"))) == (b"data: 1\n\n", False)
    assert streamed(exchange.receive(chunk(b": 2"))) == (b"", False)
    assert streamed(exchange.receive(chunk(b"\n\nrest", ends=True))) == (b"data: 2\n\nrest", True)
    assert (exchange.state, exchange.patience_s, exchange.owed) == (State.ENDED, None, b"")


@pytest.mark.parametrize(
    ("path", "begins"),
    [
        ("/v1/chat/completions", b'data: {"error":{"message":"The provider broke off'),
        ("/v1/responses", b'event: error\ndata: {"type":"error","sequence_number":0,'),
        ("/v1/messages?beta=true", b'event: error\ndata: {"type":"error","error":{"type"'),
    ],
)
def test_a_stream_that_falls_silent_says_so_in_its_api(path: str, begins: bytes) -> None:
    """Half an event is not sent; the event does not end the body, the exchange is over."""
    exchange = watched(path)
    assert exchange.patience_s == SILENCE_S
    exchange.receive(chunk(b"data: {}\n\ndata: {"))
    said, ends = streamed(exchange.overdue())
    assert said.startswith(begins)
    assert json.loads(said.partition(b"data: ")[2])["error"]["message"]
    assert not ends
    assert (exchange.state, exchange.patience_s) == (State.ENDED, None)


def test_trailers_follow_all_of_the_stream() -> None:
    """What was held back goes before them."""
    exchange = watched()
    exchange.receive(chunk(b"data: 1\n\ndata: 2"))
    assert answer(exchange.receive(TRAILERS)).response_trailers is not None
    assert streamed(exchange.owed) == (b"data: 2", False)
    whole = watched()
    whole.receive(chunk(b"data: 1\n\n"))
    whole.receive(TRAILERS)
    assert (whole.state, whole.owed) == (State.ENDED, b"")


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(response_head(200, JSON), id="a document"),
        pytest.param(response_head(500, SSE), id="an error"),
        pytest.param(response_head(200, SSE, ends=True), id="an answer without a body"),
        pytest.param(response_head(200, SSE, more={"content-encoding": "gzip"}), id="compressed"),
    ],
)
def test_what_is_no_stream_is_left_alone(raw: bytes) -> None:
    """One message, nothing changed, no more asked for."""
    exchange = Watch(SILENCE_S)
    reply = answer(exchange.receive(raw))
    assert reply.response_headers is not None
    assert reply.response_headers.response is None
    assert reply.mode_override is None
    assert (exchange.state, exchange.patience_s) == (State.ENDED, None)


MESSAGES: dict[Event, bytes] = {
    Event.HEADERS: head("a", "m"),
    Event.BODY: request_body(b"{}"),
    Event.DOCUMENT: response_head(200, JSON),
    Event.EVENTS: response_head(200, SSE),
    Event.NOTHING: response_head(200, JSON, ends=True),
    Event.CHUNK: chunk(b"x"),
    Event.LAST_CHUNK: chunk(b"x", ends=True),
    Event.TRAILERS: TRAILERS,
}


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_what_the_table_does_not_list_raises(state: State, event: Event) -> None:
    """Every state with every event: the next state, or an error that names both."""
    exchange: Any = Watch(SILENCE_S) if state is State.NEW else watched()
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
    with pytest.raises(OutOfOrder):
        watched().receive(bytes(ProcessingRequest(request_trailers=HttpTrailers())))
    with pytest.raises(Malformed):
        watched().receive(b"\xff")
