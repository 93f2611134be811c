"""From observations to the summary that is written, and from the summary to the printed tables.

Pure: no process, file or clock. `results.json` is the summary and the observations.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.idle import CALLS
from benchmarks.load import Sample, spread
from benchmarks.measure import BARE, PRODUCT, Loaded, Rounds
from benchmarks.rungs import NAMES, NO_OPS
from benchmarks.streaming import FAST_PACE_MS, LONG_CHUNKS, PACE_MS, STALL_MS, Found
from benchmarks.streams import Streamed
from benchmarks.verdicts import Verdict

LANE, GRPCIO = NO_OPS
Figure = Mapping[str, float] | None
ABSENT = "-"


def summarise(rounds: Rounds, found: Found) -> dict[str, Any]:
    """Return medians with lowest and highest; keys are strings, as in JSON."""
    bare = rounds.loaded.get(BARE, [])
    return {
        "rungs": {
            str(number): _rung(number, loaded, bare)
            for number, loaded in sorted(rounds.loaded.items())
        },
        "prompts": {label: _prompt(seen) for label, seen in rounds.prompts.items()},
        "transports": _transports(rounds),
        "repeated": _spread(sample.p50_ms for sample in rounds.hits),
        "streaming": _streaming(found) if found.rounds else None,
    }


def observations(rounds: Rounds, found: Found) -> dict[str, Any]:
    """Return everything that was seen, for whoever wants other figures than ours."""
    return {
        "loaded": {str(n): [asdict(one) for one in seen] for n, seen in rounds.loaded.items()},
        "prompts": {
            label: {str(n): [asdict(one) for one in samples] for n, samples in seen.items()}
            for label, seen in rounds.prompts.items()
        },
        "streaming": asdict(found),
    }


def _spread(values: Iterable[float]) -> dict[str, float] | None:
    found = spread(list(values))
    return None if found is None else asdict(found)


def _rung(number: int, loaded: Sequence[Loaded], bare: Sequence[Loaded]) -> dict[str, Any]:
    pairs = list(zip(loaded, bare, strict=False)) if number > BARE else []
    return {
        "name": NAMES[number],
        "per_second": _spread(one.many.per_second for one in loaded),
        "processor_us": _spread(one.processor_us for one in loaded),
        "envoy_us": _spread(one.envoy_us for one in loaded),
        "p50_ms": _spread(one.one.p50_ms for one in loaded),
        "p99_ms": _spread(one.one.p99_ms for one in loaded),
        "added_p50_ms": _spread(one.one.p50_ms - base.one.p50_ms for one, base in pairs),
        "added_p99_ms": _spread(one.one.p99_ms - base.one.p99_ms for one, base in pairs),
        "busy_p99_ms": _spread(one.many.p99_ms for one in loaded),
        "processor_rss_mib": _spread(one.processor_rss_mib for one in loaded),
        "envoy_rss_mib": _spread(one.envoy_rss_mib for one in loaded),
        "errors": sum(one.many.errors + one.one.errors for one in loaded),
    }


def _transports(rounds: Rounds) -> dict[str, Any]:
    """Return what the lane costs as shares of grpcio, round by round, and what open calls hold."""
    ours, other = rounds.loaded.get(LANE, []), rounds.loaded.get(GRPCIO, [])
    pairs = list(zip(ours, other, strict=False))
    return {
        "cpu_share": _spread(lane.processor_us / them.processor_us for lane, them in pairs),
        "throughput_times": _spread(
            lane.many.per_second / them.many.per_second for lane, them in pairs
        ),
        "idle_calls": CALLS,
        "idle_mib": {str(number): grown for number, grown in rounds.idle_mib.items()},
    }


def _prompt(seen: Mapping[int, Sequence[Sample]]) -> dict[str, Any]:
    bare, product = seen.get(BARE, ()), seen.get(PRODUCT, ())
    pairs = list(zip(product, bare, strict=False))
    return {
        "bare_p50_ms": _spread(sample.p50_ms for sample in bare),
        "p50_ms": _spread(sample.p50_ms for sample in product),
        "added_p50_ms": _spread(ours.p50_ms - base.p50_ms for ours, base in pairs),
        "errors": sum(sample.errors for samples in seen.values() for sample in samples),
    }


def _streaming(found: Found) -> dict[str, Any]:
    bare, product = found.rounds.get(BARE, []), found.rounds.get(PRODUCT, [])

    def added(read: Callable[[Streamed], float]) -> dict[str, float] | None:
        pairs = zip(product, bare, strict=False)
        return _spread(read(ours) - read(base) for ours, base in pairs)

    figures = ("ttft_p50", "ttft_p99", "gap_p50", "gap_p99", "delay_p50", "delay_p99")
    return {
        "pace_ms": PACE_MS,
        "streams": found.count,
        "climb": {
            str(number): {str(one.streams): one.gap_p99 for one in seen}
            for number, seen in sorted(found.ladder.items())
        },
        "complete": all(seen.completed == seen.streams for seen in product),
        "rungs": {
            str(number): {
                figure: _spread(getattr(one, figure) for one in seen) for figure in figures
            }
            | {"lost": sum(one.streams - one.completed for one in seen)}
            for number, seen in sorted(found.rounds.items())
        },
        "added_ttft_p50_ms": added(lambda seen: seen.ttft_p50),
        "added_ttft_p99_ms": added(lambda seen: seen.ttft_p99),
        "added_gap_p50_ms": added(lambda seen: seen.gap_p50),
        "added_gap_p99_ms": added(lambda seen: seen.gap_p99),
        "held_at_fast_pace": found.held,
        "answer_us": {str(chunks): cpu for chunks, cpu in found.answer_us.items()},
        "token_us": found.token_us,
        "translated_us": {name: _spread(seen) for name, seen in found.translated_us.items()},
    }


def tables(summary: Mapping[str, Any], verdicts: Sequence[Verdict]) -> str:
    """Return the whole report as text."""
    parts = [_ladder(summary["rungs"])] if summary["rungs"] else []
    if summary["transports"]["idle_mib"]:
        parts.append(_open_calls(summary["transports"]))
    if summary["prompts"]:
        parts.append(_prompts(summary["prompts"], summary["repeated"]))
    if summary["streaming"]:
        parts.append(_streams(summary["streaming"]))
    return "\n\n".join([*parts, judged(verdicts)])


def judged(verdicts: Sequence[Verdict]) -> str:
    """Return a line a verdict."""
    width = max(len(one.target) for one in verdicts)
    return "\n".join(
        [f"{one.state:<12}  {one.target:<{width}}  {one.measured}" for one in verdicts]
    )


def _ladder(rungs: Mapping[str, Any]) -> str:
    head: tuple[str, ...] = (
        "rung",
        "req/s at 32 conn.",
        "x rung 4",
        "CPU us proc.",
        "CPU us Envoy",
        "p50 ms",
    )
    head += ("p99 ms", "added p50", "added p99", "RSS MiB proc./Envoy", "errors")
    ours = rungs.get(str(PRODUCT), {}).get("per_second")
    rows = []
    for number, rung in rungs.items():
        ratio = f"{rung['per_second']['median'] / ours['median']:.3f}" if ours else ABSENT
        memory = f"{_middle(rung['processor_rss_mib'])} / {_middle(rung['envoy_rss_mib'])}"
        rows.append(
            (
                f"{number} {rung['name']}",
                _range(rung["per_second"], ",.0f"),
                ratio,
                _middle(rung["processor_us"]),
                _middle(rung["envoy_us"]),
                _middle(rung["p50_ms"], ".2f"),
                _middle(rung["p99_ms"], ".2f"),
                _range(rung["added_p50_ms"], ".2f"),
                _range(rung["added_p99_ms"], ".2f"),
                memory,
                str(rung["errors"]),
            )
        )
    return _table(
        "JSON: median (lowest-highest) of the rounds; latency at one connection", head, rows
    )


def _open_calls(transports: Mapping[str, Any]) -> str:
    grown = ", ".join(
        f"{NAMES[int(number)]} {mib:.1f}" for number, mib in transports["idle_mib"].items()
    )
    return f"{transports['idle_calls']:,} open idle calls add, MiB: {grown}"


def _prompts(prompts: Mapping[str, Any], repeated: Figure) -> str:
    head = ("prompt", "rung 2 p50 ms", "rung 4 p50 ms", "added p50 ms", "errors")
    rows = [
        (
            label,
            _middle(one["bare_p50_ms"], ".2f"),
            _middle(one["p50_ms"], ".2f"),
            _range(one["added_p50_ms"], ".2f"),
            str(one["errors"]),
        )
        for label, one in prompts.items()
    ]
    same = ("1 KB, repeated", ABSENT, _middle(repeated, ".2f"), ABSENT, ABSENT)
    return _table("Prompt sizes and shapes, one connection", head, [*rows, same])


def _streams(streaming: Mapping[str, Any]) -> str:
    head: tuple[str, ...] = (
        "rung",
        "TTFT p50 ms",
        "TTFT p99",
        "gap p50",
        "gap p99",
        "delivery p50",
    )
    head += ("delivery p99", "lost")
    figures = ("ttft_p50", "ttft_p99", "gap_p50", "gap_p99", "delay_p50", "delay_p99")
    rows = [
        (
            f"{number} {NAMES[int(number)]}",
            *(_range(rung[figure], ".2f") for figure in figures),
            str(rung["lost"]),
        )
        for number, rung in streaming["rungs"].items()
    ]
    title = f"SSE: {streaming['streams']} streams at {streaming['pace_ms']:g} ms"
    lines = [_table(title, head, rows), *_climb(streaming["climb"])]
    if streaming["added_gap_p99_ms"]:
        names = ("ttft_p50", "ttft_p99", "gap_p50", "gap_p99")
        parts = [f"{n} {_range(streaming[f'added_{n}_ms'], '+.2f')}" for n in names]
        lines.append(f"added by rung 4 over rung 2, ms: {', '.join(parts)}")
    if streaming["held_at_fast_pace"]:
        lines.append(
            f"streams held at {FAST_PACE_MS:g} ms without a gap over {STALL_MS:g} ms: "
            f"{streaming['held_at_fast_pace']}"
        )
    if streaming["token_us"] is not None:
        cpu = streaming["answer_us"]
        lines.append(
            f"processor CPU: {cpu['1']:.0f} us for an answer of 1 chunk, "
            f"{cpu[str(LONG_CHUNKS)]:.0f} us for {LONG_CHUNKS:,}: "
            f"{streaming['token_us']:.3f} us per token"
        )
    if streaming["translated_us"]:
        costs = (f"{n} {_range(one, '.1f')}" for n, one in streaming["translated_us"].items())
        lines.append(f"a translated stream's chunk in the processor, CPU us: {', '.join(costs)}")
    return "\n".join(lines)


def _climb(climb: Mapping[str, Mapping[str, float]]) -> list[str]:
    bare, product = climb.get(str(BARE), {}), climb.get(str(PRODUCT), {})
    both = [f"{n} {bare[n]:.2f} and {product[n]:.2f}" for n in product if n in bare]
    return [f"gap p99 of rungs 2 and 4 by streams, once each: {', '.join(both)}"] if both else []


def _middle(figure: Figure, form: str = ".0f") -> str:
    return ABSENT if figure is None else format(figure["median"], form)


def _range(figure: Figure, form: str) -> str:
    if figure is None:
        return ABSENT
    low, high = format(figure["low"], form), format(figure["high"], form)
    return f"{format(figure['median'], form)} ({low}..{high})"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "  ".join([cells[0].ljust(widths[0]), *numbers])

    return "\n".join([title, line(head), line(["-" * width for width in widths]), *map(line, rows)])
