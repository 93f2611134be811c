"""Spans as a collector gets them, and what becomes of them where there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing

import pytest
from msgspec.structs import replace

from extproc.domain import Ended, Principal, Trace, Usage, UsageSource
from extproc.telemetry import tracing as module
from extproc.telemetry.tracing import Tracing
from tests.calls import Watcher
from tests.collector import Collector, attributes, collecting
from tests.outcomes import outcome

TRACE = Trace(0xABC, 0x12, 0x34, sampled=True)
SECOND_NS = 1_000_000_000
CALL = outcome(
    request_id="r-1",
    time_ms=1_000,
    duration_ms=250,
    ttft_ms=40,
    usage=Usage(10, 4, 2, UsageSource.PROVIDER),
    cost_pico_usd=2_500_000_000,
    stream=True,
)
WHO = Principal("acme", "key_1", "free")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


def test_a_settled_call_is_one_span(collector: Collector, watcher: Watcher) -> None:
    """Name, times, tokens and cost by the semantic conventions, under the caller's span."""
    with closing(Tracing(collector.endpoint, 1.0, watcher)) as tracing:
        tracing.settled(TRACE, CALL)
    (span,) = collector.spans
    assert collector.paths == {"/v1/traces"}
    assert collector.resource["service.name"] == "llm-edge"
    assert (span.name, span.kind) == ("chat small", span.SPAN_KIND_CLIENT)
    assert int.from_bytes(span.trace_id) == TRACE.trace_id
    assert int.from_bytes(span.span_id) == TRACE.span_id
    assert int.from_bytes(span.parent_span_id) == TRACE.parent_id
    assert span.start_time_unix_nano == SECOND_NS
    assert span.end_time_unix_nano == SECOND_NS * 5 // 4
    assert [(e.name, e.time_unix_nano) for e in span.events] == [("first_token", 1_040_000_000)]
    assert span.status.code == span.status.STATUS_CODE_UNSET
    assert attributes(span) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "small",
        "gen_ai.response.model": "gpt-4o-mini",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.usage.cache_creation.input_tokens": 0,
        "http.response.status_code": 200,
        "llm_edge.tenant": "acme",
        "llm_edge.key_id": "key_1",
        "llm_edge.request_id": "r-1",
        "llm_edge.attempts": 1,
        "llm_edge.stream": True,
        "llm_edge.usage_source": "provider",
        "llm_edge.cost_usd": 0.0025,
    }
    assert watcher.failures == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param({"ended": Ended.FAILED, "status": 503}, "503", id="failed"),
        pytest.param({"ended": Ended.PARTIAL}, "cut", id="cut"),
    ],
)
def test_what_went_wrong_is_an_error(
    collector: Collector, watcher: Watcher, changes: dict[str, object], error: str
) -> None:
    """Give the kind of error, and no cost where none is known."""
    with closing(Tracing(collector.endpoint, 1.0, watcher)) as tracing:
        tracing.settled(
            dataclasses.replace(TRACE, parent_id=0),
            replace(CALL, cost_pico_usd=None, ttft_ms=None, **changes),
        )  # type: ignore[arg-type]
    (span,) = collector.spans
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert attributes(span)["error.type"] == error
    assert "llm_edge.cost_usd" not in attributes(span)
    assert (span.parent_span_id, len(span.events)) == (b"", 0)


def test_an_admission_is_a_child_and_a_refusal_is_the_call(
    collector: Collector, watcher: Watcher
) -> None:
    """Record how long the decision took, and who was refused for what."""
    with closing(Tracing(collector.endpoint, 1.0, watcher)) as tracing:
        tracing.admitted(TRACE, 1.0, 1.5)
        tracing.denied(
            TRACE, started=1.0, ended=0.5, who=WHO, endpoint="chat", code="rate_limit_exceeded"
        )
    (admission,) = collector.named("admission")
    assert int.from_bytes(admission.parent_span_id) == TRACE.span_id
    assert admission.span_id != TRACE.span_id.to_bytes(8)
    assert admission.end_time_unix_nano - admission.start_time_unix_nano == SECOND_NS // 2
    (refusal,) = collector.named("chat")
    assert int.from_bytes(refusal.parent_span_id) == TRACE.parent_id
    assert attributes(refusal) == {
        "gen_ai.operation.name": "chat",
        "llm_edge.tenant": "acme",
        "llm_edge.key_id": "key_1",
        "error.type": "rate_limit_exceeded",
    }
    assert refusal.end_time_unix_nano == refusal.start_time_unix_nano  # never before it began


def test_what_is_not_sampled_is_not_recorded(collector: Collector, watcher: Watcher) -> None:
    """Continue an unsampled trace without a span of it."""
    with closing(Tracing(collector.endpoint, 1.0, watcher)) as tracing:
        trace = tracing.begin(f"00-{'a' * 32}-{'b' * 16}-00")
        assert not trace.sampled
        tracing.admitted(trace, 1.0, 2.0)
        tracing.denied(trace, started=1.0, ended=2.0, who=WHO, endpoint="chat", code="not_found")
    assert collector.spans == []


def test_traces_begin_with_fresh_ids(watcher: Watcher) -> None:
    """Begin each of two traces with ids of its own."""
    with closing(Tracing("http://127.0.0.1:9", 1.0, watcher)) as tracing:
        one, two = tracing.begin(None), tracing.begin(None)
    assert len({one.trace_id, two.trace_id, one.span_id, two.span_id}) == 4


def test_a_collector_that_refuses_is_counted(collector: Collector, watcher: Watcher) -> None:
    """Drop what the collector will not have, and say so in the metrics."""
    collector.status = 400
    with closing(Tracing(collector.endpoint, 1.0, watcher)) as tracing:
        tracing.settled(TRACE, CALL)
    assert watcher.failures == [("otlp", "export")]


def test_a_collector_that_is_away_costs_no_memory_and_no_time(
    monkeypatch: pytest.MonkeyPatch, watcher: Watcher
) -> None:
    """Queue so many spans and no more, and leave at the end without waiting for it."""
    monkeypatch.setattr(module, "MAX_QUEUED", 4)
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "DELAY_MS", 60_000)
    monkeypatch.setattr(module, "EXPORT_S", 0.0)  # closing finds no time left
    with closing(Tracing("http://127.0.0.1:9", 1.0, watcher)) as tracing:
        tracing._exporter.give_up_at = 0.0
        monkeypatch.setattr(tracing._batches._batch_processor, "_max_export_batch_size", 100)
        for _ in range(7):
            tracing.settled(TRACE, CALL)
        assert watcher.failures == [("otlp", "overflow")] * 3
    assert watcher.failures[3:] == [("otlp", "export")]
