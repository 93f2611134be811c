"""Our minimal messages against `envoy_data_plane`'s, in both directions."""

from __future__ import annotations

from typing import Any

import pytest
from envoy_data_plane.envoy.config.core.v3 import (
    HeaderMap,
    HeaderValue,
    HeaderValueOptionHeaderAppendAction,
)
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ProcessingModeBodySendMode,
    ProcessingModeHeaderSendMode,
)
from envoy_data_plane.envoy.service.ext_proc.v3 import (
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
)
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from extproc.domain import Continue, Forward, Head, Principal, Reply, Span, once
from extproc.wire import messages as wire
from extproc.wire import writing
from extproc.wire.messages import Kind, Malformed, Message
from tests.calls import (
    EMBEDDINGS,
    answer,
    body_message,
    call,
    forward,
    headers_message,
    plain,
    target,
)

SEND, SKIP = ProcessingModeHeaderSendMode.SEND, ProcessingModeHeaderSendMode.SKIP
BUFFERED = ProcessingModeBodySendMode.BUFFERED
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,12}", fullmatch=True)
HEADERS = st.lists(st.tuples(NAMES, st.text(max_size=20)), max_size=6)
RAW_HEADERS = st.lists(st.tuples(NAMES, st.binary(max_size=20)), max_size=6).map(tuple)
VALUES = st.recursive(
    st.text(max_size=150) | st.booleans() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
TARGETS = st.builds(target, st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=200))


@given(HEADERS, st.booleans())
def test_request_headers_of_envoy_are_read(pairs: list[tuple[str, str]], ends: bool) -> None:
    raw = headers_message(*pairs, path="/v1/models?limit=2&a=?", ends=ends)
    expected = {":method": "POST", ":path": "/v1/models?limit=2&a=?"}
    for name, value in pairs:
        expected[name] = f"{expected[name]}, {value}" if name in expected else value
    head = Head("POST", "/v1/models", "limit=2&a=?", expected, ends)
    assert wire.decode(raw) == Message(Kind.HEADERS, head=head)


def test_a_header_in_value_instead_of_raw_value_is_read() -> None:
    headers = HeaderMap(headers=[HeaderValue(key="x-a", value="b")])
    message = wire.decode(bytes(ProcessingRequest(request_headers=HttpHeaders(headers=headers))))
    assert message.head == Head("", "", "", {"x-a": "b"}, ends=False)


def test_bytes_that_are_not_utf8_in_a_header_are_replaced() -> None:
    headers = HeaderMap(headers=[HeaderValue(key="x-a", raw_value=b"a\xff")])
    message = wire.decode(bytes(ProcessingRequest(request_headers=HttpHeaders(headers=headers))))
    assert message.head is not None
    assert message.head.headers == {"x-a": "a\ufffd"}


@given(st.binary(max_size=300))
def test_request_bodies_of_envoy_are_read(content: bytes) -> None:
    assert wire.decode(body_message(content)) == Message(Kind.BODY, body=content)


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (ProcessingRequest(response_headers=HttpHeaders()), Kind.RESPONSE_HEADERS),
        (ProcessingRequest(response_body=HttpBody(body=b"x")), Kind.RESPONSE_BODY),
        (ProcessingRequest(request_trailers=HttpTrailers()), Kind.REQUEST_TRAILERS),
        (ProcessingRequest(response_trailers=HttpTrailers()), Kind.RESPONSE_TRAILERS),
        (ProcessingRequest(), Kind.EMPTY),
        (ProcessingRequest(observability_mode=True), Kind.EMPTY),
    ],
    ids=lambda value: value.value if isinstance(value, Kind) else "",
)
def test_the_other_messages_of_envoy_are_told_apart(
    request_: ProcessingRequest, kind: Kind
) -> None:
    assert wire.decode(bytes(request_)) == Message(kind)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Bytes of a good message with one flipped, cut or put in."""
    raw = draw(st.sampled_from([headers_message(("x-a", "b"), ends=True), body_message(b"{}" * 9)]))
    at = draw(st.integers(0, len(raw) - 1))
    put = draw(st.binary(max_size=3))
    return raw[:at] + put + raw[at + draw(st.integers(0, 2)) :]


@given(st.binary(max_size=200) | damaged())
def test_any_bytes_are_a_message_or_malformed(raw: bytes) -> None:
    try:
        message = wire.decode(raw)
    except Malformed:
        return
    assert isinstance(message, Message)
    assert (message.head is not None) == (message.kind is Kind.HEADERS)


def set_headers(mutation: Any) -> tuple[tuple[str, bytes], ...]:
    """Read header options; every one overwrites and has its value in `raw_value`."""
    overwrite = HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD
    options = mutation.set_headers if mutation else []
    assert all(option.append_action == overwrite for option in options)
    assert all(option.header.value == "" for option in options)
    return tuple((option.header.key, option.header.raw_value) for option in options)


@given(RAW_HEADERS, st.lists(NAMES, max_size=3).map(tuple))
def test_continue_is_read_by_envoy(
    headers: tuple[tuple[str, bytes], ...], removed: tuple[str, ...]
) -> None:
    response = answer(wire.encode_continue(Continue(headers, removed)))
    assert response.request_headers is not None
    common = response.request_headers.response
    mutation = common.header_mutation if common else None
    assert set_headers(mutation) == headers
    assert tuple(mutation.remove_headers if mutation else ()) == removed
    assert response.dynamic_metadata is None
    assert response.immediate_response is None
    assert response.mode_override is None


@pytest.mark.parametrize("headers", [(), (("x-request-id", b"r"),)])
def test_continue_may_ask_for_the_answer(headers: tuple[tuple[str, bytes], ...]) -> None:
    """All of it, and of the request what Envoy sends anyway."""
    response = answer(wire.encode_continue(Continue(headers, may_complete=True)))
    assert response.request_headers is not None
    mode = response.mode_override
    assert (mode.request_header_mode, mode.response_header_mode) == (SEND, SEND)
    assert (mode.request_body_mode, mode.response_body_mode) == (BUFFERED, BUFFERED)
    assert (mode.request_trailer_mode, mode.response_trailer_mode) == (SKIP, SKIP)


@given(st.sampled_from([200, 400, 401, 403, 404, 413, 429, 500, 503]), st.binary(), RAW_HEADERS)
def test_reply_is_read_by_envoy(
    status: int, content: bytes, headers: tuple[tuple[str, bytes], ...]
) -> None:
    immediate = answer(wire.encode_reply(Reply(status, content, headers))).immediate_response
    assert immediate is not None
    assert immediate.status is not None
    assert (int(immediate.status.code), immediate.body) == (status, content)
    assert immediate.details == "llm_edge"
    assert set_headers(immediate.headers) == headers


PLANNED = st.builds(
    lambda attempts, **values: forward(*attempts, **values),
    st.lists(TARGETS, min_size=1, max_size=8),
    principal=st.builds(Principal, st.text(max_size=300), st.text(max_size=40), st.just("free")),
    id=st.text(max_size=40),
    call=st.booleans().map(lambda stream: call("smäll-模型", stream=stream)),
    body=st.none() | st.binary(max_size=300),
    strip_usage=st.booleans(),
    model_span=st.builds(Span, st.integers(0, 2**30), st.integers(0, 2**30)),
)


@given(PLANNED, st.text(max_size=400))
def test_the_plan_in_forward_is_read_by_envoy(planned: Forward, record: str) -> None:
    response = answer(wire.encode_forward(planned, record.encode()))
    attempts = once(planned.plan.attempts)
    call = {"suffix": "/chat/completions", "record": record}
    if planned.strip_usage:
        call["strip_usage"] = True
    models = [one.model for one in attempts]
    metadata = {
        "llm": {
            "priority_groups": [
                {
                    "name": f"attempt-{number}",
                    "clusters": [{"cluster_name": one.provider, "weight": 1.0}],
                }
                for number, one in enumerate(attempts, 1)
            ]
        },
        "llm.call": call,
    }
    if len(set(models)) == 1:
        metadata["llm.served"] = {"model": models[0]}
    else:
        call["models"] = models
        call["model_start"] = float(planned.model_span.start)
        call["model_stop"] = float(planned.model_span.stop)
    assert plain(response.dynamic_metadata) == metadata


@given(PLANNED)
def test_the_mutations_in_forward_are_read_by_envoy(planned: Forward) -> None:
    response = answer(wire.encode_forward(planned, b"r"))
    assert response.request_body is not None
    common = response.request_body.response
    assert common is not None
    assert common.clear_route_cache is True
    expected = {
        "x-envoy-max-retries": b"%d" % (len(planned.plan.attempts) - 1),
        "x-envoy-upstream-rq-timeout-ms": b"30000",
    }
    if planned.body is None:
        assert common.body_mutation is None
    else:
        assert common.body_mutation is not None
        assert common.body_mutation.body == planned.body
        expected["content-length"] = b"%d" % len(planned.body)
    assert dict(set_headers(common.header_mutation)) == expected


def test_the_metadata_names_the_path_of_the_endpoint() -> None:
    embedding = replace(call(), endpoint=EMBEDDINGS)
    for planned in (forward(), forward(call=embedding), forward()):
        metadata = plain(answer(wire.encode_forward(planned, b"r")).dynamic_metadata)
        assert metadata["llm.call"]["suffix"] == planned.call.endpoint.suffix


def encoded(value: Any) -> bytes:
    """Write a Value with the functions the plan is written with."""
    return writing.entry(b"", _value(value))  # the entry with an empty key


def _value(value: Any) -> bytes:
    if isinstance(value, dict):
        entries = b"".join(writing.entry(key.encode(), _value(v)) for key, v in value.items())
        return b"\x2a" + writing.sized(entries)
    entry = {
        bool: lambda: writing.bool_entry(b"", value),
        float: lambda: writing.number_entry(b"", value),
        str: lambda: writing.string_entry(b"", value.encode()),
        list: lambda: writing.list_entry(b"", [_value(item) for item in value]),
    }[type(value)]()
    return Struct.FromString(entry).fields[""].SerializeToString()


@given(VALUES)
def test_the_struct_written_by_hand_is_what_google_protobuf_reads(value: Any) -> None:
    read = Struct.FromString(encoded(value))
    written = Struct()
    written.update({"": value})
    assert read == written


@given(st.integers(0, 2**40))
def test_varints_are_those_of_protobuf(number: int) -> None:
    raw = writing.varint(number)
    assert sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(raw)) == number
    assert [byte >> 7 for byte in raw] == [1] * (len(raw) - 1) + [0]


def test_the_metadata_is_what_google_protobuf_reads_too() -> None:
    raw = wire.encode_forward(forward(target("a" * 200, "é"), target("b", "e")), b'["r"]')
    reply = wire.ext_proc_pb2.ProcessingResponse.FromString(raw)
    metadata = MessageToDict(reply.dynamic_metadata)
    groups = metadata["llm"]["priority_groups"]
    assert groups[0]["clusters"] == [{"cluster_name": "a" * 200, "weight": 1.0}]
    assert (metadata["llm.call"]["models"], metadata["llm.call"]["record"]) == (["é", "e"], '["r"]')
