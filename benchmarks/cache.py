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
from collections.abc import Callable, Iterator, Mapping, Sequence
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
class Round:
    """What one round showed, all of it within seconds; what failed is missing.

    `us` is the processor's CPU per call, `envoy_us` Envoy's per chunk.
    """

    us: dict[str, float] = field(default_factory=dict)
    p50_ms: float | None = None
    streamed: dict[str, Streamed] = field(default_factory=dict)
    envoy_us: dict[str, float] = field(default_factory=dict)


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
    sample = _load(up, body, CONNECTIONS, seconds, unique=unique)
    time.sleep(SETTLE_SECONDS)
    return (cpu_seconds(up.processor) - before) * 1e6 / sample.requests


def hit_p50_ms(up: Product, body: Path, seconds: float) -> float:
    """Return the median latency of a hit at one connection, end to end. Raises `LoadError`."""
    return _load(up, body, 1, seconds, unique=False).p50_ms


def _load(
    up: Product, body: Path, connections: int, seconds: float, *, unique: bool
) -> load.Sample:
    sample = load.run(
        url_of(up),
        body,
        headers_of(up),
        connections=connections,
        seconds=seconds,
        unique=unique,
        statuses=True,
    )
    if sample.errors or not sample.requests:
        raise load.LoadError(f"{sample.errors} of {sample.requests} failed: {sample.failures}")
    return sample


def streamed(up: Product, how: str, found: Round) -> None:
    """Measure streams that are collected, or that are not. Raises `LoadError`."""
    url, headers = url_of(up), {**headers_of(up), **ASKED_WITH[how]}
    rung = Rung(4, url, headers=headers, stream_url=url, stream_model=STREAM_MODEL)
    before = cpu_seconds(up.envoy)
    seen = streams.run(paced(rung, STREAMS, STREAM_SECONDS, PACE_MS))
    if seen.completed != seen.streams:
        raise load.LoadError(f"{seen.streams - seen.completed} of {seen.streams} streams were cut")
    found.streamed[how] = seen
    found.envoy_us[how] = (cpu_seconds(up.envoy) - before) * 1e6 / seen.chunks


def one_round(up: Mapping[str, Product], turn: int, body: Path, seconds: float) -> Round:
    """Measure everything once, in an order that turns with the rounds.

    What refuses is quick, and no figure: a load that failed is told and left out.
    """
    found = Round()

    @contextlib.contextmanager
    def told(what: str) -> Iterator[None]:
        try:
            yield
        except load.LoadError as problem:
            print(f"{what}: {problem}; left out", file=sys.stderr, flush=True)

    names = list(up)
    for name in (names[at] for at in turned(range(len(names)), turn)):
        on = name.endswith("on")
        miss, hit = (f"{name}: miss", f"{name}: hit") if on else (name, "")
        with told(miss):
            found.us[miss] = cpu_us(up[name], body, seconds, unique=True)
        if on:
            with told(hit):
                found.us[hit] = cpu_us(up[name], body, seconds, unique=False)
    memory = up["memory, cache on"]
    with told("a hit at one connection"):
        found.p50_ms = hit_p50_ms(memory, body, seconds)
    hows = list(ASKED_WITH)
    for how in (hows[at] for at in turned(range(len(hows)), turn)):
        with told(f"streams {how}"):
            streamed(memory, how, found)
    return found


def more(
    rounds: Sequence[Round], figure: Callable[[Round], Mapping[str, float]], name: str, base: str
) -> Spread | None:
    """Return what one costs more than another of the same round; None where none has both."""
    both = [one for one in map(figure, rounds) if name in one and base in one]
    return spread([one[name] - one[base] for one in both])


def summarise(rounds: Sequence[Round]) -> dict[str, Any]:
    """Return the medians with their spread: microseconds of CPU per call, milliseconds."""

    def us(one: Round) -> Mapping[str, float]:
        return one.us

    def gaps(one: Round) -> Mapping[str, float]:
        return {how: seen.gap_p99 for how, seen in one.streamed.items()}

    def envoy_us(one: Round) -> Mapping[str, float]:
        return one.envoy_us

    def each(figure: Callable[[Round], Mapping[str, float]]) -> dict[str, Any]:
        names = dict.fromkeys(name for one in rounds for name in figure(one))
        values = {n: [figure(one)[n] for one in rounds if n in figure(one)] for n in sorted(names)}
        return {name: _told(spread(found)) for name, found in values.items()}

    streams = COLLECTED, NOT_COLLECTED
    return {
        "processor_us": each(us),
        "miss_more_us": {
            where: _told(more(rounds, us, f"{where}, cache on: miss", f"{where}, cache off"))
            for where in ("memory", "redis")
        },
        "hit_p50_ms": _told(spread([one.p50_ms for one in rounds if one.p50_ms is not None])),
        "gap_p99_ms": each(gaps),
        "collecting_adds_gap_p99_ms": _told(more(rounds, gaps, *streams)),
        "collecting_adds_envoy_us_per_chunk": _told(more(rounds, envoy_us, *streams)),
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
    """Measure, print and write; 0 whatever the figures are, 1 where one could not be had."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.cache", description=__doc__)
    options.add_argument("--rounds", type=int, default=MIN_ROUNDS)
    options.add_argument("--seconds", type=float, default=2.0, help="one load's length, whole")
    options.add_argument("--out", type=Path, default=HERE, help="where cache.json is written")
    chosen = options.parse_args(argv)
    if chosen.rounds < MIN_ROUNDS:
        options.error(f"--rounds: at least {MIN_ROUNDS}")
    BENCH.mkdir(exist_ok=True)
    run = Path(tempfile.mkdtemp(prefix="run-", dir=BENCH))
    began, rounds = time.monotonic(), list[Round]()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, run, ignore_errors=True)
        up = start(stack, run)
        prompt = load.prompt(MODEL, PROMPT_BYTES)
        body = run / "prompt.json"
        body.write_bytes(prompt)
        for name, one in up.items():
            if name.endswith("on"):
                make_hit(one, prompt)
            load.run(url_of(one), body, headers_of(one), connections=CONNECTIONS, seconds=1)
        for turn in range(chosen.rounds):
            rounds.append(one_round(up, turn, body, chosen.seconds))
            print(f"round {turn + 1} of {chosen.rounds}", flush=True)
    summary = summarise(rounds)
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
        "observations": [asdict(one) for one in rounds],
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "cache.json").write_text(json.dumps(document, indent=1) + "\n")
    return 1 if any(verdict.state == "NOT MEASURED" for verdict in judged) else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (load.LoadError, StartError) as problem:
        print(f"benchmarks.cache: {problem}", file=sys.stderr)
        sys.exit(1)
