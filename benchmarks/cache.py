"""`python -m benchmarks.cache`: what the response cache costs and saves on a real Envoy.

The same product with the cache off and on, in memory and with Redis, all up at once and measured in
turn; figures are medians of the rounds. A miss is a prompt nobody has sent, its answer kept; a hit
is one prompt over and over. Streams are asked for with and without `no-store`: whether they are
collected is then all that differs. Writes `cache.json`.
"""

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib import error, request

from benchmarks import load, report, streams
from benchmarks.limits import in_redis, redis_server
from benchmarks.load import Spread, spread
from benchmarks.measure import CONNECTIONS, PROMPT_BYTES, turned
from benchmarks.processes import HOST, StartError, cpu_seconds, machine
from benchmarks.product import MODEL, STREAM_MODEL, Product, product, wheel
from benchmarks.rungs import BENCH_PATH, Rung, mocks
from benchmarks.streaming import PACE_MS, SETTLE_SECONDS, paced
from benchmarks.streams import Streamed
from benchmarks.verdicts import Verdict, at_most

HERE = Path(__file__).resolve().parent
BENCH = HERE.parent / ".bench"
HIT_P50_MS = 1.2
HIT_US = 250.0
MISS_US = 40.0  # more than with the cache off
CHUNK_GAP_P99_MS = 1.0  # what collecting adds
STREAMS = 200
STREAM_SECONDS = 2.0
MIN_ROUNDS = 3
KEEP_SECONDS = 10.0  # an answer is kept one flush of the access log after its end
POLL_SECONDS = 0.02
COLLECTED, NOT_COLLECTED = "collected", "not collected"
ASKED_WITH: Mapping[str, Mapping[str, str]] = {
    COLLECTED: {},
    NOT_COLLECTED: {"cache-control": "no-store"},
}


@dataclass(slots=True)
class Found:
    """Every observation by what was measured, the n-th of two within seconds of each other."""

    us: dict[str, list[float]] = field(default_factory=dict)
    p50_ms: list[float] = field(default_factory=list)
    streamed: dict[str, list[Streamed]] = field(default_factory=dict)
    envoy_us: dict[str, list[float]] = field(default_factory=dict)


def cache_on(config: dict[str, Any]) -> None:
    """Switch the cache on, for everything else as it is shipped."""
    config["cache"] = {"enabled": True}


def both(
    *changes: Callable[[dict[str, Any]], None],
) -> Callable[[dict[str, Any]], None]:
    """Return the changes as one."""

    def change(config: dict[str, Any]) -> None:
        for one in changes:
            one(config)

    return change


def url_of(up: Product) -> str:
    """Return where chat completions are asked for."""
    return f"http://{HOST}:{up.port}{BENCH_PATH}"


def headers_of(up: Product) -> dict[str, str]:
    """Return the caller's credentials."""
    return {"authorization": f"Bearer {up.key}"}


def status_of(up: Product, body: bytes, **headers: str) -> str:
    """Ask once; return `Cache-Status`, empty where there was no answer. Raises `StartError`."""
    sent = {"content-type": "application/json", **headers_of(up), **headers}
    opener = request.build_opener(request.ProxyHandler({}))
    try:
        with opener.open(request.Request(url_of(up), body, sent), timeout=KEEP_SECONDS) as answer:
            return str(answer.headers.get("cache-status", ""))
    except error.HTTPError as problem:
        if problem.code == 504:  # only-if-cached, and nothing is
            return ""
        raise StartError(f"a call answered {problem.code}") from problem


def make_hit(up: Product, prompt: bytes) -> None:
    """Ask for the prompt that is repeated and return when its answer is kept. Raises `StartError`.

    So neither a miss that keeps nothing nor a hit that is none is ever measured as one.
    """
    body = prompt.replace(load.MARK.encode(), b"0" * len(load.MARK))
    said = status_of(up, body)
    if "fwd=miss; stored" not in said:
        raise StartError(f"the first answer is not kept: {said!r}")
    until = time.monotonic() + KEEP_SECONDS
    while "; hit" not in status_of(up, body, **{"cache-control": "only-if-cached"}):
        if time.monotonic() > until:
            raise StartError(f"an answer is not kept after {KEEP_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)


def cpu_us(up: Product, body: Path, seconds: float, *, unique: bool) -> float:
    """Return the processor's CPU per call, its log entry included. Raises `LoadError`."""
    before = cpu_seconds(up.processor)
    sample = load.run(
        url_of(up),
        body,
        headers_of(up),
        connections=CONNECTIONS,
        seconds=seconds,
        unique=unique,
    )
    time.sleep(SETTLE_SECONDS)
    return (cpu_seconds(up.processor) - before) * 1e6 / _good(sample)


def hit_p50_ms(up: Product, body: Path, seconds: float) -> float:
    """Return the median latency of a hit at one connection, end to end. Raises `LoadError`."""
    sample = load.run(
        url_of(up), body, headers_of(up), connections=1, seconds=seconds, unique=False
    )
    _good(sample)
    return sample.p50_ms


def _good(sample: load.Sample) -> int:
    if sample.errors or not sample.requests:
        raise load.LoadError(f"{sample.errors} of {sample.requests} failed: {sample.failures}")
    return sample.requests


def streamed(up: Product, how: str, found: Found) -> None:
    """Measure streams that are collected, or that are not. Raises `LoadError`."""
    url, headers = url_of(up), {**headers_of(up), **ASKED_WITH[how]}
    rung = Rung(4, url, headers=headers, stream_url=url, stream_model=STREAM_MODEL)
    before = cpu_seconds(up.envoy)
    seen = streams.run(paced(rung, STREAMS, STREAM_SECONDS, PACE_MS))
    if seen.completed != seen.streams:
        raise load.LoadError(f"{seen.streams - seen.completed} of {seen.streams} streams were cut")
    found.streamed.setdefault(how, []).append(seen)
    spent = (cpu_seconds(up.envoy) - before) * 1e6 / seen.chunks
    found.envoy_us.setdefault(how, []).append(spent)


def one_round(up: Mapping[str, Product], turn: int, body: Path, seconds: float) -> Found:
    """Measure everything once, in an order that turns with the rounds. Raises `LoadError`."""
    found = Found()
    names = list(up)
    for name in (names[at] for at in turned(range(len(names)), turn)):
        one = up[name]
        spent = cpu_us(one, body, seconds, unique=True)
        found.us[f"{name}: miss" if name.endswith("on") else name] = [spent]
        if name.endswith("on"):
            found.us[f"{name}: hit"] = [cpu_us(one, body, seconds, unique=False)]
    memory = up["memory, cache on"]
    found.p50_ms = [hit_p50_ms(memory, body, seconds)]
    hows = list(ASKED_WITH)
    for how in (hows[at] for at in turned(range(len(hows)), turn)):
        streamed(memory, how, found)
    return found


def add(total: Found, one: Found) -> None:
    """Append one round's observations."""
    for mine, its in (
        (total.us, one.us),
        (total.streamed, one.streamed),
        (total.envoy_us, one.envoy_us),
    ):
        for name, values in its.items():
            mine.setdefault(name, []).extend(values)  # type: ignore[attr-defined]
    total.p50_ms += one.p50_ms


def more(found: Mapping[str, Sequence[float]], name: str, base: str) -> Spread | None:
    """Return what one costs more than another of the same round; None where one is missing."""
    pairs = zip(found.get(name, ()), found.get(base, ()), strict=True)
    return spread([value - other for value, other in pairs])


def summarise(found: Found) -> dict[str, Any]:
    """Return the medians with their spread: microseconds of CPU per call, milliseconds."""
    gaps = {how: [one.gap_p99 for one in seen] for how, seen in found.streamed.items()}
    return {
        "processor_us": {name: _told(spread(values)) for name, values in found.us.items()},
        "miss_more_us": {
            where: _told(more(found.us, f"{where}, cache on: miss", f"{where}, cache off"))
            for where in ("memory", "redis")
        },
        "hit_p50_ms": _told(spread(found.p50_ms)),
        "gap_p99_ms": {how: _told(spread(values)) for how, values in gaps.items()},
        "collecting_adds_gap_p99_ms": _told(more(gaps, COLLECTED, NOT_COLLECTED)),
        "collecting_adds_envoy_us_per_chunk": _told(more(found.envoy_us, COLLECTED, NOT_COLLECTED)),
    }


def _told(found: Spread | None) -> dict[str, float] | None:
    return None if found is None else asdict(found)


def verdicts(summary: Mapping[str, Any]) -> list[Verdict]:
    """Judge every target by the medians."""

    def judge(target: str, figure: Mapping[str, float] | None, limit: float, unit: str) -> Verdict:
        return at_most(target, None if figure is None else figure["median"], limit, unit)

    return [
        judge(
            f"p50 of a hit at one connection <= {HIT_P50_MS:g} ms",
            summary["hit_p50_ms"],
            HIT_P50_MS,
            "ms",
        ),
        judge(
            f"processor CPU of a hit <= {HIT_US:g} us",
            summary["processor_us"].get("memory, cache on: hit"),
            HIT_US,
            "us",
        ),
        judge(
            f"processor CPU of a miss <= {MISS_US:g} us more than with the cache off",
            summary["miss_more_us"]["memory"],
            MISS_US,
            "us",
        ),
        judge(
            f"collecting a stream adds <= {CHUNK_GAP_P99_MS:g} ms to its inter-token p99",
            summary["collecting_adds_gap_p99_ms"],
            CHUNK_GAP_P99_MS,
            "ms",
        ),
    ]


def text(summary: Mapping[str, Any]) -> str:
    """Return the figures as lines."""
    lines = []
    for name, figure in summary["processor_us"].items():
        lines.append(f"{name:24} {_range(figure):>24} us processor CPU per call")
    for where, figure in summary["miss_more_us"].items():
        lines.append(f"{where + ': a miss more':24} {_range(figure):>24} us")
    for how, figure in summary["gap_p99_ms"].items():
        lines.append(f"{'stream ' + how:24} {_range(figure, '.2f'):>24} ms inter-token p99")
    chunk = _range(summary["collecting_adds_envoy_us_per_chunk"], "+.1f")
    lines.append(f"{'collecting adds':24} {chunk:>24} us of Envoy's CPU per chunk")
    return "\n".join(lines)


def _range(figure: Mapping[str, float] | None, form: str = ".1f") -> str:
    if figure is None:
        return "-"
    median, low, high = (format(figure[name], form) for name in ("median", "low", "high"))
    return f"{median} ({low}..{high})"


def start(stack: contextlib.ExitStack, run: Path) -> dict[str, Product]:
    """Start a product of each kind on `stack`. Raises `StartError`."""
    upstream = stack.enter_context(mocks(run))
    redis: Callable[[dict[str, Any]], None] = in_redis(redis_server(stack))
    changes: dict[str, Callable[[dict[str, Any]], None] | None] = {
        "memory, cache off": None,
        "memory, cache on": cache_on,
        "redis, cache off": redis,
        "redis, cache on": both(redis, cache_on),
    }
    ports, tree = (upstream.json_port, upstream.sse_port), wheel(BENCH)
    return {
        name: stack.enter_context(
            product(run, *ports, f"product-{number}", change=change, tree=tree)
        )
        for number, (name, change) in enumerate(changes.items())
    }


def main(argv: Sequence[str]) -> int:
    """Measure, print and write; 0 whatever the figures are."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.cache", description=__doc__)
    options.add_argument("--rounds", type=int, default=MIN_ROUNDS)
    options.add_argument("--seconds", type=float, default=2.0, help="one load's length, whole")
    options.add_argument("--out", type=Path, default=HERE, help="where cache.json is written")
    chosen = options.parse_args(argv)
    if chosen.rounds < MIN_ROUNDS:
        options.error(f"--rounds: at least {MIN_ROUNDS}")
    BENCH.mkdir(exist_ok=True)
    run = Path(tempfile.mkdtemp(prefix="run-", dir=BENCH))
    began, found = time.monotonic(), Found()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, run, ignore_errors=True)
        up = start(stack, run)
        prompt = load.prompt(MODEL, PROMPT_BYTES)
        body = run / "prompt.json"
        body.write_bytes(prompt)
        for name, one in up.items():
            if name.endswith("on"):
                make_hit(one, prompt)
            cpu_us(one, body, 1.0, unique=True)  # warm up
        for turn in range(chosen.rounds):
            add(found, one_round(up, turn, body, chosen.seconds))
            print(f"round {turn + 1} of {chosen.rounds}", flush=True)
    summary = summarise(found)
    judged = verdicts(summary)
    print(f"\n{text(summary)}\n\n{report.judged(judged)}")
    about = machine() | {
        "seconds": round(time.monotonic() - began),
        "rounds": chosen.rounds,
        "seconds_each": chosen.seconds,
        "connections": CONNECTIONS,
        "streams": STREAMS,
    }
    document = {
        "about": about,
        "summary": summary,
        "verdicts": [asdict(verdict) for verdict in judged],
        "observations": asdict(found),
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "cache.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (load.LoadError, StartError) as problem:
        print(f"benchmarks.cache: {problem}", file=sys.stderr)
        sys.exit(1)
