"""The replay of the trace: what it must show, on the trace itself and on calls that can be counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cache_trace import (
    FRACTIONS,
    LRU,
    OURS,
    TINY_LFU,
    TRACE,
    Call,
    Workload,
    draw,
    identity,
    judge,
    lifetimes,
    measure,
    mooncake,
    summarise,
    table,
    through_gateway,
    through_moka,
)
from extproc.answers import OVERHEAD_BYTES


def calls(names: str, body_bytes: int = 0) -> list[Call]:
    return [Call(at * 1_000, identity(name), body_bytes) for at, name in enumerate(names)]


def test_what_is_needed_and_possible() -> None:
    """The last answer of each identity, and every call whose identity came before."""
    workload = Workload.of("x", [*calls("abab"), *calls("c", 100)])
    assert (workload.needed_bytes, workload.possible) == (3 * OVERHEAD_BYTES + 100, 2)


@pytest.mark.parametrize(
    ("names", "room", "hits"),
    [
        pytest.param("aabb", 4, 2, id="with room for all every repetition is one"),
        pytest.param("abcabc", 3, 3, id="in any order"),
        pytest.param("abcabc", 2, 0, id="without room a loop is none"),
    ],
)
def test_hits_are_counted(names: str, room: int, hits: int) -> None:
    """The gateway's store and moka's LRU agree where nothing is popular."""
    for replay in (through_gateway, through_moka("lru")):
        assert replay(calls(names), room * OVERHEAD_BYTES) == hits


def test_the_trace(shared_data: Path, tmp_path: Path) -> None:
    """With enough memory nearly all possible hits; at a tenth of it more than LRU."""
    whole, blocks = mooncake(shared_data / TRACE)
    assert (len(whole.calls), whole.possible) == (3_993, 213)
    assert (len(blocks.calls), blocks.possible) == (121_877, 77_953)
    (summary,) = summarise([whole], [measure(whole, 3)])
    figures = summary["hits_over_possible"]
    assert figures[OURS]["1.0"] >= 0.97
    assert figures[OURS]["0.1"] > figures[LRU]["0.1"] > figures[TINY_LFU]["0.1"]
    assert f"{figures[OURS]['0.1']:.3f}" in table(summary)
    assert f"LRU {figures[LRU]['0.1']:.3f}" in judge(summary)
    assert len(table(summary).splitlines()[1].split("%")) == len(FRACTIONS) + 1
    draw([summary, summary], tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000


def test_idle_time_costs_hits(shared_data: Path) -> None:
    """Most repetitions of whole calls come later than a minute."""
    whole, _ = mooncake(shared_data / TRACE)
    found = [*lifetimes(whole).values()]
    assert found == sorted(found, reverse=True)
    assert found[0] == 1.0
    assert found[2] < 0.5 < found[1]
