"""The targets, and whether a summary meets them. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Summary = Mapping[str, Any]

LITELLM_TIMES = 15.0
PORTKEY_TIMES = 3.0
PROCESSOR_US = 300.0
ADDED_P50_MS = 1.5
ADDED_GAP_P99_MS = 1.0
STREAMS = 200
ANSWER_SHARE = 0.10  # how much more an answer of 2,000 chunks may cost than one of one
RSS_MIB = 120.0
LANE_CPU_SHARE = 0.40
LANE_TIMES = 1.25
LANE_ADDED_P50_MS = 0.65
LANE_PROCESSOR_US = 180.0  # of the whole product
IDLE_MB = 40.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target: PASS, FAIL, or NOT MEASURED where a rung it needs was not up."""

    target: str
    state: str
    measured: str


def verdicts(summary: Summary) -> list[Verdict]:
    """Judge every target by the medians in `summary` (as `report.summarise` returns it)."""
    return [
        _at_least(summary, "5", LITELLM_TIMES, "LiteLLM"),
        _at_least(summary, "6", PORTKEY_TIMES, "Portkey"),
        at_most(
            f"processor CPU <= {PROCESSOR_US:g} us per request",
            _rung(summary, "4", "processor_us"),
            PROCESSOR_US,
            "us",
        ),
        at_most(
            f"added p50 at one connection <= {ADDED_P50_MS:g} ms",
            _rung(summary, "4", "added_p50_ms"),
            ADDED_P50_MS,
            "ms",
        ),
        _gap(summary),
        at_most(
            f"processor RSS < {RSS_MIB:g} MiB",
            _rung(summary, "4", "processor_rss_mib"),
            RSS_MIB,
            "MiB",
            lambda value, limit: value < limit,
        ),
        *_lane(summary),
        _answers(summary),
    ]


def _lane(summary: Summary) -> list[Verdict]:
    found = summary["transports"]
    share, times = found["cpu_share"], found["throughput_times"]
    # In MB, as the target is written; rung 3 is the transport alone, rung 4 with the product on it.
    idle = [found["idle_mib"][n] * 1.048576 for n in ("3", "4") if n in found["idle_mib"]]
    target = f"no-op on the lane carries >= {LANE_TIMES:g} x grpcio"
    carried = Verdict(target, "NOT MEASURED", "")
    if times is not None:
        value = times["median"]
        carried = Verdict(target, _state(value >= LANE_TIMES), f"{value:.2f} x")
    return [
        at_most(
            f"no-op CPU on the lane <= {LANE_CPU_SHARE:.0%} of grpcio's",
            None if share is None else share["median"] * 100,
            LANE_CPU_SHARE * 100,
            "%",
        ),
        carried,
        at_most(
            f"no-op on the lane adds p50 <= {LANE_ADDED_P50_MS:g} ms",
            _rung(summary, "3", "added_p50_ms"),
            LANE_ADDED_P50_MS,
            "ms",
        ),
        at_most(
            f"processor CPU on the lane <= {LANE_PROCESSOR_US:g} us per request",
            _rung(summary, "4", "processor_us"),
            LANE_PROCESSOR_US,
            "us",
        ),
        at_most(
            f"{found['idle_calls']:,} open idle calls add <= {IDLE_MB:g} MB",
            max(idle, default=None),
            IDLE_MB,
            "MB",
        ),
    ]


def _rung(summary: Summary, number: str, figure: str) -> float | None:
    spread = summary["rungs"].get(number, {}).get(figure)
    return None if spread is None else float(spread["median"])


def _state(good: bool) -> str:
    return "PASS" if good else "FAIL"


def _at_least(summary: Summary, other: str, times: float, name: str) -> Verdict:
    target = f"rung 4 carries >= {times:g} x {name}"
    ours = _rung(summary, "4", "per_second")
    theirs = _rung(summary, other, "per_second")
    if ours is None or not theirs:
        return Verdict(target, "NOT MEASURED", "")
    return Verdict(target, _state(ours / theirs >= times), f"{ours / theirs:.1f} x")


def at_most(
    target: str,
    value: float | None,
    limit: float,
    unit: str,
    fits: Callable[[float, float], bool] = lambda value, limit: value <= limit,
) -> Verdict:
    """Judge a figure by its bound; None was not measured."""
    if value is None:
        return Verdict(target, "NOT MEASURED", "")
    return Verdict(target, _state(fits(value, limit)), f"{value:.2f} {unit}")


def _answers(summary: Summary) -> Verdict:
    target = f"processor CPU of a long answer within {ANSWER_SHARE:.0%} of a short one's"
    cpu = (summary.get("streaming") or {}).get("answer_us") or {}
    if len(cpu) != 2:
        return Verdict(target, "NOT MEASURED", "")
    short, long = (cpu[chunks] for chunks in sorted(cpu, key=int))
    share = long / short - 1
    return Verdict(target, _state(share <= ANSWER_SHARE), f"{short:.0f} us and {long:.0f} us")


def _gap(summary: Summary) -> Verdict:
    target = f"inter-token p99 within {ADDED_GAP_P99_MS:g} ms of rung 2 at >= {STREAMS} streams"
    streaming = summary.get("streaming") or {}
    added = streaming.get("added_gap_p99_ms")
    if added is None:
        return Verdict(target, "NOT MEASURED", "")
    count, value = streaming["streams"], added["median"]
    good = value <= ADDED_GAP_P99_MS and count >= STREAMS and streaming["complete"]
    return Verdict(target, _state(good), f"{value:+.2f} ms at {count} streams")
