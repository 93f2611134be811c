"""`python -m benchmarks.cache_trace`: how many calls the response cache answers, by memory.

Replays the Mooncake trace (`LLM_EDGE_TEST_DATA` or ../shared/data) through the store that the
gateway uses, and through moka's own LRU and TinyLFU for comparison, at the same bytes. A call's
identity is its whole list of block hashes; its answer weighs four bytes per output token and what
keeping an entry costs. Two more workloads show where that trace is special: its blocks one by one,
as a cache of prefixes would see them, and popular prompts among many that come once.

A figure is hits over possible hits: calls whose identity came before. TinyLFU hashes with a random
seed, so that each figure is the median of several runs.
"""

import argparse
import bisect
import itertools
import json
import os
import random
import statistics
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import matplotlib as mpl
from moka_py import Moka

from extproc.answers import OVERHEAD_BYTES, Entry
from extproc.stores.answers import MemoryAnswers

mpl.use("Agg")

import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
TRACE = Path("traces") / "mooncake_synthetic.jsonl"
BYTES_PER_TOKEN = 4
TOKENS_PER_BLOCK = 512  # of the trace's hashes
FRACTIONS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
JUDGED = 0.1
ENOUGH_BOUND = 0.97  # the specification's figures
OURS, LRU, TINY_LFU = "window + TinyLFU (the gateway's)", "LRU", "TinyLFU alone"
COLOURS = {OURS: "#1f6feb", LRU: "#f0a04b", TINY_LFU: "#a9b4c2"}
HEAD = "hits / possible, at so much of the bytes"
FOREVER_MS = 10**15
TTL_S, IDLE_S = 300, 60  # the packaged configuration


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a workload: when, by which identity, how many bytes its answer has."""

    time_ms: int
    key: bytes
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Calls in order, what keeping every answer would take, and how many hits there can be."""

    name: str
    calls: Sequence[Call]
    needed_bytes: int
    possible: int

    @classmethod
    def of(cls, name: str, calls: Sequence[Call]) -> "Workload":
        """Work out what the calls need; the last answer of an identity is the one kept."""
        sizes = {call.key: call.body_bytes + OVERHEAD_BYTES for call in calls}
        return cls(name, calls, sum(sizes.values()), len(calls) - len(sizes))


def identity(parts: Hashable) -> bytes:
    """Return a key as long as the product's."""
    return blake2b(repr(parts).encode(), digest_size=32).digest()


def mooncake(path: Path) -> Iterator[Workload]:
    """Read the trace as whole calls and as blocks."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    calls = [
        Call(
            row["timestamp"],
            identity((row["hash_ids"], row["input_length"])),
            row["output_length"] * BYTES_PER_TOKEN,
        )
        for row in rows
    ]
    yield Workload.of("Mooncake, whole calls", calls)
    blocks = [
        Call(row["timestamp"], identity(block), TOKENS_PER_BLOCK * BYTES_PER_TOKEN)
        for row in rows
        for block in row["hash_ids"]
    ]
    yield Workload.of("Mooncake, block by block", blocks)


def popular_among_once(count: int = 50_000, prompts: int = 10_000, once: float = 0.7) -> Workload:
    """Draw prompts by Zipf's law (exponent 0.9), and between them such as come only once."""
    draw = random.Random(6)
    sums = list(itertools.accumulate((n + 1) ** -0.9 for n in range(prompts)))
    calls = []
    for n in range(count):
        name = -n if draw.random() < once else bisect.bisect(sums, draw.random() * sums[-1])
        calls.append(Call(n, identity(name), 600))
    return Workload.of("Popular prompts, 70% come once", calls)


def entry(call: Call, ends_ms: int) -> Entry:
    """Return the answer to a call; all bodies are zeros, and one object per size."""
    names = ("chat", "tenant", "model", "provider", "model")
    return Entry(*names, call.time_ms, ends_ms, "json", (0, 0, 0), bytes(call.body_bytes))


def through_gateway(
    calls: Sequence[Call], max_bytes: int, ttl_ms: int = FOREVER_MS, idle_s: float | None = None
) -> int:
    """Return the hits of the gateway's own store, on the trace's clock."""
    now_ms = 0
    store = MemoryAnswers(max_bytes, clock=lambda: now_ms / 1000, idle_s=idle_s)
    hits = 0
    for call in calls:
        now_ms = call.time_ms
        if store.lookup(call.key, now_ms) is not None:
            hits += 1
        else:
            store.put(call.key, entry(call, now_ms + ttl_ms))
    return hits


def through_moka(policy: Any) -> Callable[[Sequence[Call], int], int]:
    """Return a replay through moka alone, with its housekeeping at once, so that bytes count."""

    def replay(calls: Sequence[Call], max_bytes: int) -> int:
        store: Moka[bytes, int] = Moka(max_bytes, policy=policy, weigher=lambda _, weight: weight)
        hits = 0
        for call in calls:
            if store.get(call.key) is not None:
                hits += 1
            else:
                store.set(call.key, call.body_bytes + OVERHEAD_BYTES)
                store.run_pending_tasks()
        return hits

    return replay


POLICIES: dict[str, Callable[[Sequence[Call], int], int]] = {
    OURS: through_gateway,
    LRU: through_moka("lru"),
    TINY_LFU: through_moka("tiny_lfu"),
}


def measure(workload: Workload, runs: int) -> dict[str, dict[str, list[float]]]:
    """Return hits over possible hits of every run, by policy and share of the needed bytes."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, replay in POLICIES.items():
        found[name] = {}
        for fraction in FRACTIONS:
            max_bytes = int(workload.needed_bytes * fraction)
            hits = [replay(workload.calls, max_bytes) for _ in range(runs)]
            found[name][str(fraction)] = [hit / workload.possible for hit in hits]
    return found


def lifetimes(workload: Workload) -> dict[str, float]:
    """Return hits over possible hits with enough memory, by how long answers are kept."""
    enough, ttl_ms = workload.needed_bytes * 2, TTL_S * 1000
    kept = {
        "for ever": through_gateway(workload.calls, enough),
        f"{TTL_S} s": through_gateway(workload.calls, enough, ttl_ms),
        f"{TTL_S} s, {IDLE_S} s idle": through_gateway(workload.calls, enough, ttl_ms, IDLE_S),
    }
    return {name: hits / workload.possible for name, hits in kept.items()}


def summarise(
    workloads: Sequence[Workload], found: Sequence[dict[str, dict[str, list[float]]]]
) -> list[dict[str, Any]]:
    """Return one document per workload, with the median of each figure's runs."""
    return [
        {
            "workload": workload.name,
            "calls": len(workload.calls),
            "possible_hits": workload.possible,
            "needed_bytes": workload.needed_bytes,
            "hits_over_possible": {
                policy: {share: statistics.median(runs) for share, runs in shares.items()}
                for policy, shares in measured.items()
            },
            "runs": measured,
        }
        for workload, measured in zip(workloads, found, strict=True)
    ]


def table(summary: dict[str, Any]) -> str:
    """Return one workload's figures as text."""
    policies = summary["hits_over_possible"]
    width = max(len(HEAD), *map(len, policies))
    shares = "".join(f"{fraction:>8.0%}" for fraction in FRACTIONS)
    numbers = [f"{summary[name]:,}" for name in ("calls", "possible_hits", "needed_bytes")]
    about = "{} calls, {} possible hits, {} bytes for all".format(*numbers)
    lines = [f"{summary['workload']}: {about}", f"{HEAD:<{width}}{shares}"]
    for policy, figures in policies.items():
        values = "".join(f"{figures[str(fraction)]:8.3f}" for fraction in FRACTIONS)
        lines.append(f"{policy:<{width}}{values}")
    return "\n".join(lines)


def judge(summary: dict[str, Any]) -> str:
    """Return what the specification asks of a workload and what was found."""
    figures = summary["hits_over_possible"]
    enough, judged = figures[OURS]["1.0"], str(JUDGED)
    ours, lru, alone = (figures[name][judged] for name in (OURS, LRU, TINY_LFU))
    more = round((ours - lru) * summary["possible_hits"])
    return (
        f"enough memory: {enough:.3f} (bound {ENOUGH_BOUND}); at {JUDGED:.0%}: {ours:.3f}, "
        f"LRU {lru:.3f} ({more:+d} hits), TinyLFU alone {alone:.3f}"
    )


def draw(summaries: Sequence[dict[str, Any]], path: Path) -> None:
    """Write one chart per workload."""
    plt.rcParams.update({"font.size": 9})
    figure, axes = plt.subplots(1, len(summaries), figsize=(13, 4.2), layout="constrained")
    figure.suptitle("Hits over possible hits, by memory", fontsize=11)
    for axis, summary in zip(axes, summaries, strict=True):
        axis.set_title(f"{summary['workload']} ({summary['calls']:,})", loc="left")
        for policy, figures in summary["hits_over_possible"].items():
            values = [figures[str(fraction)] for fraction in FRACTIONS]
            axis.plot(FRACTIONS, values, "o-", label=policy, color=COLOURS[policy])
        axis.axvline(JUDGED, color="#d0d7de", zorder=0)
        axis.set_xscale("log")
        axis.set_xticks(FRACTIONS, [f"{fraction:.0%}" for fraction in FRACTIONS])
        axis.minorticks_off()
        axis.set_xlabel("share of the bytes that all answers take")
        axis.set_ylim(0, 1.02)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: Sequence[str]) -> int:
    """Replay, print and write; 0 whatever the figures are, and where there is no trace."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.cache_trace", description=__doc__)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--out", type=Path, default=HERE, help="where the results are written")
    chosen = options.parse_args(argv)
    beside = HERE.parents[1] / "shared" / "data"
    path = Path(os.environ.get("LLM_EDGE_TEST_DATA", beside)) / TRACE
    if not path.is_file():
        print("no trace, not replayed: set LLM_EDGE_TEST_DATA to a directory that has it")
        return 0
    workloads = [*mooncake(path), popular_among_once()]
    summaries = summarise(workloads, [measure(one, chosen.runs) for one in workloads])
    for summary in summaries:
        print(f"{table(summary)}\n{judge(summary)}\n")
    kept = lifetimes(workloads[0])
    shares = ", ".join(f"{name} {share:.3f}" for name, share in kept.items())
    print(f"{workloads[0].name}, enough memory, answers kept {shares}")
    document = {"workloads": summaries, "lifetimes": kept}
    (chosen.out / "cache_trace.json").write_text(json.dumps(document, indent=1) + "\n")
    draw(summaries, chosen.out / "cache_trace.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
