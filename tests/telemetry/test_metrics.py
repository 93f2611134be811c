"""Metrics: what a settled call adds, and that no caller can add series."""

import itertools
import random

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from extproc.cache.reasons import Reason
from extproc.caching.flow import _FORWARDED
from extproc.domain import Ended, Outcome, Usage, UsageSource
from extproc.limits import SLOTS, Scope
from extproc.telemetry import metrics as module
from extproc.telemetry.metrics import MAX_NAMES, MAX_TENANTS, Metrics
from tests.outcomes import outcome

OUTCOME = outcome(
    stream=True,
    usage=Usage(19, 11, 5, UsageSource.PROVIDER),
    cost_pico_usd=2_500_000_000_000,
    duration_ms=1_100,
    ttft_ms=100,
)
FAILED = replace(
    OUTCOME,
    ended=Ended.FAILED,
    status=503,
    usage=Usage(0, 0, 0, UsageSource.NONE),
    cost_pico_usd=0,
    ttft_ms=None,
    attempts=4,
    retried=("local", "openai", "gone"),
)
CUT = replace(
    OUTCOME, ended=Ended.PARTIAL, usage=Usage(19, 4, 0, UsageSource.PARTIAL), cost_pico_usd=None
)
EMBEDDING = replace(
    OUTCOME, endpoint="embeddings", stream=False, ttft_ms=None, usage=replace(CUT.usage, output=0)
)
UNSENT = replace(CUT, attempts=0, ttft_ms=None)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(models=["small"], served_models=["gpt-4o-mini"], providers=["openai", "local"])


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics._registry.get_sample_value(name, labels)


def total(metrics: Metrics, name: str, **labels: str) -> float:
    """Sum the samples of a name that carry the labels."""
    return sum(
        sample.value
        for family in metrics._registry.collect()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@pytest.mark.parametrize(
    ("outcome", "name", "labels", "expected"),
    [
        (OUTCOME, "gen_ai_client_token_usage_sum", {"gen_ai_token_type": "input"}, 19),
        (OUTCOME, "gen_ai_client_token_usage_sum", {"gen_ai_token_type": "output"}, 11),
        (OUTCOME, "gen_ai_server_request_duration_seconds_sum", {"error_type": ""}, 1.1),
        (OUTCOME, "gen_ai_server_time_to_first_token_seconds_sum", {}, 0.1),
        (OUTCOME, "gen_ai_server_time_per_output_token_seconds_sum", {}, 0.1),
        (OUTCOME, "llm_edge_cost_usd_total", {"tenant": "acme", "model": "small"}, 2.5),
        (OUTCOME, "llm_edge_requests_total", {"status": "200", "outcome": "finished"}, 1),
        (OUTCOME, "llm_edge_attempts_total", {"provider": "openai", "result": "finished"}, 1),
        (OUTCOME, "llm_edge_usage_source_total", {"source": "provider"}, 1),
        (FAILED, "gen_ai_client_token_usage_count", {}, 0),
        (FAILED, "gen_ai_server_request_duration_seconds_count", {"error_type": "503"}, 1),
        (FAILED, "gen_ai_server_time_to_first_token_seconds_count", {}, 0),
        (FAILED, "llm_edge_attempts_total", {"provider": "openai", "result": "failed"}, 1),
        (FAILED, "llm_edge_attempts_total", {"provider": "openai", "result": "retried"}, 1),
        (FAILED, "llm_edge_attempts_total", {"provider": "local", "result": "retried"}, 1),
        (FAILED, "llm_edge_attempts_total", {"provider": "other", "result": "retried"}, 1),
        (FAILED, "llm_edge_usage_source_total", {}, 0),
        (FAILED, "llm_edge_cost_usd_total", {}, 0),
        (CUT, "llm_edge_usage_source_total", {"source": "partial"}, 1),
        (CUT, "gen_ai_server_request_duration_seconds_count", {"error_type": "cut"}, 1),
        (CUT, "gen_ai_server_time_to_first_token_seconds_count", {}, 1),
        (CUT, "gen_ai_server_time_per_output_token_seconds_count", {}, 0),
        (CUT, "llm_edge_cost_usd_total", {}, 0),
        (UNSENT, "llm_edge_attempts_total", {}, 0),
        (EMBEDDING, "gen_ai_client_token_usage_count", {"gen_ai_token_type": "input"}, 1),
        (EMBEDDING, "gen_ai_client_token_usage_count", {"gen_ai_token_type": "output"}, 0),
        (EMBEDDING, "gen_ai_server_time_to_first_token_seconds_count", {}, 0),
    ],
)
def test_settled(
    metrics: Metrics, outcome: Outcome, name: str, labels: dict[str, str], expected: float
) -> None:
    """A settled call adds to exactly the series it should."""
    metrics.settled(outcome)
    assert total(metrics, name, **labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("endpoint", "operation"),
    [
        ("chat", "chat"),
        ("completions", "text_completion"),
        ("embeddings", "embeddings"),
        ("responses", "chat"),
        ("/etc/passwd", "other"),
    ],
)
def test_operation_names(metrics: Metrics, endpoint: str, operation: str) -> None:
    """Endpoints go by the operation names of the semantic conventions."""
    metrics.settled(replace(OUTCOME, endpoint=endpoint))
    name = "gen_ai_server_request_duration_seconds_count"
    assert total(metrics, name, gen_ai_operation_name=operation) == 1


def test_every_result_of_the_cache_has_its_name(metrics: Metrics) -> None:
    """Though every limit there is has been hit before: these names are not among those."""
    meters = [*[name for name, *_ in SLOTS], "requests_per_second", "concurrent_requests"]
    for scope, meter in itertools.product(Scope, meters):
        metrics.limited(f"{scope.name.lower()}/{meter}")
    found = ["hit", "collapsed", "bypass", "untellable", *[name for name, _ in _FORWARDED.values()]]
    for result in found:
        metrics.looked_up(result)
        assert value(metrics, "llm_edge_cache_total", result=result) == 1
    for fate in ("stored", *Reason):
        metrics.kept(str(fate))
        assert value(metrics, "llm_edge_cache_fills_total", result=str(fate)) == 1
    assert total(metrics, "llm_edge_limited_total", limit="other") == 0


def test_limited(metrics: Metrics) -> None:
    """A refusal by a limit is counted by the limit's name."""
    metrics.limited("key/tokens_per_day")
    assert value(metrics, "llm_edge_limited_total", limit="key/tokens_per_day") == 1


def test_denied(metrics: Metrics) -> None:
    """A refusal is a request with its code beside it; strangers are `other`."""
    metrics.denied("chat", 429, "rate_limit_exceeded")
    metrics.denied("<script>", 99_999, "made up")
    requests = "llm_edge_requests_total"
    assert value(metrics, requests, endpoint="chat", status="429", outcome="denied") == 1
    assert value(metrics, requests, endpoint="other", status="other", outcome="denied") == 1
    assert value(metrics, "llm_edge_denied_total", endpoint="chat", code="rate_limit_exceeded") == 1
    assert value(metrics, "llm_edge_denied_total", endpoint="other", code="other") == 1


def test_timings_and_errors(metrics: Metrics) -> None:
    """Admissions, lag and store errors are counted where they belong."""
    metrics.admission("body", 0.0002)
    metrics.admission("body", 0.0002)
    metrics.loop_lag(0.25)
    metrics.store_error("ledger", "write")
    assert value(metrics, "llm_edge_admission_seconds_count", phase="body") == 2
    assert value(metrics, "llm_edge_admission_seconds_bucket", phase="body", le="0.00025") == 2
    assert value(metrics, "llm_edge_loop_lag_seconds_sum") == 0.25
    assert value(metrics, "llm_edge_store_errors_total", store="ledger", op="write") == 1


def test_labels_are_bounded(metrics: Metrics) -> None:
    """Ten thousand random names of everything make a bounded page and lose no count."""
    chance = random.Random(1)
    for number in range(10_000):
        name = chance.randbytes(8).hex()
        metrics.settled(
            replace(
                OUTCOME,
                tenant=name,
                model=name,
                served_model=name,
                provider=name,
                endpoint=name,
                status=number * 7,
            )
        )
        metrics.denied(name, number, name)
        metrics.admission(name, 0.001)
        metrics.store_error(name, name)
    families = {f.name: f for f in text_string_to_metric_families(metrics.expose()[0].decode())}

    def values(family: str, label: str) -> set[str]:
        return {s.labels[label] for s in families[family].samples}

    cost = "llm_edge_cost_usd"
    assert len(values(cost, "tenant")) == MAX_TENANTS + 1
    assert values(cost, "model") == values(cost, "provider") == {"other"}
    assert values("llm_edge_requests", "endpoint") == {"other"}
    assert len(values("llm_edge_requests", "status")) <= 501
    assert values("gen_ai_client_token_usage", "gen_ai_response_model") == {"other"}
    assert len(values("llm_edge_admission_seconds", "phase")) == MAX_NAMES + 1
    assert len(values("llm_edge_store_errors", "op")) == MAX_NAMES + 1
    assert total(metrics, "llm_edge_requests_total") == 20_000
    assert total(metrics, f"{cost}_total") == pytest.approx(25_000)
    assert total(metrics, "llm_edge_admission_seconds_count") == 10_000
    kept = len(metrics._answers_of) + len(metrics._admission_of) + len(metrics._requests_of)
    assert kept < 100


def test_cost_series_are_bounded(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tenants by models end at a bound too; what is beyond it is counted for `other`."""
    monkeypatch.setattr(module, "MAX_COST_SERIES", 10)
    for number in range(20):
        metrics.settled(replace(OUTCOME, tenant=f"t{number}"))
    assert total(metrics, "llm_edge_cost_usd_total", tenant="other") == 25
    assert total(metrics, "llm_edge_cost_usd_total") == 50


def test_instances_share_nothing(metrics: Metrics) -> None:
    """Two observers count apart."""
    other = Metrics(models=[], served_models=[], providers=[])
    metrics.settled(OUTCOME)
    assert total(other, "llm_edge_requests_total") == 0


def test_breaker_states_are_read_at_every_scrape() -> None:
    """One series a provider, the configuration's alone."""
    states = {"openai": 0, "local": 2}
    metrics = Metrics(models=(), served_models=(), providers=states)
    metrics.watch_breakers(lambda provider: states[provider])

    def shown() -> dict[str, float]:
        text = metrics.expose()[0].decode()
        return {
            sample.labels["provider"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "llm_edge_breaker_state"
        }

    assert shown() == {"openai": 0, "local": 2}
    states["openai"] = 1
    assert shown() == {"openai": 1, "local": 2}
