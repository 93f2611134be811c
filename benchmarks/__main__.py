"""`python -m benchmarks`: start the ladder, measure it, print and write what was found."""

import argparse
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import envoy, load, measure, peers, plot, report, rungs, streaming, verdicts
from benchmarks.processes import StartError, machine

HERE = Path(__file__).resolve().parent
BENCH = HERE.parent / ".bench"
MIN_ROUNDS = 3  # a median of two is no median
TAIL_TURNS = 3  # of the tail of the gaps, which one pause of the host in a round decides
ALL = ",".join(map(str, rungs.NAMES))
FAILED = 1
BAD_USAGE = 2


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; `rungs` becomes a set of numbers."""
    options = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    options.add_argument("--quick", action="store_true", help="under two minutes without peers")
    options.add_argument("--rungs", default=ALL, help="which rungs (default: all)")
    options.add_argument("--rounds", type=int, help="interleaved rounds, 3 or more (default 5)")
    options.add_argument("--seconds", type=float, help="one measurement's length (default 5)")
    options.add_argument("--no-peers", action="store_true", help="without LiteLLM and Portkey")
    options.add_argument("--no-json", action="store_true", help="the streaming figures alone")
    options.add_argument("--no-streams", action="store_true", help="the JSON figures alone")
    options.add_argument("--keep", action="store_true", help="keep configurations and logs")
    options.add_argument("--out", type=Path, default=HERE, help="where the results are written")
    chosen = options.parse_args(argv)
    try:
        wanted = {int(number) for number in chosen.rungs.split(",")}
    except ValueError:
        options.error("--rungs: numbers with commas between, for example 1,2,4")
    if not wanted or wanted - set(rungs.NAMES):
        options.error(f"--rungs: legal are {', '.join(map(str, rungs.NAMES))}")
    chosen.rungs = wanted - rungs.PEERS if chosen.no_peers else wanted
    chosen.rounds = chosen.rounds or (MIN_ROUNDS if chosen.quick else 5)
    if chosen.rounds < MIN_ROUNDS:
        options.error(f"--rounds: at least {MIN_ROUNDS}")
    chosen.seconds = chosen.seconds or (1.0 if chosen.quick else 5.0)
    return chosen


def main(argv: Sequence[str]) -> int:
    """Run everything; return the exit code: 0 measured, 1 one of our own rungs did not start."""
    chosen = parse(argv)
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGHUP, _leave)
    try:
        load.find_wrk()
    except load.LoadError as problem:
        print(f"benchmarks: {problem}", file=sys.stderr)
        return FAILED
    BENCH.mkdir(exist_ok=True)
    began = time.monotonic()
    rounds, found = measure.Rounds(), streaming.Found()
    with contextlib.ExitStack() as stack:
        run = Path(tempfile.mkdtemp(prefix="run-", dir=BENCH))
        if chosen.keep:
            print(f"configurations and logs: .bench/{run.name}", flush=True)
        else:
            stack.callback(shutil.rmtree, run, ignore_errors=True)
        brief = stack.enter_context(contextlib.ExitStack())
        up, skipped = rungs.start(stack, chosen.rungs, BENCH, run, brief)
        if not chosen.no_json:
            json_load(up, chosen, run, rounds)
        brief.close()  # idle gateways wake up too: a tail of a millisecond would show them
        if not chosen.no_streams:
            stream_load(up, chosen, found)
    summary = report.summarise(rounds, found)
    judged = verdicts.verdicts(summary)
    about = about_run(chosen, time.monotonic() - began)
    print(f"\n{report.tables(summary, judged)}\n")
    for number, reason in skipped.items():
        print(f"rung {number} ({rungs.NAMES[number]}) was not measured: {reason.splitlines()[-1]}")
    write(chosen.out, about, summary, judged, report.observations(rounds, found))
    return FAILED if skipped.keys() - rungs.PEERS else 0


def json_load(
    up: dict[int, rungs.Rung], chosen: argparse.Namespace, run: Path, rounds: measure.Rounds
) -> None:
    """Measure throughput, latency, CPU, memory, prompt sizes and repetition."""
    measure.json_rounds(up, chosen.rounds, chosen.seconds, run, rounds)
    measure.idle_rounds(up, BENCH, run / "idle", rounds)
    short = 1.0  # enough for 200 requests of 5 ms; wrk counts in whole seconds
    if streaming.pair(up):
        turns = 1 if chosen.quick else MIN_ROUNDS
        measure.prompt_rounds(up, turns, short, run, rounds)
        measure.hit_rounds(up[4], MIN_ROUNDS, short, run, rounds)


def stream_load(
    up: dict[int, rungs.Rung], chosen: argparse.Namespace, found: streaming.Found
) -> None:
    """Measure the streaming figures on the Envoy rungs."""
    seconds = 2.0 if chosen.quick else 5.0
    last = streaming.FIRST_COUNT if chosen.quick else streaming.LAST_COUNT
    streaming.climb(up, seconds, last, found)
    streaming.compare(up, MIN_ROUNDS, 1 if chosen.quick else TAIL_TURNS, seconds, found)
    if 4 in up:
        streaming.hold(up[4], seconds, last, found)
        streaming.cpu_per_token(up, MIN_ROUNDS, streaming.ANSWERS, found)
        streaming.translated(MIN_ROUNDS, found)


def about_run(chosen: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Return what the numbers depend on; nothing that names the machine."""
    return machine() | {
        "seconds": round(seconds),
        "envoy_concurrency": envoy.CONCURRENCY,
        "rounds": chosen.rounds,
        "seconds_each": chosen.seconds,
        "connections": measure.CONNECTIONS,
        "litellm": peers.LITELLM,
        "portkey": peers.PORTKEY,
    }


def write(
    out: Path,
    about: dict[str, Any],
    summary: dict[str, Any],
    judged: Sequence[verdicts.Verdict],
    seen: dict[str, Any],
) -> None:
    """Write results.json and results.png."""
    out.mkdir(parents=True, exist_ok=True)
    document = {
        "about": about,
        "summary": summary,
        "verdicts": [asdict(verdict) for verdict in judged],
        "observations": seen,
    }
    (out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    title = f"{about['cores']} cores shared by load, gateways and mock; {about['rounds']} rounds"
    plot.draw(summary, title, out / "results.png")
    print(f"wrote results.json and results.png in {about['seconds']} s")


def _leave(signum: int, _frame: object) -> None:
    sys.exit(128 + signum)  # unwinds the stack that stops every process


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (load.LoadError, StartError) as problem:
        print(f"benchmarks: {problem}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(130)
