"""Counters and histograms of ours say what prometheus-client's own would."""

import prometheus_client
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from extproc.telemetry.tallies import Counters, Histograms

BOUNDS = (0.01, 0.1, 1.0, 4.0)
NAMES = st.sampled_from(["a", 'quo"ted', "back\\slash", "new\nline", ""])


def without_created(page: bytes) -> list[bytes]:
    """Return the lines less those of creation times."""
    return [line for line in page.splitlines() if b"_created" not in line]


@given(st.lists(st.tuples(NAMES, st.floats(0, 8) | st.sampled_from(BOUNDS))))
def test_pages_are_the_same(seen: list[tuple[str, float]]) -> None:
    """The page is, line for line, the one that prometheus-client's instruments make."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counters = Counters("calls", "Calls.", ("who",), ours)
    histograms = Histograms("took_seconds", "Time.", ("who",), BOUNDS, ours)
    Histograms("lag_seconds", "Lag.", (), BOUNDS, ours)
    counter = prometheus_client.Counter("calls", "Calls.", ("who",), registry=theirs)
    histogram = prometheus_client.Histogram(
        "took_seconds", "Time.", ("who",), buckets=BOUNDS, registry=theirs
    )
    prometheus_client.Histogram("lag_seconds", "Lag.", buckets=BOUNDS, registry=theirs)
    for who, value in seen:
        counters.labels(who).inc(value)
        counter.labels(who).inc(value)
        histograms.labels(who).observe(value)
        histogram.labels(who).observe(value)
    assert without_created(generate_latest(ours)) == without_created(generate_latest(theirs))
