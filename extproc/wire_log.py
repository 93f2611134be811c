"""The access log's messages: what became of planned calls and of failed attempts.

Knows: the message classes. Must not know: transports, policies or what an entry is settled to.
Source: envoy.service.accesslog.v3 and envoy.data.accesslog.v3 (extproc/pb/*.proto).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.message import DecodeError

from extproc.domain import FailedAttempt, LogEntry, provider_of
from extproc.pb import als_pb2
from extproc.wire import CALL, MODEL_HEADER, Malformed
from extproc.wire_struct import fields_of, text_of
from extproc.wire_time import nanoseconds

CALL_NAMESPACE: Final = CALL.decode()
STREAM_NAMESPACE: Final = "llm.stream"  # dynamic metadata Envoy's response probe writes
ANSWER_NAMESPACE: Final = "llm.answer"  # and this, of answers that are to be kept
FORMS: Final = ("json", "sse")
SEEN_PARTS: Final = 5  # first chunk's time, events, their bytes, end, usage
MAX_DIGITS: Final = 15  # of what anybody can have measured
NS_PER_MS: Final = 1_000_000
RESETS_HEADER: Final = "x-llm-resets"  # on its answer, as `policies.cooling` reads it


_NOTHING: Final[dict[str, Any]] = {}
_UNSEEN: Final = [""] * SEEN_PARTS


def log_entries(raw: bytes) -> Iterator[LogEntry | FailedAttempt | None]:
    """Read the planned calls and failed attempts of one StreamAccessLogsMessage.

    None stands for one whose times are none; the others are as they are. Raises Malformed.
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
        probe = fields_of(metadata[STREAM_NAMESPACE]) if STREAM_NAMESPACE in metadata else _NOTHING
        kept = fields_of(metadata[ANSWER_NAMESPACE]) if ANSWER_NAMESPACE in metadata else _NOTHING
        try:
            read = _log_entry(entry, common, call, probe, kept)
        except ValueError:
            read = None
        yield read


def _log_entry(entry: Any, common: Any, call: Any, probe: Any, kept: Any) -> LogEntry:
    request, response = entry.request, entry.response
    size_bytes = response.response_body_bytes
    seen = text_of(probe, "seen").split(" ", SEEN_PARTS - 1)
    if len(seen) != SEEN_PARTS:
        seen = _UNSEEN
    form = next((form for form in FORMS if form in kept), "") if kept else ""
    return LogEntry(
        record=text_of(call, "record"),
        request_id=request.request_id,
        status=response.response_code.value,
        cluster=common.upstream_cluster,
        attempts=common.upstream_request_attempt_count,
        flags=_flags(common),
        start_ms=nanoseconds(common.start_time) // NS_PER_MS,
        duration_ms=_span_ms(common.duration, common, "duration") or 0.0,
        first_upstream_tx_ms=_span_ms(
            common.time_to_first_upstream_tx_byte, common, "time_to_first_upstream_tx_byte"
        ),
        first_upstream_rx_ms=_span_ms(
            common.time_to_first_upstream_rx_byte, common, "time_to_first_upstream_rx_byte"
        ),
        first_chunk_ms=_measured(seen[0]),
        request_bytes=request.request_body_bytes,
        response_bytes=size_bytes,
        usage=seen[4],
        events=_events(_measured(seen[1]), _measured(seen[2]), size_bytes),
        done=seen[3] == "1",
        first_downstream_tx_ms=_span_ms(
            common.time_to_first_downstream_tx_byte, common, "time_to_first_downstream_tx_byte"
        ),
        answer=kept[form].string_value if form else b"",
        answer_form=form,
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


def _span_ms(raw: bytes, message: Any, field: str) -> float | None:
    """Return a Duration; one of 0 has no bytes, as one that is absent. Raises ValueError."""
    if not raw and not message.HasField(field):
        return None
    return nanoseconds(raw) / NS_PER_MS
