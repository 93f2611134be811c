"""The codec of a translated attempt, against an independent reading of Envoy's API."""

from __future__ import annotations

import pytest
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ProcessingModeBodySendMode,
    ProcessingModeHeaderSendMode,
)
from envoy_data_plane.envoy.service.ext_proc.v3 import ProcessingRequest

from extproc.wire import attempts
from extproc.wire.messages import Kind, Malformed, decode
from tests.attempts import chunk, head, request_body, response_head
from tests.calls import answer


def test_the_first_message_names_cluster_and_model() -> None:
    """By attributes and metadata, which no client can write; that is also how it is told apart."""
    raw = head("claude+openai", "upstream", "r-1")
    message = attempts.decode(raw)
    assert (message.kind, message.cluster, message.model) == (
        "request_headers",
        "claude+openai",
        "upstream",
    )
    assert message.headers["x-request-id"] == "r-1"
    assert decode(raw).kind is Kind.UPSTREAM


def test_the_first_message_of_a_watched_attempt_names_its_path() -> None:
    """It is of the answer, and told apart by an attribute as well."""
    raw = response_head(200, "text/event-stream", path="/v1/responses?x=1")
    message = attempts.decode(raw)
    assert (message.kind, message.path, message.model) == (
        "response_headers",
        "/v1/responses?x=1",
        "",
    )
    assert decode(raw).kind is Kind.WATCHED
    assert decode(response_head(200, "text/event-stream")).kind is Kind.RESPONSE_HEADERS


def test_later_messages() -> None:
    """Bodies with their end, response headers with status and type."""
    assert attempts.decode(request_body(b"{}")).body == b"{}"
    found = attempts.decode(response_head(429, "application/json"))
    assert (found.headers[":status"], found.ends) == ("429", False)
    assert attempts.decode(chunk(b"x", ends=True)).ends


@pytest.mark.parametrize("raw", [b"\xff", b"\x0a"], ids=["no tag", "cut"])
def test_garbage_is_malformed(raw: bytes) -> None:
    """One error, whatever the bytes."""
    with pytest.raises(Malformed):
        attempts.decode(raw)


def test_nothing_is_a_message_without_a_kind() -> None:
    """An empty message has no place in any order."""
    assert attempts.decode(bytes(ProcessingRequest())).kind == ""


def headers_of(mutation) -> dict[str, bytes]:
    return {one.header.key: one.header.raw_value for one in mutation.set_headers}


def test_a_translated_request_says_its_length() -> None:
    """Envoy refuses a body whose length is not announced."""
    common = answer(attempts.encode_request(b"{} ")).request_body.response
    assert common.body_mutation.body == b"{} "
    assert headers_of(common.header_mutation)["content-length"] == b"3"


def test_a_stream_is_asked_for_chunk_by_chunk() -> None:
    """Every mode is stated, because one left out would mean none."""
    reply = answer(attempts.encode_answer_headers((("x-llm-lossy", b"seed"),), streamed=True))
    mutation = reply.response_headers.response.header_mutation
    assert headers_of(mutation) == {"x-llm-lossy": b"seed"}
    assert mutation.remove_headers == ["content-length"]
    mode = reply.mode_override
    assert mode.response_body_mode == ProcessingModeBodySendMode.FULL_DUPLEX_STREAMED
    assert mode.request_body_mode == ProcessingModeBodySendMode.BUFFERED
    assert mode.response_header_mode == ProcessingModeHeaderSendMode.SEND
    assert mode.response_trailer_mode == ProcessingModeHeaderSendMode.SEND  # the body mode's rule
    assert mode.request_trailer_mode == ProcessingModeHeaderSendMode.SKIP


def test_a_document_needs_no_other_mode() -> None:
    """Even a reply that changes nothing is a reply to the response's headers."""
    reply = answer(attempts.encode_answer_headers((), streamed=False))
    assert reply.response_headers is not None
    assert reply.mode_override is None


@pytest.mark.parametrize("status", [None, 502])
def test_an_answer_says_its_length_and_perhaps_another_status(status: int | None) -> None:
    """The status changes only for an answer that is none."""
    common = answer(attempts.encode_answer(b"{}", status)).response_body.response
    headers = headers_of(common.header_mutation)
    assert common.body_mutation.body == b"{}"
    assert headers["content-length"] == b"2"
    assert headers.get(":status") == (None if status is None else b"502")


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("data", [b"", b"x"], ids=["nothing", "bytes"])
def test_a_chunk_is_sent_on_when_it_is_ready(data: bytes, ends: bool) -> None:
    """Not in another's place: a reply that has no chunk may carry one."""
    common = answer(attempts.encode_chunk(data, ends=ends)).response_body.response
    streamed = common.body_mutation.streamed_response
    assert (streamed.body, streamed.end_of_stream) == (data, ends)


def test_trailers_go_on_as_they_are() -> None:
    """An empty reply is a reply to them."""
    assert answer(attempts.encode_trailers()).response_trailers is not None
