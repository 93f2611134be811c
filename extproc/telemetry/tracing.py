"""Export a span for every sampled call, over OTLP, after the call.

Knows: OpenTelemetry, the GenAI semantic conventions. Must not know: requests, prompts, transports.
A call's span is made at its settlement, from Envoy's times, so that it also exists for a call that
outlived the processor; that of its admission is made by whoever admitted it. Spans hold names,
counts and times, never what was said. A thread of the SDK's exports them in batches.
Failure mode: open. What cannot be exported is dropped, counted and not tried for long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from extproc import __version__
from extproc.domain import PICO_USD_PER_USD, Ended, Outcome, Principal, Trace, UsageSource
from extproc.policies.trace import TOKEN_BYTES, continued
from extproc.ports import Observer
from extproc.telemetry.metrics import OPERATIONS

PATH: Final = "/v1/traces"  # OTLP/HTTP: of the endpoint given for all signals
MAX_QUEUED: Final = 8_192  # spans, about 10 MB: two seconds of a busy processor
BATCH: Final = 512
DELAY_MS: Final = 1_000
EXPORT_S: Final = 5.0  # for one batch, its repetitions included
NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000

Attributes = dict[str, str | int | float | bool]
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_SCOPE: Final = InstrumentationScope("extproc", __version__)


class _Counted(SpanExporter):
    """Counts what is done with spans, and what fails."""

    def __init__(self, inner: SpanExporter, observer: Observer) -> None:
        self._inner = inner
        self._observer = observer
        self.done = 0
        self.give_up_at = float("inf")  # monotonic seconds

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            if time.monotonic() < self.give_up_at:
                result = self._inner.export(spans)
        finally:
            self.done += len(spans)
        if result is not SpanExportResult.SUCCESS:
            self._observer.store_error("otlp", "export")
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


class Tracing:
    """Begins, continues and records traces; `random` gives that many bytes.

    All but `close` is for the event loop's thread.
    """

    def __init__(
        self,
        endpoint: str,
        ratio: float,
        observer: Observer,
        *,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Export to the OTLP/HTTP endpoint, `http://host:4318`; `ratio` is of new traces."""
        self._ratio = ratio
        self._random = random
        self._observer = observer
        self._exporter = _Counted(OTLPSpanExporter(f"{endpoint}{PATH}", timeout=EXPORT_S), observer)
        self._batches = BatchSpanProcessor(
            self._exporter,
            max_queue_size=MAX_QUEUED,
            schedule_delay_millis=DELAY_MS,
            max_export_batch_size=BATCH,
        )
        self._resource = Resource.create(
            {"service.name": "llm-edge", "service.version": __version__}
        )
        self._emitted = 0

    def begin(self, traceparent: str | None) -> Trace:
        """Return the span of a call that is about to be decided on."""
        return continued(traceparent, self._random(TOKEN_BYTES), self._ratio)

    def admitted(self, trace: Trace, started: float, ended: float) -> None:
        """Record how long the decision took, the wait for the body included; unix seconds."""
        if trace.sampled:
            own = Trace(trace.trace_id, self._span_id(), trace.span_id, sampled=True)
            self._emit(own, "admission", (_ns(started), _ns(ended)), {}, kind=SpanKind.INTERNAL)

    def denied(
        self,
        trace: Trace,
        *,
        started: float,
        ended: float,
        who: Principal,
        endpoint: str,
        code: str,
    ) -> None:
        """Record a call of a known caller that was refused; unix seconds."""
        if trace.sampled:
            operation = OPERATIONS.get(endpoint, endpoint)
            attributes: Attributes = {
                "gen_ai.operation.name": operation,
                "llm_edge.tenant": who.tenant,
                "llm_edge.key_id": who.key_id,
            }
            times = _ns(started), _ns(ended)
            self._emit(trace, operation, times, attributes, error=code)

    def settled(self, trace: Trace, outcome: Outcome) -> None:
        """Record a settled call, from its first byte to its last."""
        start_ns = outcome.time_ms * NS_PER_MS
        events = []
        if outcome.ttft_ms is not None:
            first_ns = start_ns + outcome.ttft_ms * NS_PER_MS
            events.append(Event("first_token", timestamp=first_ns))
        operation = OPERATIONS.get(outcome.endpoint, outcome.endpoint)
        error = ""
        if outcome.ended is not Ended.FINISHED:
            error = "cut" if outcome.ended is Ended.PARTIAL else str(outcome.status)
        self._emit(
            trace,
            f"{operation} {outcome.model}",
            (start_ns, start_ns + outcome.duration_ms * NS_PER_MS),
            _attributes(operation, outcome),
            events=events,
            error=error,
        )

    def close(self) -> None:
        """Export what is left, for up to EXPORT_S seconds. Blocks."""
        self._exporter.give_up_at = time.monotonic() + EXPORT_S
        self._batches.shutdown()  # type: ignore[no-untyped-call]

    def _span_id(self) -> int:
        return int.from_bytes(self._random(8)) or 1

    def _emit(
        self,
        trace: Trace,
        name: str,
        times_ns: tuple[int, int],
        attributes: Attributes,
        *,
        kind: SpanKind = SpanKind.CLIENT,
        events: Sequence[Event] = (),
        error: str = "",
    ) -> None:
        if self._emitted - self._exporter.done >= MAX_QUEUED:
            # Here, because the SDK would drop the oldest and write a log line for each.
            self._observer.store_error("otlp", "overflow")
            return
        self._emitted += 1
        if error:
            attributes["error.type"] = error
        remote = trace.parent_id
        self._batches.on_end(
            ReadableSpan(
                name,
                context=_context(trace.trace_id, trace.span_id),
                parent=_context(trace.trace_id, remote) if remote else None,
                resource=self._resource,
                attributes=attributes,
                events=events,
                kind=kind,
                status=Status(StatusCode.ERROR if error else StatusCode.UNSET),
                start_time=times_ns[0],
                end_time=max(times_ns),
                instrumentation_scope=_SCOPE,
            )
        )


def _attributes(operation: str, outcome: Outcome) -> Attributes:
    usage = outcome.usage
    found: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": outcome.provider,
        "gen_ai.request.model": outcome.model,
        "gen_ai.response.model": outcome.served_model,
        "gen_ai.usage.input_tokens": usage.input,
        "gen_ai.usage.output_tokens": usage.output,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_input,
        "gen_ai.usage.cache_creation.input_tokens": usage.cache_write,
        "http.response.status_code": outcome.status,
        "llm_edge.tenant": outcome.tenant,
        "llm_edge.key_id": outcome.key_id,
        "llm_edge.request_id": outcome.request_id,
        "llm_edge.attempts": outcome.attempts,
        "llm_edge.stream": outcome.stream,
    }
    if usage.source is not UsageSource.NONE:
        found["llm_edge.usage_source"] = usage.source.value
    if outcome.cost_pico_usd is not None:
        found["llm_edge.cost_usd"] = outcome.cost_pico_usd / PICO_USD_PER_USD
    return found


def _context(trace_id: int, span_id: int) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=_SAMPLED)


def _ns(seconds: float) -> int:
    return int(seconds * NS_PER_S)
