"""Protobuf to domain and back, pure.

The only module that knows the message classes. Must not know: transports, policies or the loop.
Source: envoy.service.ext_proc.v3 and envoy.data.accesslog.v3 (extproc/pb/*.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

import msgspec
from google.protobuf.message import DecodeError

from extproc.domain import (
    Continue,
    Dialect,
    FailedAttempt,
    Forward,
    Head,
    LogEntry,
    Reply,
    Target,
    cluster_of,
    once,
    provider_of,
)
from extproc.gateway import Hit
from extproc.pb import als_pb2, core_pb2, ext_proc_pb2
from extproc.wire_struct import fields_of, text_of

OVERWRITE: Final = core_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
MODEL_HEADER: Final = "x-upstream-model"  # on every attempt's request: its target's name
RESETS_HEADER: Final = "x-llm-resets"  # on its answer, as `policies.cooling` reads it
NAMESPACE: Final = b"llm"  # dynamic metadata for Envoy's router: the plan
CALL: Final = b"llm.call"  # for the filters, which read all of a namespace or nothing; and the log
SERVED: Final = b"llm.served"  # the model's name at the provider, for the response header
LIMITS: Final = b"llm.limits"  # for the route, which puts them on the answer as headers
CALL_NAMESPACE: Final = CALL.decode()
STREAM_NAMESPACE: Final = "llm.stream"  # dynamic metadata Envoy's response probe writes
ANSWER_NAMESPACE: Final = "llm.answer"  # and this, of answers that are to be kept
_CONTINUE_HEADERS: Final = ext_proc_pb2.ProcessingResponse(
    request_headers=ext_proc_pb2.HeadersResponse()
).SerializeToString()
MAX_MEASURED: Final = 2**53  # above it a double skips whole numbers; NaN is not below it
_VARINT_BITS: Final = 0x7F  # seven bits a byte, the eighth says that more follow
_CLEAR_ROUTE_CACHE: Final = b"\x28\x01"  # CommonResponse field 5
_DYNAMIC_METADATA_TAG: Final = b"\x42"  # ProcessingResponse field 8, length-delimited


class Kind(StrEnum):
    """The messages one HTTP transaction may bring, as `exchange.py` orders them."""

    HEADERS = "request_headers"
    BODY = "request_body"
    RESPONSE_HEADERS = "response_headers"
    RESPONSE_BODY = "response_body"
    REQUEST_TRAILERS = "request_trailers"
    RESPONSE_TRAILERS = "response_trailers"
    EMPTY = "empty"
    UPSTREAM = "upstream"  # the first message of an exchange that translates an attempt


class Message(msgspec.Struct, frozen=True, gc=False):
    """One decoded ProcessingRequest; `head` and `body` are set for their kinds alone."""

    kind: Kind
    head: Head | None = None
    body: bytes = b""


class Malformed(Exception):
    """Bytes that are no message of the protocol."""


def decode(raw: bytes) -> Message:
    """Read one ProcessingRequest. Raises Malformed."""
    request = ext_proc_pb2.ProcessingRequest()
    try:
        request.ParseFromString(raw)
    except DecodeError as error:
        raise Malformed("not a ProcessingRequest") from error
    which = request.WhichOneof("request")
    if which is None:
        return Message(Kind.EMPTY)
    if request.attributes:  # asked for by the filter of a translating cluster alone
        return Message(Kind.UPSTREAM)
    if which == Kind.HEADERS:
        return Message(Kind.HEADERS, head=_head(request.request_headers))
    if which == Kind.BODY:
        return Message(Kind.BODY, body=request.request_body.body)
    return Message(Kind(which))


def _head(message: Any) -> Head:
    headers: dict[str, str] = {}
    for header in message.headers.headers:
        key: str = header.key
        value: str = header.raw_value.decode("utf-8", "replace") or header.value
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    path, _, query = headers.get(":path", "").partition("?")
    return Head(headers.get(":method", ""), path, query, headers, message.end_of_stream)


def encode_continue(action: Continue) -> bytes:
    """Let the request go on to its body."""
    if not action.set_headers and not action.remove_headers:
        return _CONTINUE_HEADERS
    response = ext_proc_pb2.ProcessingResponse()
    mutation = response.request_headers.response.header_mutation
    set_headers(mutation, action.set_headers)
    mutation.remove_headers.extend(action.remove_headers)
    return response.SerializeToString()


def encode_reply(reply: Reply) -> bytes:
    """Answer the client from the processor."""
    response = ext_proc_pb2.ProcessingResponse()
    immediate = response.immediate_response
    immediate.status.code = reply.status
    immediate.body = reply.body
    immediate.details = "llm_edge"
    set_headers(immediate.headers, reply.headers)
    return response.SerializeToString()


def encode_hit(hit: Hit, record: bytes) -> bytes:
    """Tell the client a kept answer; `record` is for settlement, as `encode_forward` says."""
    metadata = _struct(CALL, _string(b"record", record))
    return encode_reply(hit.reply) + _DYNAMIC_METADATA_TAG + _sized(metadata)


def encode_patience(seconds: int) -> bytes:
    """Ask Envoy to wait so long from now for the reply to its last message."""
    return _message(10, b"\x08" + _varint(seconds))  # override_message_timeout, a Duration


def encode_forward(forward: Forward, record: bytes) -> bytes:
    """Send the call upstream: the plan and `record` as metadata, retries and timeout as headers.

    `record` is what settlement gets back from the access log, as opaque text.
    """
    plan = forward.plan
    endpoint = forward.call.endpoint
    route, call, renames = _planned(
        plan.attempts, endpoint.suffix, endpoint.dialect, forward.strip_usage
    )
    if renames:
        span = forward.model_span
        call += _number(b"model_start", span.start) + _number(b"model_stop", span.stop)
    if forward.filling is not None:
        call += _number(b"keep_bytes", forward.keep_bytes)
    metadata = route + _struct(CALL, call + _string(b"record", record))
    if forward.headers:
        limits = [_string(_name(name), value) for name, value in forward.headers]
        metadata += _struct(LIMITS, b"".join(limits))
    retries = len(plan.attempts) - 1
    if forward.body is None:
        reply = _unchanged(retries, plan.timeout_ms, plan.first_byte_ms)
    else:
        headers = _sending(retries, plan.timeout_ms, plan.first_byte_ms)
        reply = _changed(headers, forward.body)
    return reply + _DYNAMIC_METADATA_TAG + _sized(metadata)


def set_headers(mutation: Any, headers: tuple[tuple[str, bytes], ...]) -> None:
    """Overwrite headers in a HeaderMutation."""
    for key, value in headers:
        option = mutation.set_headers.add()
        option.append_action = OVERWRITE
        option.header.key = key
        option.header.raw_value = value


# google.protobuf.Struct by hand: its Python wrapper costs ten times the rest of the reply.
# A Struct is its map entries one after the other, so constant ones are kept encoded.


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > _VARINT_BITS:
        out.append(number & _VARINT_BITS | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _sized(data: bytes) -> bytes:
    return _size(len(data)) + data


@lru_cache(maxsize=16384)  # most messages are a few KB
def _size(size: int) -> bytes:
    return _varint(size)


def _entry(key: bytes, value: bytes) -> bytes:
    return _before(key, b"", len(value)) + value


def _string(key: bytes, value: bytes) -> bytes:
    return _before(key, b"\x1a", len(value)) + value


@lru_cache(maxsize=16384)  # a few dozen keys by the sizes of their values
def _before(key: bytes, tag: bytes, size: int) -> bytes:
    """Encode what stands before a value of so many bytes: map entry, key, and the value's tag."""
    inner = tag + _varint(size) if tag else b""
    start = b"\x0a" + _sized(key) + b"\x12" + _varint(len(inner) + size) + inner
    return b"\x0a" + _varint(len(start) + size) + start


def _bool(key: bytes, value: bool) -> bytes:
    return _entry(key, b"\x20\x01" if value else b"\x20\x00")


def _number(key: bytes, value: float) -> bytes:
    return _entry(key, b"\x11" + struct.pack("<d", value))


def _list(key: bytes, values: list[bytes]) -> bytes:
    return _entry(key, b"\x32" + _sized(b"".join(b"\x0a" + _sized(value) for value in values)))


def _text(value: str) -> bytes:
    return b"\x1a" + _sized(value.encode())


def _struct(namespace: bytes, fields: bytes) -> bytes:
    return _before(namespace, b"\x2a", len(fields)) + fields


@lru_cache(maxsize=4096)  # bounded by models x orders of their targets x kinds of call
def _planned(
    attempts: tuple[Target, ...], suffix: str, caller: Dialect, strip: bool
) -> tuple[bytes, bytes, bool]:
    """Encode what every call of a plan shares: Envoy's part, the filters', and whether they rename.

    The last target is written once however often it is tried: past the end Envoy stays with it.
    """
    distinct = once(attempts)
    groups = []
    for number, target in enumerate(distinct, 1):
        name = cluster_of(target.provider, target.dialect, caller)
        cluster = _string(b"cluster_name", name.encode()) + _number(b"weight", 1)
        clusters = _list(b"clusters", [b"\x2a" + _sized(cluster)])
        group = _string(b"name", b"attempt-%d" % number) + clusters
        groups.append(b"\x2a" + _sized(group))
    route = _struct(NAMESPACE, _list(b"priority_groups", groups))
    call = _string(b"suffix", suffix.encode())
    if strip:
        call += _bool(b"strip_usage", True)
    model = attempts[0].model
    if all(target.model == model and target.dialect == caller for target in distinct):
        # Because the body has this name already, no filter need touch or tell it.
        return route + _struct(SERVED, _string(b"model", model.encode())), call, False
    return route, call + _list(b"models", [_text(target.model) for target in distinct]), True


# Messages by hand, because their Python wrappers cost more than the rest of the reply; the tests
# read them with two other implementations.


def _message(field: int, content: bytes) -> bytes:
    return bytes((field << 3 | 2,)) + _sized(content)


def _header(key: bytes, value: bytes) -> bytes:
    """Encode an entry of HeaderMutation.set_headers that overwrites."""
    pair = _message(1, key) + _message(3, value)
    return _message(1, _message(1, pair) + b"\x18%c" % OVERWRITE)


@lru_cache(maxsize=64)
def _name(text: str) -> bytes:
    return text.encode()


@lru_cache(maxsize=4096)
def _unchanged(retries: int, timeout_ms: int, first_byte_ms: int | None) -> bytes:
    """Encode the reply to a body that stays as it is."""
    headers = _sending(retries, timeout_ms, first_byte_ms)
    return _message(3, _message(1, _message(2, headers) + _CLEAR_ROUTE_CACHE))


def _changed(headers: bytes, body: bytes) -> bytes:
    # Because in BUFFERED mode Envoy checks the length against the new body.
    headers += _header(b"content-length", b"%d" % len(body))
    common = _message(2, headers) + _message(3, _message(1, body)) + _CLEAR_ROUTE_CACHE
    return _message(3, _message(1, common))


@lru_cache(maxsize=4096)
def _sending(retries: int, timeout_ms: int, first_byte_ms: int | None) -> bytes:
    """Encode the headers that tell Envoy how often and how long to try."""
    times = _header(b"x-envoy-max-retries", b"%d" % retries)
    times += _header(b"x-envoy-upstream-rq-timeout-ms", b"%d" % timeout_ms)
    if first_byte_ms is None:
        return times
    # Envoy lets go of this limit once the answer has begun.
    return times + _header(b"x-envoy-upstream-rq-per-try-timeout-ms", b"%d" % first_byte_ms)


def log_entries(raw: bytes) -> Iterator[LogEntry | FailedAttempt]:
    """Read the planned calls and failed attempts of one StreamAccessLogsMessage.

    Raises Malformed.
    """
    message = als_pb2.StreamAccessLogsMessage()
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise Malformed("not a StreamAccessLogsMessage") from error
    for entry in message.http_logs.log_entry:
        common = entry.common_properties
        metadata = common.metadata.filter_metadata
        if CALL_NAMESPACE not in metadata:
            if MODEL_HEADER in entry.request.request_headers:
                yield _failed_attempt(entry)
            continue
        call = fields_of(metadata[CALL_NAMESPACE])
        if "record" not in call:
            continue
        probe = fields_of(metadata[STREAM_NAMESPACE]) if STREAM_NAMESPACE in metadata else {}
        kept = fields_of(metadata[ANSWER_NAMESPACE]) if ANSWER_NAMESPACE in metadata else {}
        request, response, start = entry.request, entry.response, common.start_time
        yield LogEntry(
            record=text_of(call, "record"),
            request_id=request.request_id,
            status=response.response_code.value,
            cluster=common.upstream_cluster,
            attempts=common.upstream_request_attempt_count,
            flags=_flags(common),
            start_ms=start.seconds * 1000 + start.nanos // 1_000_000,
            duration_ms=_duration_ms(common, "duration") or 0.0,
            first_upstream_tx_ms=_duration_ms(common, "time_to_first_upstream_tx_byte"),
            first_upstream_rx_ms=_duration_ms(common, "time_to_first_upstream_rx_byte"),
            first_chunk_ms=_measured(probe, "ttfc_ms"),
            request_bytes=request.request_body_bytes,
            response_bytes=response.response_body_bytes,
            usage=text_of(probe, "usage"),
            events=int(_measured(probe, "events") or 0),
            done=probe["done"].bool_value if "done" in probe else False,
            first_downstream_tx_ms=_duration_ms(common, "time_to_first_downstream_tx_byte"),
            answer=kept["body"].string_value if "body" in kept else b"",
            answer_form=text_of(kept, "form"),
        )


def _failed_attempt(entry: Any) -> FailedAttempt:
    common = entry.common_properties
    told = entry.response.response_headers
    return FailedAttempt(
        provider=provider_of(common.upstream_cluster),
        model=entry.request.request_headers[MODEL_HEADER],
        status=entry.response.response_code.value,
        flags=_flags(common),
        retry_after=told.get("retry-after", ""),
        resets=told.get(RESETS_HEADER, ""),
    )


def _flags(common: Any) -> tuple[str, ...]:
    if not common.HasField("response_flags"):
        return ()
    return tuple(sorted(field.name for field, _ in common.response_flags.ListFields()))


def _measured(probe: Any, field: str) -> float | None:
    """Return a number of the probe; None where it is absent or nobody can have measured it."""
    if field not in probe:
        return None
    value: float = probe[field].number_value
    return value if 0 <= value <= MAX_MEASURED else None


def _duration_ms(message: Any, field: str) -> float | None:
    if not message.HasField(field):
        return None
    value = getattr(message, field)
    return float(value.seconds * 1000 + value.nanos / 1e6)
