"""Protobuf to values and back, pure, for the exchanges that change an answer.

Knows: the messages of an ext_proc filter that sees answers. Must not know: dialects, policies, the
loop.
Source: envoy.service.ext_proc.v3 (extproc/pb/*.proto); attributes, metadata and mode override.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError

from extproc.pb import ext_proc_pb2, processing_mode_pb2
from extproc.wire.headers import read_pairs
from extproc.wire.messages import OVERWRITE, Malformed
from extproc.wire.structs import fields_of, text_of

_ATTRIBUTES: Final = "envoy.filters.http.ext_proc"
_SERVED: Final = "llm.served"
_Mode: Final = processing_mode_pb2.ProcessingMode

Headers = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Message:
    """One decoded message; `kind` is the field it came in, `ends` says that no more body follows.

    `cluster`, `model` and `path` are this attempt's, in the first message alone, where asked for.
    """

    kind: str
    headers: dict[str, str]
    body: bytes
    ends: bool
    cluster: str
    model: str
    path: str


def set_headers(mutation: Any, headers: tuple[tuple[str, bytes], ...]) -> None:
    """Overwrite headers in a HeaderMutation."""
    for key, value in headers:
        option = mutation.set_headers.add()
        option.append_action = OVERWRITE
        option.header.key = key
        option.header.raw_value = value


def decode(raw: bytes) -> Message:
    """Read one ProcessingRequest. Raises Malformed."""
    request = ext_proc_pb2.ProcessingRequest()
    try:
        request.ParseFromString(raw)
    except DecodeError as error:
        raise Malformed("not a ProcessingRequest") from error
    kind = request.WhichOneof("request") or ""
    cluster = model = path = ""
    if _ATTRIBUTES in request.attributes:
        fields = request.attributes[_ATTRIBUTES].fields
        cluster = fields["xds.cluster_name"].string_value
        path = fields["request.path"].string_value
        metadata = request.metadata_context.filter_metadata
        if _SERVED in metadata:
            model = text_of(fields_of(metadata[_SERVED]), "model")
    headers: dict[str, str] = {}
    body, ends = b"", False
    if kind in {"request_headers", "response_headers"}:
        message: Any = getattr(request, kind)
        try:
            headers = dict(read_pairs(message.headers))
        except ValueError as error:
            raise Malformed("not a HeaderMap") from error
        ends = message.end_of_stream
    elif kind in {"request_body", "response_body"}:
        message = getattr(request, kind)
        body, ends = message.body, message.end_of_stream
    return Message(kind, headers, body, ends, cluster, model, path)


_GO_ON: Final = ext_proc_pb2.ProcessingResponse(
    request_headers=ext_proc_pb2.HeadersResponse()
).SerializeToString()


def encode_go_on() -> bytes:
    """Let the request go on to its body."""
    return _GO_ON


def encode_request(body: bytes) -> bytes:
    """Send this body to the provider, and its length: Envoy checks one against the other."""
    response = ext_proc_pb2.ProcessingResponse()
    common = response.request_body.response
    common.body_mutation.body = body
    set_headers(
        common.header_mutation,
        (("content-length", b"%d" % len(body)), ("content-type", b"application/json")),
    )
    return response.SerializeToString()


def encode_answer_headers(headers: Headers, *, streamed: bool) -> bytes:
    """Take the answer on: its events one by one, or the whole document at once."""
    response = ext_proc_pb2.ProcessingResponse()
    response.response_headers.SetInParent()  # because reading a field does not set it
    mutation = response.response_headers.response.header_mutation
    set_headers(mutation, headers)
    if streamed:
        mutation.remove_headers.append("content-length")
        # All of them, because what is left out means NONE.
        response.mode_override.request_header_mode = _Mode.SEND
        response.mode_override.response_header_mode = _Mode.SEND
        response.mode_override.request_body_mode = _Mode.BUFFERED
        response.mode_override.response_body_mode = _Mode.FULL_DUPLEX_STREAMED
        response.mode_override.request_trailer_mode = _Mode.SKIP
        response.mode_override.response_trailer_mode = _Mode.SEND
    return response.SerializeToString()


def _watched() -> bytes:
    response = ext_proc_pb2.ProcessingResponse()
    mutation = response.response_headers.response.header_mutation
    mutation.remove_headers.append("content-length")  # because an error event may be added
    mode = response.mode_override
    # The request has been sent, or is on its way without us.
    mode.request_header_mode, mode.request_body_mode = _Mode.SKIP, _Mode.NONE
    mode.request_trailer_mode = _Mode.SKIP
    mode.response_header_mode, mode.response_trailer_mode = _Mode.SEND, _Mode.SEND
    mode.response_body_mode = _Mode.FULL_DUPLEX_STREAMED
    return response.SerializeToString()


_WATCHED: Final = _watched()
_ANSWERED: Final = ext_proc_pb2.ProcessingResponse(
    response_headers=ext_proc_pb2.HeadersResponse()
).SerializeToString()


def encode_watched() -> bytes:
    """Take on the events of an answer, whose request nobody here has seen."""
    return _WATCHED


def encode_answered() -> bytes:
    """Let an answer pass without its body being shown."""
    return _ANSWERED


def encode_answer(body: bytes, status: int | None) -> bytes:
    """Send this document to the caller, under another status where one is given."""
    response = ext_proc_pb2.ProcessingResponse()
    common = response.response_body.response
    common.body_mutation.body = body
    headers: Headers = (
        ("content-length", b"%d" % len(body)),
        ("content-type", b"application/json"),
    )
    if status is not None:
        headers += ((":status", b"%d" % status),)
    set_headers(common.header_mutation, headers)
    return response.SerializeToString()


def encode_chunk(data: bytes, *, ends: bool) -> bytes:
    """Send these bytes on; with `ends` nothing follows."""
    response = ext_proc_pb2.ProcessingResponse()
    streamed = response.response_body.response.body_mutation.streamed_response
    streamed.body = data
    streamed.end_of_stream = ends
    return response.SerializeToString()


_TRAILERS: Final = ext_proc_pb2.ProcessingResponse(
    response_trailers=ext_proc_pb2.TrailersResponse()
).SerializeToString()


def encode_trailers() -> bytes:
    """Let the answer's trailers go on as they are."""
    return _TRAILERS
