"""Names, labels and buckets as the contract and the semantic conventions have them."""

import pytest
from prometheus_client import CollectorRegistry

from extproc.telemetry.instruments import DURATION_BUCKETS_S, TOKEN_BUCKETS, Instruments, page
from extproc.telemetry.tallies import Counters, Histograms

GEN_AI = {
    *("gen_ai_operation_name", "gen_ai_provider_name"),
    *("gen_ai_request_model", "gen_ai_response_model"),
}


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("gen_ai_client_token_usage", {*GEN_AI, "gen_ai_token_type"}),
        ("gen_ai_server_request_duration_seconds", {*GEN_AI, "error_type"}),
        ("gen_ai_server_time_to_first_token_seconds", GEN_AI),
        ("gen_ai_server_time_per_output_token_seconds", GEN_AI),
        ("llm_edge_requests_total", {"endpoint", "status", "outcome"}),
        ("llm_edge_denied_total", {"endpoint", "code"}),
        ("llm_edge_admission_seconds", {"phase"}),
        ("llm_edge_cost_usd_total", {"tenant", "model", "provider"}),
        ("llm_edge_attempts_total", {"provider", "result"}),
        ("llm_edge_usage_source_total", {"source"}),
        ("llm_edge_store_errors_total", {"store", "op"}),
        ("llm_edge_loop_lag_seconds", set()),
    ],
)
def test_every_name_of_the_contract(name: str, labels: set[str]) -> None:
    """Each instrument has its name and labels, and is on the page from the start."""
    registry = CollectorRegistry()
    made = vars(Instruments(registry)).values()
    told = [one for one in made if isinstance(one, Counters | Histograms)]
    (found,) = [one for one in told if name in (one.name, f"{one.name}_total")]
    assert set(found.label_names) == labels
    assert f"# HELP {name} ".encode() in page(registry)[0]


def test_buckets_of_the_semantic_conventions() -> None:
    """The boundaries are the ones written there."""
    assert TOKEN_BUCKETS[:4] == (1, 4, 16, 64)
    assert TOKEN_BUCKETS[-1] == 67_108_864
    assert DURATION_BUCKETS_S[0] == 0.01
    assert DURATION_BUCKETS_S[-1] == 81.92


def test_page() -> None:
    """The page is Prometheus text and has no gauges of creation times."""
    registry = CollectorRegistry()
    Instruments(registry).requests.labels("chat", "200", "finished").inc()
    body, content_type = page(registry)
    assert content_type.startswith("text/plain; version=")
    line = 'llm_edge_requests_total{endpoint="chat",outcome="finished",status="200"} 1.0\n'
    assert line.encode() in body
    assert b"_created" not in body
    assert b"process_resident_memory_bytes" in body
