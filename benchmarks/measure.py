"""The rounds of the JSON load: every rung in turn, round after round, with CPU and memory.

Knows rungs and the load. Decides no verdict.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import idle, load, rungs
from benchmarks.load import Sample
from benchmarks.processes import cpu_seconds, rss_mib
from benchmarks.rungs import Rung

CONNECTIONS = 32
PROMPT_BYTES = 1024
KILOBYTE = 1024
SIZES = {"1 KB": 1, "4 KB": 4, "30 KB": 30, "350 KB": 350, "1 MB": 1024}  # in kilobytes
SHAPES = {"10 x 100 KB": (10, 100 * KILOBYTE), "100,000 x 1 B": (100_000, 1)}
IDLE = (3, 4, 7)  # the rungs with a processor of ours
PAIR = BARE, PRODUCT = (2, 4)  # what the product adds is counted against plain Envoy


@dataclass(frozen=True, slots=True)
class Loaded:
    """One rung in one round: throughput at many connections, latency at one, CPU, memory."""

    many: Sample
    one: Sample
    processor_us: float
    envoy_us: float
    processor_rss_mib: float
    envoy_rss_mib: float


@dataclass(slots=True)
class Rounds:
    """All rounds of all rungs: the n-th entries of two rungs were measured within seconds."""

    loaded: dict[int, list[Loaded]] = field(default_factory=dict)
    prompts: dict[str, dict[int, list[Sample]]] = field(default_factory=dict)
    hits: list[Sample] = field(default_factory=list)
    idle_mib: dict[int, float] = field(default_factory=dict)


def json_rounds(
    rungs: Mapping[int, Rung], rounds: int, seconds: float, run: Path, rounds_out: Rounds
) -> None:
    """Measure every rung once a round, in turning order so that none is always first."""
    body = run / "prompt.json"
    for rung in rungs.values():
        body.write_bytes(load.prompt(rung.model, PROMPT_BYTES))
        load.run(rung.url, body, rung.headers, connections=CONNECTIONS, seconds=1)  # warm up
    numbers = sorted(rungs)
    for turn in range(rounds):
        for number in turned(numbers, turn):
            rung = rungs[number]
            body.write_bytes(load.prompt(rung.model, PROMPT_BYTES))
            rounds_out.loaded.setdefault(number, []).append(loaded(rung, body, seconds))
        _say(f"round {turn + 1} of {rounds}: {_rates(rounds_out, turn)}")


def loaded(rung: Rung, body: Path, seconds: float) -> Loaded:
    """Load one rung for `seconds` at many connections and for as long at one."""
    before = cpu_seconds(rung.processor), cpu_seconds(rung.envoy)
    many = load.run(rung.url, body, rung.headers, connections=CONNECTIONS, seconds=seconds)
    after = cpu_seconds(rung.processor), cpu_seconds(rung.envoy)
    each = 1e6 / max(1, many.requests)
    one = load.run(rung.url, body, rung.headers, connections=1, seconds=seconds)
    return Loaded(
        many=many,
        one=one,
        processor_us=(after[0] - before[0]) * each,
        envoy_us=(after[1] - before[1]) * each,
        processor_rss_mib=rss_mib(rung.processor),
        envoy_rss_mib=rss_mib(rung.envoy),
    )


def prompt_rounds(
    rungs: Mapping[int, Rung], rounds: int, seconds: float, run: Path, rounds_out: Rounds
) -> None:
    """Measure latency at one connection for each prompt size and shape, rungs 2 and 4 in turn."""
    pair = [number for number in PAIR if number in rungs]
    for label, make in prompts().items():
        seen: dict[int, list[Sample]] = {number: [] for number in pair}
        for turn in range(rounds):
            for number in turned(pair, turn):
                rung = rungs[number]
                body = run / "prompt.json"
                body.write_bytes(make(rung.model))
                sample = load.run(rung.url, body, rung.headers, connections=1, seconds=seconds)
                seen[number].append(sample)
        rounds_out.prompts[label] = seen
    _say(f"{len(rounds_out.prompts)} prompt sizes and shapes on rungs {pair}")


def hit_rounds(rung: Rung, rounds: int, seconds: float, run: Path, rounds_out: Rounds) -> None:
    """Measure the same call over and over at one connection: a cache hit, where there is one."""
    body = run / "prompt.json"
    body.write_bytes(load.prompt(rung.model, PROMPT_BYTES))
    for _ in range(rounds + 1):
        sample = load.run(
            rung.url, body, rung.headers, connections=1, seconds=seconds, unique=False
        )
        rounds_out.hits.append(sample)
    del rounds_out.hits[0]  # the first filled the cache


def idle_rounds(numbers: Collection[int], bench: Path, run: Path, rounds_out: Rounds) -> None:
    """Measure what open calls add to processors that have just started: one after a load has
    memory to spare, which would hide it.
    """
    run.mkdir()
    with contextlib.ExitStack() as stack:
        fresh, _ = rungs.start(stack, [n for n in IDLE if n in numbers], bench, run)
        for number, rung in fresh.items():
            if rung.socket is not None and rung.processor is not None:
                grown = idle.grown_mib(rung.socket, rung.processor, rung.headers)
                rounds_out.idle_mib[number] = grown
                _say(f"rung {number}: {idle.CALLS:,} open calls add {grown:.1f} MiB")


def prompts() -> dict[str, Callable[[str], bytes]]:
    """Return by label how to make each prompt for a model."""
    made: dict[str, Callable[[str], bytes]] = {}
    for label, kilobytes in SIZES.items():
        made[label] = partial(load.prompt, size_bytes=kilobytes * KILOBYTE)
    for label, (count, size) in SHAPES.items():
        words = (load.WORDS * (size // len(load.WORDS) + 1))[:size]
        made[label] = partial(load.chat, messages=[words] * count)
    return made


def turned(numbers: Sequence[int], turn: int) -> list[int]:
    """Return the sequence begun `turn` places later."""
    at = turn % len(numbers) if numbers else 0
    return [*numbers[at:], *numbers[:at]]


def _rates(rounds: Rounds, turn: int) -> str:
    rates = ((n, found[turn].many.per_second) for n, found in sorted(rounds.loaded.items()))
    return ", ".join(f"rung {number} {rate:,.0f}/s" for number, rate in rates)


def _say(text: str) -> None:
    print(text, flush=True)
