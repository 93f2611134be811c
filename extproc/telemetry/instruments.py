"""What is measured: the name, labels and buckets of every instrument, on one page.

Knows: prometheus-client, the contract's names and the OpenTelemetry GenAI semantic conventions
(their names, dots as underscores). Must not know: calls, label values or when something counts.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Gauge,
    ProcessCollector,
    generate_latest,
)

from extproc.telemetry.tallies import Counters, Histograms

# Bucket boundaries as the semantic conventions ask for them.
TOKEN_BUCKETS: Final = tuple(4**n for n in range(14))
DURATION_BUCKETS_S: Final = tuple(0.01 * 2**n for n in range(14))
TTFT_BUCKETS_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
TPOT_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
# Our own: an admission takes about 100 us.
ADMISSION_BUCKETS_S: Final = (
    *(25e-6, 50e-6, 1e-4, 2.5e-4, 5e-4, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
)
LAG_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

_GEN_AI: Final = (
    *("gen_ai_operation_name", "gen_ai_provider_name"),
    *("gen_ai_request_model", "gen_ai_response_model"),
)


class Instruments:
    """Every instrument, registered in the registry it is given; the process's own included."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(
            name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
        ) -> Histograms:
            return Histograms(name, text, labels, buckets, registry)

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counters:
            return Counters(name, text, labels, registry)

        ProcessCollector(registry=registry)
        self.tokens = histogram(
            "gen_ai_client_token_usage",
            "Input and output tokens of one call.",
            (*_GEN_AI, "gen_ai_token_type"),
            TOKEN_BUCKETS,
        )
        self.duration = histogram(
            "gen_ai_server_request_duration_seconds",
            "Time to the last byte of an answer; error_type is empty for a complete 2xx answer.",
            (*_GEN_AI, "error_type"),
            DURATION_BUCKETS_S,
        )
        self.ttft = histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Time to the first content event of a stream.",
            _GEN_AI,
            TTFT_BUCKETS_S,
        )
        self.tpot = histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Time per output token after the first, of complete streams.",
            _GEN_AI,
            TPOT_BUCKETS_S,
        )
        self.requests = counter(
            "llm_edge_requests",
            "Calls answered: finished, failed, partial (cut) or denied here.",
            ("endpoint", "status", "outcome"),
        )
        self.denied = counter(
            "llm_edge_denied", "Calls refused here, by error code.", ("endpoint", "code")
        )
        self.admission = histogram(
            "llm_edge_admission_seconds",
            "Time the processor took to decide.",
            ("phase",),
            ADMISSION_BUCKETS_S,
        )
        self.breaker = Gauge(
            "llm_edge_breaker_state",
            "Circuit breaker of the provider's worst model: 0 closed, 1 half-open, 2 open.",
            ("provider",),
            registry=registry,
        )
        self.cost = counter(
            "llm_edge_cost_usd",
            "Cost of calls whose price is known; the ledger has it exactly.",
            ("tenant", "model", "provider"),
        )
        self.attempts = counter(
            "llm_edge_attempts",
            "Attempts by result: finished, failed, partial, or retried (provider: other).",
            ("provider", "result"),
        )
        self.usage_source = counter(
            "llm_edge_usage_source", "Where token counts came from.", ("source",)
        )
        self.limited = counter(
            "llm_edge_limited", "Calls refused by a limit, by its name.", ("limit",)
        )
        self.cache = counter(
            "llm_edge_cache", "What calls found in the cache: hit, collapsed, miss...", ("result",)
        )
        self.cache_fills = counter(
            "llm_edge_cache_fills", "Answers stored, or the reason why not.", ("result",)
        )
        self.store_errors = counter(
            "llm_edge_store_errors", "Failures of a store by operation.", ("store", "op")
        )
        self.loop_lag = histogram(
            "llm_edge_loop_lag_seconds", "Lateness of a timer on the event loop.", (), LAG_BUCKETS_S
        )


def page(registry: CollectorRegistry) -> tuple[bytes, str]:
    """Return the page to scrape and its content type (Prometheus text format).

    Takes 10 us a line, tens of milliseconds in all: call it in a thread, not on the loop.
    """
    return generate_latest(registry), CONTENT_TYPE_LATEST
