"""The access log's messages: what became of planned calls and of failed attempts.

Knows: the messages' fields. Must not know: transports, policies or what an entry is settled to.
A planned call's entry is read by hand, because the classes take three times as long for it.
Source: envoy.service.accesslog.v3 and envoy.data.accesslog.v3 (extproc/pb/*.proto).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError

from extproc.domain import FailedAttempt, LogEntry, provider_of
from extproc.pb import accesslog_pb2
from extproc.wire.fields import Fields, fields
from extproc.wire.messages import CALL, MODEL_HEADER, Malformed
from extproc.wire.structs import texts_of
from extproc.wire.times import nanoseconds

STREAM: Final = b"llm.stream"  # dynamic metadata Envoy's response probe writes
ANSWER: Final = b"llm.answer"  # and this, of answers that are to be kept
RECORD: Final = b"record"  # in the call's
SEEN: Final = b"seen"  # in the stream's
FORMS: Final = ((b"json", "json"), (b"sse", "sse"))  # members of the answer's, one of them
SEEN_PARTS: Final = 5  # first chunk's time, events, their bytes, end, usage
MAX_DIGITS: Final = 15  # of what anybody can have measured
KEYLESS: Final = b"failed_to_inject_credential"  # details of Envoy's own answer
SERVER_ERRORS: Final = 500
NS_PER_MS: Final = 1_000_000
RESETS_HEADER: Final = "x-llm-resets"  # on its answer, as `policies.cooling` reads it


_UNSEEN: Final = [""] * SEEN_PARTS

# Fields of the messages, each its number times eight plus its kind: 0 a number, 2 bytes.
_HTTP_LOGS: Final = 2 << 3 | 2
_LOG_ENTRY: Final = 1 << 3 | 2
_COMMON: Final = 1 << 3 | 2
_REQUEST: Final = 3 << 3 | 2
_RESPONSE: Final = 4 << 3 | 2
_START_TIME: Final = 5 << 3 | 2
_FIRST_UPSTREAM_TX: Final = 7 << 3 | 2
_FIRST_UPSTREAM_RX: Final = 9 << 3 | 2
_FIRST_DOWNSTREAM_TX: Final = 11 << 3 | 2
_CLUSTER: Final = 15 << 3 | 2
_FLAGS: Final = 16 << 3 | 2
_METADATA: Final = 17 << 3 | 2
_DURATION: Final = 23 << 3 | 2
_ATTEMPTS: Final = 24 << 3
_REQUEST_ID: Final = 9 << 3 | 2
_REQUEST_BYTES: Final = 12 << 3
_STATUS: Final = 1 << 3 | 2
_RESPONSE_BYTES: Final = 3 << 3
_DETAILS: Final = 6 << 3 | 2
_FILTER: Final = 1 << 3 | 2
_NAME: Final = 1 << 3 | 2
_STRUCT: Final = 2 << 3 | 2
_VALUE: Final = 1 << 3
_32_BITS: Final = (1 << 32) - 1


class _Entry:
    """An HTTPAccessLogEntry of a planned call as it came; of what comes twice the last counts."""

    __slots__ = (
        *("answer", "attempts", "call", "cluster", "duration", "first_downstream_tx"),
        *("first_upstream_rx", "first_upstream_tx", "flags", "keyless", "request_bytes"),
        *("request_id", "response_bytes", "start_time", "status", "stream"),
    )

    def __init__(self) -> None:
        self.call: bytes | None = None  # namespaces of the metadata
        self.stream: bytes | None = None
        self.answer: bytes | None = None
        self.start_time = b""
        self.duration: bytes | None = None
        self.first_upstream_tx: bytes | None = None
        self.first_upstream_rx: bytes | None = None
        self.first_downstream_tx: bytes | None = None
        self.cluster = ""
        self.flags = b""
        self.attempts = 0
        self.request_id = ""
        self.request_bytes = 0
        self.status = 0
        self.response_bytes = 0
        self.keyless = False

    def read(self, entry: Fields) -> None:
        """Take in what is there. Raises ValueError."""
        while entry.more():
            if entry.tag == _COMMON:
                self._common(entry.inside())
            elif entry.tag == _REQUEST:
                request = entry.inside()
                while request.more():
                    if request.tag == _REQUEST_ID:
                        self.request_id = request.value().decode()
                    elif request.tag == _REQUEST_BYTES:
                        self.request_bytes = request.number
            elif entry.tag == _RESPONSE:
                self._response(entry.inside())

    def _response(self, response: Fields) -> None:
        while response.more():
            if response.tag == _STATUS:
                status = response.inside()
                while status.more():
                    if status.tag == _VALUE:
                        self.status = status.number & _32_BITS
            elif response.tag == _RESPONSE_BYTES:
                self.response_bytes = response.number
            # Known by now, because protobuf's own code writes the fields by their numbers.
            elif response.tag == _DETAILS and self.status >= SERVER_ERRORS:
                self.keyless = response.value() == KEYLESS

    def _common(self, common: Fields) -> None:
        while common.more():
            tag = common.tag
            if tag == _METADATA:
                metadata = common.inside()
                while metadata.more():
                    if metadata.tag == _FILTER:
                        self._namespace(metadata.inside())
            elif tag == _START_TIME:
                self.start_time = common.value()
            elif tag == _DURATION:
                self.duration = common.value()
            elif tag == _FIRST_UPSTREAM_TX:
                self.first_upstream_tx = common.value()
            elif tag == _FIRST_UPSTREAM_RX:
                self.first_upstream_rx = common.value()
            elif tag == _FIRST_DOWNSTREAM_TX:
                self.first_downstream_tx = common.value()
            elif tag == _CLUSTER:
                self.cluster = common.value().decode()
            elif tag == _ATTEMPTS:
                self.attempts = common.number & _32_BITS
            elif tag == _FLAGS:
                self.flags += common.value()  # messages one after the other are one of both

    def _namespace(self, pair: Fields) -> None:
        name = value = b""
        while pair.more():
            if pair.tag == _NAME:
                name = pair.value()
            elif pair.tag == _STRUCT:
                value = pair.value()
        if name == CALL:
            self.call = value
        elif name == STREAM:
            self.stream = value
        elif name == ANSWER:
            self.answer = value


def log_entries(raw: bytes) -> Sequence[LogEntry | FailedAttempt | None]:
    """Read the planned calls and failed attempts of one StreamAccessLogsMessage.

    None stands for one whose times are none; the others are as they are. Raises Malformed.
    """
    found: list[LogEntry | FailedAttempt | None] = []
    try:
        message = fields(raw)
        while message.more():
            if message.tag != _HTTP_LOGS:
                continue
            logs = message.inside()
            while logs.more():
                if logs.tag == _LOG_ENTRY:
                    _take(logs, found)
    except (ValueError, DecodeError) as error:
        raise Malformed("not a StreamAccessLogsMessage") from error
    return found


def _take(logs: Fields, found: list[LogEntry | FailedAttempt | None]) -> None:
    read = _Entry()
    read.read(logs.inside())
    if read.call is None:
        # By the classes, because these are few: attempts that failed, and what is not ours.
        entry = accesslog_pb2.HTTPAccessLogEntry()
        entry.ParseFromString(logs.value())
        if MODEL_HEADER in entry.request.request_headers:
            found.append(_failed_attempt(entry))
        return
    call = texts_of(read.call)
    record = call.get(RECORD)
    if record is not None:
        try:
            one: LogEntry | None = _log_entry(read, record.decode("utf-8", "replace"))
        except ValueError:
            one = None
        found.append(one)


def _log_entry(read: _Entry, record: str) -> LogEntry:
    size_bytes = read.response_bytes
    seen = _UNSEEN
    if read.stream is not None:
        told = texts_of(read.stream).get(SEEN)
        if told is not None:
            seen = told.decode("utf-8", "replace").split(" ", SEEN_PARTS - 1)
            if len(seen) != SEEN_PARTS:
                seen = _UNSEEN
    form, answer = "", b""
    if read.answer is not None:
        kept = texts_of(read.answer)
        for member, name in FORMS:
            if member in kept:
                form, answer = name, kept[member]
                break
    return LogEntry(
        record=record,
        request_id=read.request_id,
        status=read.status,
        cluster=read.cluster,
        attempts=read.attempts,
        flags=_flags_of(read.flags) if read.flags else (),
        start_ms=nanoseconds(read.start_time) // NS_PER_MS,
        duration_ms=_span_ms(read.duration) or 0.0,
        first_upstream_tx_ms=_span_ms(read.first_upstream_tx),
        first_upstream_rx_ms=_span_ms(read.first_upstream_rx),
        first_chunk_ms=_measured(seen[0]),
        request_bytes=read.request_bytes,
        response_bytes=size_bytes,
        usage=seen[4],
        events=_events(_measured(seen[1]), _measured(seen[2]), size_bytes),
        done=seen[3] == "1",
        first_downstream_tx_ms=_span_ms(read.first_downstream_tx),
        answer=answer,
        answer_form=form,
        keyless=read.keyless,
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


def _flags_of(raw: bytes) -> tuple[str, ...]:
    told = accesslog_pb2.ResponseFlags()
    told.ParseFromString(raw)
    return _names(told)


def _flags(common: Any) -> tuple[str, ...]:
    return _names(common.response_flags) if common.HasField("response_flags") else ()


def _names(told: Any) -> tuple[str, ...]:
    return tuple(sorted([field.name for field, _ in told.ListFields()]))


def _measured(text: str) -> int | None:
    """Return a number of the probe; None where it is absent or nobody can have measured it."""
    if len(text) > MAX_DIGITS or not (text.isascii() and text.isdigit()):
        return None
    return int(text)


def _events(told: int | None, in_bytes: int | None, of_bytes: int) -> int:
    """Return the events of so many bytes; the probe tells when they have more than doubled."""
    if not told or not in_bytes or in_bytes >= of_bytes:
        return told or 0
    return min(told * of_bytes // in_bytes, 2 * told)


def _span_ms(raw: bytes | None) -> float | None:
    """Return a Duration; one of 0 has no bytes. Raises ValueError."""
    return None if raw is None else nanoseconds(raw) / NS_PER_MS
