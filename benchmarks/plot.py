"""`results.png`: the summary as four small charts. Knows matplotlib and the summary's keys."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

OURS = "4"
INK = "#30343b"
LIT, DIM, SECOND = "#1f6feb", "#a9b4c2", "#f0a04b"
SHORT = {
    "1": "mock",
    "2": "Envoy",
    "3": "Envoy +\nno-op lane",
    "4": "LLM Edge\nAgent",
    "5": "LiteLLM",
    "6": "Portkey",
    "7": "Envoy +\nno-op grpcio",
    "8": "not\ncompiled",
}


def draw(summary: Mapping[str, Any], title: str, path: Path) -> None:
    """Write the chart."""
    plt.rcParams.update({"font.size": 9, "text.color": INK, "axes.labelcolor": INK})
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    rungs = summary["rungs"]
    _bars(axes[0][0], rungs, "per_second", "Requests per second, 32 connections (log)", "{:,.0f}")
    _cpu(axes[0][1], rungs)
    added = {number: rung for number, rung in rungs.items() if rung["added_p50_ms"]}
    _bars(
        axes[1][0],
        added,
        "added_p50_ms",
        "Added p50 over Envoy, ms, one connection (log)",
        "{:.2f}",
    )
    _streams(axes[1][1], summary["streaming"])
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _bars(axis: Axes, rungs: Mapping[str, Any], figure: str, title: str, form: str) -> None:
    axis.set_title(title, loc="left")
    if not rungs:
        _nothing(axis)
        return
    middles = [rung[figure]["median"] for rung in rungs.values()]
    below = [rung[figure]["median"] - rung[figure]["low"] for rung in rungs.values()]
    above = [rung[figure]["high"] - rung[figure]["median"] for rung in rungs.values()]
    colours = [LIT if number == OURS else DIM for number in rungs]
    bars = axis.bar(
        _names(rungs), middles, color=colours, yerr=[below, above], ecolor=INK, capsize=3
    )
    axis.bar_label(bars, [form.format(value) for value in middles], padding=3)
    if min(middles) > 0:
        axis.set_yscale("log")
        axis.set_ylim(min(middles) / 3, max(middles) * 3)


def _cpu(axis: Axes, rungs: Mapping[str, Any]) -> None:
    axis.set_title("CPU microseconds per request (log)", loc="left")
    shown = {n: r for n, r in rungs.items() if n != "1"}
    if not shown:
        _nothing(axis)
        return
    places = range(len(shown))
    for figure, label, colour, shift in (
        ("processor_us", "processor, or the gateway's own process", LIT, -0.2),
        ("envoy_us", "Envoy", SECOND, 0.2),
    ):
        values = [rung[figure]["median"] for rung in shown.values()]
        bars = axis.bar([p + shift for p in places], values, 0.4, label=label, color=colour)
        axis.bar_label(bars, [f"{value:,.0f}" if value else "" for value in values], padding=3)
    axis.set_xticks(list(places), _names(shown))
    axis.set_yscale("log")
    axis.set_ylim(10, 40_000)
    axis.legend(frameon=False, loc="upper left")


def _streams(axis: Axes, streaming: Mapping[str, Any] | None) -> None:
    if not streaming:
        axis.set_title("Streaming", loc="left")
        _nothing(axis)
        return
    axis.set_title(
        f"{streaming['streams']} streams at {streaming['pace_ms']:g} ms: gap p99, TTFT p50 (ms)",
        loc="left",
    )
    rungs = streaming["rungs"]
    places = range(len(rungs))
    for figure, label, colour, shift in (
        ("gap_p99", "gap between tokens, p99", LIT, -0.2),
        ("ttft_p50", "time to first token, p50", SECOND, 0.2),
    ):
        values = [rung[figure]["median"] for rung in rungs.values()]
        bars = axis.bar([p + shift for p in places], values, 0.4, label=label, color=colour)
        axis.bar_label(bars, [f"{value:.1f}" for value in values], padding=3)
    axis.set_xticks(list(places), _names(rungs))
    axis.margins(y=0.3)
    axis.legend(frameon=False, loc="upper right")


def _names(rungs: Mapping[str, Any]) -> Sequence[str]:
    return [SHORT[number] for number in rungs]


def _nothing(axis: Axes) -> None:
    axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes)
    axis.set_axis_off()
