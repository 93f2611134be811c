"""The messages of admission: protobuf to domain and back, pure.

Knows: the message classes, with `logs` and `attempts`. Must not know: transports, policies
or the loop. Source: envoy.service.ext_proc.v3 (extproc/pb/*.proto).
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import Final

import msgspec
from google.protobuf.message import DecodeError

from extproc.domain import (
    Continue,
    Dialect,
    Forward,
    Head,
    Reply,
    Target,
    cluster_of,
    once,
)
from extproc.gateway import Hit
from extproc.pb import core_pb2, ext_proc_pb2, processing_mode_pb2
from extproc.wire.fields import Fields, fields
from extproc.wire.headers import read_pairs
from extproc.wire.writing import (
    before,
    bool_entry,
    list_entry,
    message,
    number_entry,
    size_of,
    sized,
    string_entry,
    struct_entry,
    text_value,
    varint,
)

OVERWRITE: Final = core_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
MODEL_HEADER: Final = "x-upstream-model"  # on every attempt's request: its target's name
NAMESPACE: Final = b"llm"  # dynamic metadata for Envoy's router: the plan
CALL: Final = b"llm.call"  # for the filters, which read all of a namespace or nothing; and the log
SERVED: Final = b"llm.served"  # the model's name at the provider, for the response header
LIMITS: Final = b"llm.limits"  # for the route, which puts them on the answer as headers
_OVERWRITES: Final = b"\x18%c" % OVERWRITE  # HeaderValueOption.append_action
_CONTINUE_HEADERS: Final = ext_proc_pb2.ProcessingResponse(
    request_headers=ext_proc_pb2.HeadersResponse()
).SerializeToString()
# Has the answer sent too, unless the RPC ends before. All modes, as what is left out means NONE.
_SEE_ANSWER: Final = ext_proc_pb2.ProcessingResponse(
    mode_override=processing_mode_pb2.ProcessingMode(
        request_header_mode=processing_mode_pb2.ProcessingMode.SEND,
        request_body_mode=processing_mode_pb2.ProcessingMode.BUFFERED,
        response_header_mode=processing_mode_pb2.ProcessingMode.SEND,
        response_body_mode=processing_mode_pb2.ProcessingMode.BUFFERED,
        request_trailer_mode=processing_mode_pb2.ProcessingMode.SKIP,
        response_trailer_mode=processing_mode_pb2.ProcessingMode.SKIP,
    )
).SerializeToString()
MAX_TOLD: Final = 512  # bytes of a limit's header; all sizes of a name take 40 KB
# By name and size, of our own headers, whose texts are short; nothing a client makes long.
_TOLD: Final[dict[str, list[bytes]]] = {}
_OPTIONS: Final[dict[str, dict[int, bytes]]] = {}  # likewise: a request's id has 128 characters
# By size, of the record and of two namespaces.
MAX_SIZES: Final = 4096
_RECORDS: Final[dict[int, bytes]] = {}
_CALLS: Final[dict[int, bytes]] = {}
_LIMITS: Final[dict[int, bytes]] = {}
_CLEAR_ROUTE_CACHE: Final = b"\x28\x01"  # CommonResponse field 5
_DETAILS: Final = b"\x2a\x08llm_edge"  # ImmediateResponse field 5, for Envoy's own log
_IMMEDIATE_TAG: Final = b"\x3a"  # ProcessingResponse field 7, and of an ImmediateResponse
_SET_HEADERS_TAG: Final = b"\x12"  # field 2
_REPLY_BODY_TAG: Final = b"\x1a"  # and field 3
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
    WATCHED = "watched"  # and of one that watches its stream


class Message(msgspec.Struct, frozen=True, gc=False):
    """One decoded ProcessingRequest; `head` and `body` are set for their kinds alone."""

    kind: Kind
    head: Head | None = None
    body: bytes = b""


# Fields of a ProcessingRequest, each its number times eight plus 2, and of the two messages.
_HEADERS: Final = 2 << 3 | 2
_BODY: Final = 4 << 3 | 2
_USUAL: Final = (_HEADERS, _BODY)
_DECIDING: Final = tuple(n << 3 | 2 for n in (2, 3, 4, 5, 6, 7, 9))  # what makes it another one
_CONTENT: Final = 1 << 3 | 2
_ENDS: Final = 3 << 3  # of the headers alone, as a body comes whole
_HEADERS_KIND: Final = Kind.HEADERS  # here, because an enum's member takes a look-up each time
_BODY_KIND: Final = Kind.BODY


class Malformed(Exception):
    """Bytes that are no message of the protocol."""


def decode(raw: bytes) -> Message:
    """Read one ProcessingRequest. Raises Malformed."""
    try:
        usual = _usual(fields(raw))
    except ValueError as error:
        raise Malformed("not a ProcessingRequest") from error
    if usual is not None:
        return usual
    request = ext_proc_pb2.ProcessingRequest()
    try:
        request.ParseFromString(raw)
    except DecodeError as error:
        raise Malformed("not a ProcessingRequest") from error
    which = request.WhichOneof("request")
    if which is None:
        return Message(Kind.EMPTY)
    if request.attributes:  # asked for by the filters of providers' clusters alone
        return Message(Kind.UPSTREAM if which == Kind.HEADERS else Kind.WATCHED)
    if which == Kind.HEADERS:
        given = request.request_headers
        try:
            return Message(Kind.HEADERS, head=_head(given.headers, given.end_of_stream))
        except ValueError as error:
            raise Malformed("not a HeaderMap") from error
    if which == Kind.BODY:
        return Message(Kind.BODY, body=request.request_body.body)
    return Message(Kind(which))


def _usual(message: Fields) -> Message | None:
    """Read by hand what every call brings: its headers or its body, and nothing besides.

    None for anything else, which the classes read. Raises ValueError.
    """
    if not message.more() or message.tag not in _USUAL:
        return None
    tag, inner = message.tag, message.inside()
    while message.more():
        if message.tag in _DECIDING:
            return None
    content, ends = b"", False
    while inner.more():
        if inner.tag == _CONTENT:
            content = inner.value()
        elif inner.tag == _ENDS:
            ends = inner.number != 0
    if tag == _BODY:
        return Message(_BODY_KIND, body=content)
    return Message(_HEADERS_KIND, head=_head(content, ends))


def _head(pairs: bytes, ends: bool) -> Head:
    headers: dict[str, str] = {}
    for key, value in read_pairs(pairs):
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    path, _, query = headers.get(":path", "").partition("?")
    return Head(headers.get(":method", ""), path, query, headers, ends)


def encode_continue(action: Continue) -> bytes:
    """Let the request go on to its body."""
    see_answer = _SEE_ANSWER if action.may_complete else b""
    if not action.set_headers and not action.remove_headers:
        return _CONTINUE_HEADERS + see_answer
    mutation = b"".join([_header(_name(name), value) for name, value in action.set_headers])
    for name in action.remove_headers:
        mutation += message(2, _name(name))
    return message(1, message(1, message(2, mutation))) + see_answer


def encode_reply(reply: Reply) -> bytes:
    """Answer the client from the processor."""
    return b"".join(_reply_parts(reply))


def encode_hit(hit: Hit, record: bytes) -> bytes:
    """Tell the client a kept answer; `record` is for settlement, as `encode_forward` says."""
    before_record = _before_sized(_RECORDS, b"record", b"\x1a", len(record))
    size = len(before_record) + len(record)
    before_call = _before_sized(_CALLS, CALL, b"\x2a", size)
    parts = _reply_parts(hit.reply)
    parts += [
        _DYNAMIC_METADATA_TAG,
        size_of(len(before_call) + size),
        before_call,
        before_record,
        record,
    ]
    return b"".join(parts)


def _reply_parts(reply: Reply) -> list[bytes]:
    """Encode an answer, to be joined at once, because each sum would make bytes anew."""
    status, body = _status(reply.status), reply.body
    parts = [_IMMEDIATE_TAG, b"", status, _SET_HEADERS_TAG, b""]
    size = 0
    for name, value in reply.headers:
        before = _before_option(name, len(value))
        parts.append(before)
        parts.append(value)
        parts.append(_OVERWRITES)
        size += len(before) + len(value)
    size += len(_OVERWRITES) * len(reply.headers)
    headers_size, body_size = size_of(size), size_of(len(body))
    parts[4] = headers_size
    parts += [_REPLY_BODY_TAG, body_size, body, _DETAILS]
    size += len(headers_size) + len(body_size) + len(body)
    size += len(status) + len(_SET_HEADERS_TAG) + len(_REPLY_BODY_TAG) + len(_DETAILS)
    parts[1] = size_of(size)
    return parts


def encode_patience(seconds: int) -> bytes:
    """Ask Envoy to wait so long from now for the reply to its last message."""
    return message(10, b"\x08" + varint(seconds))  # override_message_timeout, a Duration


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
        call += number_entry(b"model_start", span.start) + number_entry(b"model_stop", span.stop)
    if forward.filling is not None:
        call += _keep_bytes(forward.keep_bytes)
    # Joined at once and sized before, because each sum would make bytes anew.
    before_record = _before_sized(_RECORDS, b"record", b"\x1a", len(record))
    size = len(call) + len(before_record) + len(record)
    before_call = _before_sized(_CALLS, CALL, b"\x2a", size)
    parts = [b"", _DYNAMIC_METADATA_TAG, b"", route, before_call, call, before_record, record]
    total = len(route) + len(before_call) + size
    if forward.headers:
        at = len(parts)
        parts.append(b"")
        size = 0
        for name, value in forward.headers:
            before = _before_told(name, len(value))
            parts.append(before)
            parts.append(value)
            size += len(before) + len(value)
        parts[at] = _before_sized(_LIMITS, LIMITS, b"\x2a", size)
        total += len(parts[at]) + size
    parts[2] = size_of(total)
    retries = len(plan.attempts) - 1
    if forward.body is None:
        parts[0] = _unchanged(retries, plan.timeout_ms, plan.first_byte_ms)
    else:
        headers = _sending(retries, plan.timeout_ms, plan.first_byte_ms)
        parts[0] = _changed(headers, forward.body)
    return b"".join(parts)


# A Struct is its map entries one after the other, so constant ones are kept encoded.


def _before_sized(made: dict[int, bytes], key: bytes, tag: bytes, size: int) -> bytes:
    """Return `before` of the one key and tag that `made` is for."""
    found = made.get(size)
    if found is None:
        found = before(key, tag, size)
        if len(made) < MAX_SIZES:
            made[size] = found
    return found


def _before_told(name: str, size: int) -> bytes:
    """Encode what stands before the text, of so many bytes, of a header for the answer."""
    sizes = _TOLD.get(name)
    if sizes is None:
        sizes = _TOLD[name] = [b""] * MAX_TOLD
    found = sizes[size] if size < MAX_TOLD else b""
    if not found:
        found = before(name.encode(), b"\x1a", size)
        if size < MAX_TOLD:
            sizes[size] = found
    return found


def _before_option(name: str, size: int) -> bytes:
    """Encode what stands before the value, of so many bytes, of a header that overwrites."""
    sizes = _OPTIONS.get(name)
    if sizes is None:
        sizes = _OPTIONS[name] = {}
    found = sizes.get(size)
    if found is None:
        found = sizes[size] = _before_header(name.encode(), size)
    return found


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
        cluster = string_entry(b"cluster_name", name.encode()) + number_entry(b"weight", 1)
        clusters = list_entry(b"clusters", [b"\x2a" + sized(cluster)])
        group = string_entry(b"name", b"attempt-%d" % number) + clusters
        groups.append(b"\x2a" + sized(group))
    route = struct_entry(NAMESPACE, list_entry(b"priority_groups", groups))
    call = string_entry(b"suffix", suffix.encode())
    if strip:
        call += bool_entry(b"strip_usage", True)
    model = attempts[0].model
    if all(target.model == model and target.dialect == caller for target in distinct):
        # Because the body has this name already, no filter need touch or tell it.
        return route + struct_entry(SERVED, string_entry(b"model", model.encode())), call, False
    return (
        route,
        call + list_entry(b"models", [text_value(target.model) for target in distinct]),
        True,
    )


def _header(key: bytes, value: bytes) -> bytes:
    """Encode an entry of HeaderMutation.set_headers that overwrites."""
    return _before_header(key, len(value)) + value + _OVERWRITES


@lru_cache(maxsize=4096)  # a few names by the sizes of their values
def _before_header(key: bytes, size: int) -> bytes:
    """Encode what stands before a header's value of so many bytes."""
    start = message(1, key) + b"\x1a" + varint(size)
    pair = b"\x0a" + varint(len(start) + size) + start
    return b"\x0a" + varint(len(pair) + size + len(_OVERWRITES)) + pair


@lru_cache(maxsize=64)
def _keep_bytes(most: int) -> bytes:
    return number_entry(b"keep_bytes", most)


@lru_cache(maxsize=256)
def _status(code: int) -> bytes:
    return message(1, b"\x08" + varint(code))


@lru_cache(maxsize=64)
def _name(text: str) -> bytes:
    return text.encode()


@lru_cache(maxsize=4096)
def _unchanged(retries: int, timeout_ms: int, first_byte_ms: int | None) -> bytes:
    """Encode the reply to a body that stays as it is."""
    headers = _sending(retries, timeout_ms, first_byte_ms)
    return message(3, message(1, message(2, headers) + _CLEAR_ROUTE_CACHE))


def _changed(headers: bytes, body: bytes) -> bytes:
    # Because in BUFFERED mode Envoy checks the length against the new body.
    headers += _header(b"content-length", b"%d" % len(body))
    common = message(2, headers) + message(3, message(1, body)) + _CLEAR_ROUTE_CACHE
    return message(3, message(1, common))


@lru_cache(maxsize=4096)
def _sending(retries: int, timeout_ms: int, first_byte_ms: int | None) -> bytes:
    """Encode the headers that tell Envoy how often and how long to try."""
    times = _header(b"x-envoy-max-retries", b"%d" % retries)
    times += _header(b"x-envoy-upstream-rq-timeout-ms", b"%d" % timeout_ms)
    if first_byte_ms is None:
        return times
    # Envoy lets go of this limit once the answer has begun.
    return times + _header(b"x-envoy-upstream-rq-per-try-timeout-ms", b"%d" % first_byte_ms)
