"""Access-log messages as Envoy writes them, read by us."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from envoy_data_plane.envoy.config.core.v3 import Metadata
from envoy_data_plane.envoy.data.accesslog.v3 import (
    AccessLogCommon,
    HttpAccessLogEntry,
    HttpRequestProperties,
    HttpResponseProperties,
    ResponseFlags,
)
from envoy_data_plane.envoy.service.accesslog.v3 import (
    StreamAccessLogsMessage,
    StreamAccessLogsMessageHttpAccessLogEntries,
    StreamAccessLogsMessageTcpAccessLogEntries,
)
from envoy_data_plane.google.protobuf import Struct as EnvoyStruct
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from extproc.domain import FailedAttempt, LogEntry
from extproc.pb import als_pb2
from extproc.wire import logs
from extproc.wire.messages import Malformed
from extproc.wire.times import nanoseconds

START = datetime(2026, 7, 1, 12, 30, 15, 250_000, tzinfo=UTC)


def struct(values: dict[str, Any]) -> EnvoyStruct:
    """Build a Struct with Google's own code."""
    written = Struct()
    written.update(values)
    return EnvoyStruct.parse(written.SerializeToString())


def entry(metadata: dict[str, dict[str, Any]], **common: Any) -> HttpAccessLogEntry:
    """Build one entry with the metadata, otherwise bare."""
    filters = {name: struct(values) for name, values in metadata.items()}
    return HttpAccessLogEntry(
        common_properties=AccessLogCommon(metadata=Metadata(filter_metadata=filters), **common)
    )


def message(*entries: HttpAccessLogEntry) -> bytes:
    """Encode a batch."""
    logs = StreamAccessLogsMessageHttpAccessLogEntries(log_entry=list(entries))
    return bytes(StreamAccessLogsMessage(http_logs=logs))


def read(*entries: HttpAccessLogEntry) -> list[LogEntry]:
    """Send a batch and read it."""
    return list(logs.log_entries(message(*entries)))


BARE = LogEntry(
    record="r",
    request_id="",
    status=0,
    cluster="",
    attempts=0,
    flags=(),
    start_ms=0,
    duration_ms=0.0,
    first_upstream_tx_ms=None,
    first_upstream_rx_ms=None,
    first_chunk_ms=None,
    request_bytes=0,
    response_bytes=0,
    usage="",
    events=0,
    done=False,
)


@pytest.mark.parametrize(
    ("kept", "body", "form"),
    [
        pytest.param({"json": "{}"}, b"{}", "json", id="a document"),
        pytest.param({"sse": "data: é\n\n"}, b"data: \xc3\xa9\n\n", "sse", id="a stream"),
        pytest.param({"xml": "<x/>"}, b"", "", id="another form"),
        pytest.param({"json": 7.0}, b"", "json", id="another type"),
    ],
)
def test_an_answer_that_is_to_be_kept(kept: dict[str, Any], body: bytes, form: str) -> None:
    (found,) = read(entry({"llm.call": {"record": "r"}, "llm.answer": kept}))
    assert (found.answer, found.answer_form) == (body, form)


def test_an_answer_need_not_be_text() -> None:
    """What a provider sends is bytes; that it is UTF-8 is for whoever reads it to see."""
    raw = message(entry({"llm.call": {"record": "r"}, "llm.answer": {"json": "{??}"}}))
    (found,) = logs.log_entries(raw.replace(b"{??}", b"{\xff\xfe}"))
    assert isinstance(found, LogEntry)
    assert found.answer == b"{\xff\xfe}"


def test_a_full_entry_of_envoy_is_read() -> None:
    probe = {"seen": '12 42 77 1 "usage": {}'}
    full = entry(
        {
            "llm": {"id": "x"},
            "llm.call": {"record": '["é"]'},
            "llm.stream": probe,
            "other": {"a": 1},
        },
        start_time=START,
        duration=timedelta(seconds=2, microseconds=1500),
        time_to_first_upstream_tx_byte=timedelta(milliseconds=3),
        time_to_first_upstream_rx_byte=timedelta(microseconds=70_250),
        upstream_cluster="openai",
        upstream_request_attempt_count=2,
        response_flags=ResponseFlags(
            upstream_remote_reset=True, downstream_connection_termination=True
        ),
    )
    full.request = HttpRequestProperties(request_id="req-1", request_body_bytes=2**33)
    full.response = HttpResponseProperties(response_code=200, response_body_bytes=77)
    assert read(full) == [
        LogEntry(
            record='["é"]',
            request_id="req-1",
            status=200,
            cluster="openai",
            attempts=2,
            flags=("downstream_connection_termination", "upstream_remote_reset"),
            start_ms=1_782_909_015_250,
            duration_ms=2001.5,
            first_upstream_tx_ms=3.0,
            first_upstream_rx_ms=70.25,
            first_chunk_ms=12,
            request_bytes=2**33,
            response_bytes=77,
            usage='"usage": {}',
            events=42,
            done=True,
        )
    ]


def test_an_entry_with_nothing_but_its_record_is_read() -> None:
    assert read(entry({"llm.call": {"record": "r"}})) == [BARE]


def test_a_time_of_zero_is_not_a_time_that_never_was() -> None:
    zero = timedelta(0)
    common = {"time_to_first_upstream_tx_byte": zero, "time_to_first_upstream_rx_byte": zero}
    (found,) = read(
        entry({"llm.call": {"record": "r"}, "llm.stream": {"seen": "0 0 0 0 "}}, **common)
    )
    times = (found.first_upstream_tx_ms, found.first_upstream_rx_ms, found.first_chunk_ms)
    assert times == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "foreign",
    [
        pytest.param(HttpAccessLogEntry(), id="without properties"),
        pytest.param(entry({}), id="without metadata"),
        pytest.param(entry({"llm.call": {"id": "x"}}), id="without a record"),
        pytest.param(entry({"llm.stream": {"record": "r"}}), id="with it in another namespace"),
    ],
)
def test_an_entry_no_plan_was_made_for_is_passed_over(foreign: HttpAccessLogEntry) -> None:
    ours = entry({"llm.call": {"record": "r"}})
    assert read(foreign, ours, foreign) == [BARE]


def test_a_record_that_is_not_text_is_an_empty_one() -> None:
    (found,) = read(entry({"llm.call": {"record": 7}}))
    assert found.record == ""


def test_a_message_without_http_entries_brings_none() -> None:
    tcp = StreamAccessLogsMessage(tcp_logs=StreamAccessLogsMessageTcpAccessLogEntries())
    assert list(logs.log_entries(bytes(tcp))) == []
    assert list(logs.log_entries(b"")) == []


FLAGS = [name for name in ResponseFlags.__annotations__ if name != "unauthorized_details"]


@pytest.mark.parametrize("flag", FLAGS)
def test_a_response_flag_has_envoys_name_or_none(flag: str) -> None:
    """Numbers agree: a flag we do not read is absent, never another flag."""
    (found,) = read(
        entry({"llm.call": {"record": "r"}}, response_flags=ResponseFlags(**{flag: True}))
    )
    assert found.flags in {(flag,), ()}


@pytest.mark.parametrize(
    "flag",
    [
        "downstream_connection_termination",
        "downstream_remote_reset",
        "upstream_remote_reset",
        "upstream_connection_termination",
        "upstream_connection_failure",
        "upstream_request_timeout",
        "upstream_retry_limit_exceeded",
        "no_healthy_upstream",
        "stream_idle_timeout",
        "duration_timeout",
    ],
)
def test_the_flags_an_operator_looks_for_are_read(flag: str) -> None:
    (found,) = read(
        entry({"llm.call": {"record": "r"}}, response_flags=ResponseFlags(**{flag: True}))
    )
    assert found.flags == (flag,)


@given(
    st.integers(0, 2**31), st.integers(0, 999_999), st.integers(100, 599), st.integers(0, 2**32 - 1)
)
def test_numbers_arrive_as_sent(seconds: int, micros: int, status: int, attempts: int) -> None:
    span = timedelta(seconds=seconds, microseconds=micros)
    sent = entry(
        {"llm.call": {"record": "r"}}, duration=span, upstream_request_attempt_count=attempts
    )
    sent.response = HttpResponseProperties(response_code=status, response_body_bytes=seconds)
    (found,) = read(sent)
    assert found.duration_ms == pytest.approx(seconds * 1000 + micros / 1000, abs=1e-3)
    assert (found.status, found.attempts, found.response_bytes) == (status, attempts, seconds)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Bytes of a good message with a few replaced, cut or put in."""
    probe = {"seen": "1 3 9 1 u"}
    raw = message(entry({"llm.call": {"record": "r"}, "llm.stream": probe}, start_time=START))
    at = draw(st.integers(0, len(raw) - 1))
    return raw[:at] + draw(st.binary(max_size=3)) + raw[at + draw(st.integers(0, 3)) :]


@given(st.binary(max_size=200) | damaged())
def test_any_bytes_are_entries_or_malformed(raw: bytes) -> None:
    try:
        for found in logs.log_entries(raw):
            assert found is None or isinstance(found, LogEntry)  # None: its times are none
    except Malformed:
        return


@pytest.mark.parametrize(
    ("seen", "size", "events"),
    [
        pytest.param("1 8 800 0 ", 800, 8, id="all of them"),
        pytest.param("1 8 800 0 ", 1200, 12, id="as many for the bytes since"),
        pytest.param("1 8 800 0 ", 9999, 16, id="not over twice, of which it would have told"),
        pytest.param("1 8 800 0 ", 700, 8, id="more than were sent"),
        pytest.param("1 8 0 0 ", 700, 8, id="no bytes"),
        pytest.param("1 0 0 0 ", 700, 0, id="none"),
        pytest.param("1 -8 800 0 ", 800, 0, id="less than none"),
        pytest.param("1 1e300 800 0 ", 800, 0, id="not a count"),
        pytest.param(f"1 {'9' * 16} 800 0 ", 800, 0, id="more than anybody counted"),
        pytest.param("1 8 800", 800, 0, id="cut short"),
    ],
)
def test_events_are_told_of_some_bytes(seen: str, size: int, events: int) -> None:
    sent = entry({"llm.call": {"record": "r"}, "llm.stream": {"seen": seen}})
    sent.response = HttpResponseProperties(response_code=200, response_body_bytes=size)
    (found,) = read(sent)
    assert found.events == events


@pytest.mark.parametrize(
    ("status", "details", "keyless"),
    [
        (503, "failed_to_inject_credential", True),
        (503, "no_healthy_upstream", False),
        (200, "failed_to_inject_credential", False),
        (503, "", False),
    ],
)
def test_a_provider_without_a_credential_is_told(
    status: int, details: str, *, keyless: bool
) -> None:
    """By Envoy's details of an answer of its own."""
    failed = entry({"llm.call": {"record": "r"}})
    failed.response = HttpResponseProperties(response_code=status, response_code_details=details)
    (found,) = read(failed)
    assert isinstance(found, LogEntry)
    assert found.keyless is keyless


def test_what_the_probe_did_not_measure_is_none() -> None:
    told = {"seen": '- 0 31 1 "usage":{"a": 1}'}
    (found,) = read(entry({"llm.call": {"record": "r"}, "llm.stream": told}))
    assert (found.first_chunk_ms, found.done, found.usage) == (None, True, '"usage":{"a": 1}')


def failed(**common: Any) -> HttpAccessLogEntry:
    """Build an entry of the log of attempts."""
    headers = {"retry-after": "7", "x-llm-resets": "0;9s;;"}
    return HttpAccessLogEntry(
        common_properties=AccessLogCommon(upstream_cluster="openai", **common),
        request=HttpRequestProperties(request_headers={"x-upstream-model": "gpt-x"}),
        response=HttpResponseProperties(response_code=429, response_headers=headers),
    )


def test_a_failed_attempt_is_told_from_a_call() -> None:
    """It has its target's name on the request and no call in its metadata."""
    flags = ResponseFlags(upstream_protocol_error=True)
    found = list(logs.log_entries(message(failed(response_flags=flags), failed())))
    told = FailedAttempt("openai", "gpt-x", 429, ("upstream_protocol_error",), "7", "0;9s;;")
    assert found == [told, FailedAttempt("openai", "gpt-x", 429, (), "7", "0;9s;;")]


def test_an_entry_of_neither_kind_is_passed_over() -> None:
    """Other logs of the same Envoy are not ours."""
    assert read(HttpAccessLogEntry()) == []


def test_an_attempt_without_an_answer_has_no_status() -> None:
    """A refused connection has no headers either."""
    bare = HttpAccessLogEntry(
        common_properties=AccessLogCommon(
            upstream_cluster="dead", response_flags=ResponseFlags(upstream_connection_failure=True)
        ),
        request=HttpRequestProperties(request_headers={"x-upstream-model": "m"}),
    )
    assert read(bare) == [FailedAttempt("dead", "m", 0, ("upstream_connection_failure",), "", "")]


@given(st.integers(-(2**62), 2**62), st.integers(0, 999_999_999))
def test_times_are_googles(seconds: int, nanos: int) -> None:
    """Read by hand what Google's own code wrote; times before 1970 included."""
    written = Timestamp(seconds=seconds, nanos=nanos).SerializeToString()
    assert nanoseconds(written) == seconds * 10**9 + nanos


@given(st.binary(max_size=24))
def test_any_bytes_are_a_time_or_refused(raw: bytes) -> None:
    """Bytes that are no time are a ValueError, never another exception or an endless loop."""
    try:
        assert isinstance(nanoseconds(raw), int)
    except ValueError:
        return


@pytest.mark.parametrize("field", ["start_time", "duration", "time_to_first_upstream_tx_byte"])
def test_an_entry_whose_time_is_none_costs_no_other(field: str) -> None:
    """Which no Envoy writes; those before and after it are read."""
    message = als_pb2.StreamAccessLogsMessage()
    for record in ("first", "broken", "last"):
        common = message.http_logs.log_entry.add().common_properties
        common.metadata.filter_metadata["llm.call"] = bytes(struct({"record": record}))
        if record == "broken":
            setattr(common, field, b"\x08\xff")
    found = logs.log_entries(message.SerializeToString())
    assert [one and one.record for one in found] == ["first", None, "last"]


def test_a_span_of_nothing_is_a_span() -> None:
    """An attempt that was sent at once was sent."""
    (found,) = read(
        entry({"llm.call": {"record": "r"}}, time_to_first_upstream_tx_byte=timedelta(0))
    )
    assert found.first_upstream_tx_ms == 0.0
