"""Batches of the access log: each planned call is settled, noted and forgotten; others pass."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
from envoy_data_plane.envoy.config.core.v3 import Metadata
from envoy_data_plane.envoy.data.accesslog.v3 import AccessLogCommon, HttpAccessLogEntry
from envoy_data_plane.envoy.service.accesslog.v3 import (
    StreamAccessLogsMessage,
    StreamAccessLogsMessageHttpAccessLogEntries,
)
from envoy_data_plane.google.protobuf import Struct
from hypothesis import given
from hypothesis import strategies as st

from extproc.accesslog import AccessLog
from extproc.domain import Outcome
from extproc.inflight import InFlight
from extproc.recording import encode
from tests.calls import NOW, Watcher, forward, gateway


class Rows:
    """A ledger that remembers what was recorded, batch by batch."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def record(self, outcomes: Sequence[Outcome]) -> None:
        self.batches.append([outcome.id for outcome in outcomes])

    async def flush(self) -> None:
        """Have nothing to write."""


class Bench:
    """An access-log service with everything around it in reach."""

    def __init__(self, *planned: str) -> None:
        self.ledger = Rows()
        self.observer = Watcher()
        self.inflight = InFlight(lambda: NOW)
        for call_id in planned:
            self.inflight.add(call_id, NOW)
        self.log = AccessLog(gateway(observer=self.observer), self.ledger, self.inflight)


def entry(record: Any = None) -> HttpAccessLogEntry:
    """Build an entry, of a planned call where a record is given."""
    metadata = Metadata()
    if record is not None:
        metadata.filter_metadata["llm.call"] = Struct.from_dict({"record": record})
    return HttpAccessLogEntry(common_properties=AccessLogCommon(metadata=metadata))


def planned(call_id: str) -> HttpAccessLogEntry:
    """Build the entry of a planned call."""
    return entry(encode(forward(id=call_id)).decode())


def batch(*entries: HttpAccessLogEntry) -> bytes:
    """Encode entries as one message."""
    logs = StreamAccessLogsMessageHttpAccessLogEntries(log_entry=list(entries))
    return bytes(StreamAccessLogsMessage(http_logs=logs))


def test_a_batch_is_recorded_as_one_and_its_calls_are_forgotten() -> None:
    bench = Bench("a", "b", "c")
    bench.log.receive(batch(planned("a"), entry(), planned("b")))
    assert bench.ledger.batches == [["a", "b"]]
    assert [outcome.id for outcome in bench.observer.outcomes] == ["a", "b"]
    assert bench.observer.failures == []
    assert len(bench.inflight) == 1


@pytest.mark.parametrize("record", ["", "not ours", "[]", 7, '["i",1,"t","k","chat","m",true,[]]'])
def test_a_broken_entry_is_counted_and_the_others_count(record: Any) -> None:
    bench = Bench("a", "b")
    bench.log.receive(batch(planned("a"), entry(record), planned("b")))
    assert bench.ledger.batches == [["a", "b"]]
    assert bench.observer.failures == [("accesslog", "decode")]
    assert len(bench.inflight) == 0


def test_a_message_that_is_not_readable_is_counted_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench("a")
    with caplog.at_level(logging.WARNING):
        bench.log.receive(b"\xff\xff")
    assert bench.ledger.batches == []
    assert bench.observer.failures == [("accesslog", "decode")]
    assert [record.message for record in caplog.records] == ["access log message is not readable"]
    assert len(bench.inflight) == 1


@pytest.mark.parametrize("raw", [b"", batch(), batch(entry())])
def test_nothing_to_settle_is_nothing_to_record(raw: bytes) -> None:
    bench = Bench("a")
    bench.log.receive(raw)
    assert (bench.ledger.batches, bench.observer.failures) == ([], [])


def test_a_call_planned_by_an_earlier_process_is_settled() -> None:
    bench = Bench()
    bench.log.receive(batch(planned("before")))
    assert bench.ledger.batches == [["before"]]


@given(st.data())
def test_no_bytes_of_a_batch_stop_the_service(data: st.DataObject) -> None:
    raw = batch(planned("a"), planned("b"))
    at = data.draw(st.integers(0, len(raw) - 1))
    put, cut = data.draw(st.binary(max_size=3)), data.draw(st.integers(0, 3))
    Bench("a").log.receive(raw[:at] + put + raw[at + cut :])
