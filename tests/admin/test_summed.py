"""Pages of several processes as one: sums, the largest, and what stays of those that are gone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from extproc.admin.summed import EMPTY, LARGEST, growing, read, size, summed, written
from extproc.telemetry.metrics import Metrics
from tests.outcomes import outcome

AWKWARD = 'a "b" {c} \\ d\ne,f 1'


def metrics(*admissions: float) -> Metrics:
    made = Metrics(models={"m"}, served_models={"m"}, providers={"p"})
    for seconds in admissions:
        made.admission("headers", seconds)
    return made


def page_of(made: Metrics) -> str:
    return made.expose()[0].decode()


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Read a page as Prometheus' own library does."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_page_comes_back_as_it_was() -> None:
    """Labels with quotes, braces, spaces and line breaks included, in order."""
    made = metrics(0.1)
    made.settled(outcome(tenant=AWKWARD, cost_pico_usd=5))
    text = page_of(made)
    again = written(read(text)).decode()
    assert read(again) == read(text)
    assert samples(again) == samples(text)  # numbers may be written another way
    series = [line.rpartition(" ")[0] for line in text.splitlines()]
    assert [line.rpartition(" ")[0] for line in again.splitlines()] == series
    assert any(AWKWARD in dict(labels).values() for _, labels in samples(text))


def test_counters_and_histograms_add_up() -> None:
    """As if one process had counted all of it."""
    one, two, both = metrics(0.1, 0.002), metrics(0.1), metrics(0.1, 0.002, 0.1)
    for made, who in ((one, "a"), (two, "b"), (two, "a"), (both, "a"), (both, "b"), (both, "a")):
        made.settled(outcome(tenant=who, cost_pico_usd=5_000_000_000))
    together = samples(written(summed([read(page_of(one)), read(page_of(two))])).decode())
    alone = samples(page_of(both))
    ours = {key for key in alone if key[0].startswith(("llm_edge_", "gen_ai_"))}
    assert {key: together[key] for key in ours} == pytest.approx({key: alone[key] for key in ours})
    assert set(together) == set(alone)


def test_gauges_add_up_or_the_largest_counts() -> None:
    """Memory of all, but of the worst breaker."""
    one, two = metrics(), metrics()
    one.watch_breakers(lambda _: 2)
    two.watch_breakers(lambda _: 1)
    pages = [read(page_of(made)) for made in (one, two)]
    found = samples(written(summed(pages)).decode())
    assert found["llm_edge_breaker_state", (("provider", "p"),)] == 2
    memory = "process_resident_memory_bytes"
    each = [page[memory].samples[memory] for page in pages]
    assert found[memory, ()] == sum(each)
    assert found["process_start_time_seconds", ()] == max(
        page["process_start_time_seconds"].samples["process_start_time_seconds"] for page in pages
    )


def test_every_gauge_named_is_one_of_ours() -> None:
    """A name that nobody has any more would be taken for a rule."""
    found = read(page_of(metrics()))
    assert {name: found[name].kind for name in LARGEST} == dict.fromkeys(LARGEST, "gauge")


def test_of_a_process_that_is_gone_its_counts_stay() -> None:
    """Its gauges do not: nobody has that memory any more."""
    gone = growing(read(page_of(metrics(0.1))))
    assert "process_resident_memory_bytes" not in gone
    name = "llm_edge_admission_seconds"
    total = summed([gone, read(page_of(metrics(0.1, 0.1)))])
    assert total[name].samples[f'{name}_count{{phase="headers"}}'] == 3
    assert summed([gone, EMPTY])[name] == gone[name]


PAGES = st.lists(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 2**40), max_size=6), max_size=5
)


@given(PAGES)
def test_the_sum_of_any_pages(values: list[dict[str, int]]) -> None:
    """Nothing that was read is changed by it, and the order of pages does not matter."""
    texts = [
        "# HELP x_total X.\n# TYPE x_total counter\n"
        + "".join(f'x_total{{l="{label}"}} {value}.0\n' for label, value in one.items())
        for one in values
    ]
    pages = [read(text) for text in texts]
    found = summed(pages)
    assert found == summed(pages[::-1])
    assert [written(page).decode() for page in pages] == texts
    assert size(found) == len({label for one in values for label in one})
    for label in {label for one in values for label in one}:
        total = sum(one.get(label, 0) for one in values)
        assert found["x_total"].samples[f'x_total{{l="{label}"}}'] == total


@pytest.mark.parametrize("text", ["x", "x y", "# TYPE x", "x{} 1.0 2 z"])
def test_what_is_no_page_is_an_error(text: str) -> None:
    """And nothing else."""
    with pytest.raises(ValueError, match=r"\S"):
        read(text)
