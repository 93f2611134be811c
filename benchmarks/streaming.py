"""The streaming figures: how many streams the machine carries, and what the product adds to them.

Knows rungs and the streaming load. Decides no verdict.
"""

import statistics
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from benchmarks import streams, translation
from benchmarks.envoy import STREAM_HEADER
from benchmarks.measure import PAIR, PRODUCT, turned
from benchmarks.processes import cpu_seconds
from benchmarks.rungs import Rung
from benchmarks.streams import Spec, Streamed

PACE_MS = 50.0
FAST_PACE_MS = 20.0
FIRST_COUNT = 200
LAST_COUNT = 3200
STARTS_PER_SECOND = 250  # a steady state, not a herd: 1,000 streams that live four seconds
DEGRADED_MS = 5.0  # the tail of the gaps may exceed the pace by this before it is the machine's
STALL_MS = 250.0  # what a reader notices at 20 ms a token
LONG_CHUNKS = 2000
ANSWERS = 100  # enough that one answer's CPU is not noise
LONG_STARTS_PER_SECOND = 10  # 20,000 chunks a second: half of what the machine carries
SETTLE_SECONDS = 0.5  # the access log of the last answers reaches the processor


@dataclass(slots=True)
class Found:
    """All streaming observations."""

    ladder: dict[int, list[Streamed]] = field(default_factory=dict)
    count: int = FIRST_COUNT
    rounds: dict[int, list[Streamed]] = field(default_factory=dict)
    held: int | None = None
    fast: list[Streamed] = field(default_factory=list)
    answer_us: dict[int, float] = field(default_factory=dict)
    translated_us: dict[str, list[float]] = field(default_factory=dict)

    @property
    def token_us(self) -> float | None:
        """CPU microseconds of the processor per token of a long answer beyond the first."""
        if len(self.answer_us) != 2:
            return None
        return (self.answer_us[LONG_CHUNKS] - self.answer_us[1]) / (LONG_CHUNKS - 1)


def paced(rung: Rung, count: int, seconds: float, pace_ms: float) -> Spec:
    """Return the load of `count` streams, all of them open together for `seconds`."""
    spread_ms = count / STARTS_PER_SECOND * 1000
    chunks = max(2, round((spread_ms + seconds * 1000) / pace_ms))
    return spec(rung, count, chunks, pace_ms, spread_ms)


def spec(rung: Rung, count: int, chunks: int, pace_ms: float, spread_ms: float) -> Spec:
    """Return the load of `count` streams on this rung."""
    where = urlsplit(rung.stream_url or "")
    return Spec(
        port=where.port or 0,
        path=where.path,
        model=rung.stream_model,
        headers={**rung.headers, STREAM_HEADER: "1"},
        streams=count,
        chunks=chunks,
        pace_ms=pace_ms,
        stall_ms=STALL_MS,
        spread_ms=spread_ms,
    )


def healthy(seen: Streamed, pace_ms: float) -> bool:
    """Tell whether every stream came whole and its pace was kept."""
    return seen.completed == seen.streams and seen.gap_p99 - pace_ms <= DEGRADED_MS


def climb(rungs: Mapping[int, Rung], seconds: float, last: int, found: Found) -> None:
    """Double the streams until the direct or the plain Envoy rung loses its pace.

    `found.count` is then the highest count that the machine itself carries: above it there is no
    baseline to compare with. The product is asked at each of them, once, so that it shows where
    its own tail leaves Envoy's; it does not end the climb.
    """
    count = FIRST_COUNT
    while count <= last:
        good = True
        for number in (1, 2):
            if number in rungs and good:
                seen = streams.run(paced(rungs[number], count, seconds, PACE_MS))
                found.ladder.setdefault(number, []).append(seen)
                good = healthy(seen, PACE_MS)
                _say(f"{count} streams, rung {number}: gap p99 {seen.gap_p99:.2f} ms")
        if good and PRODUCT in rungs:
            seen = streams.run(paced(rungs[PRODUCT], count, seconds, PACE_MS))
            found.ladder.setdefault(PRODUCT, []).append(seen)
        if not good:
            if count == FIRST_COUNT:
                _say("the machine is too busy for streaming figures: do not trust those below")
            break
        found.count = count
        count *= 2


def compare(
    rungs: Mapping[int, Rung], rounds: int, turns: int, seconds: float, found: Found
) -> None:
    """Measure the Envoy rungs in turn at the count the machine carries, so many rounds.

    Rungs 2 and 4, whose tails are compared, `turns` times in each.
    """
    for turn in range(rounds):
        numbers = [n for n in (2, 3, 4) if n in rungs]
        for again in range(turns):
            for number in turned(numbers, turn + again):
                seen = streams.run(paced(rungs[number], found.count, seconds, PACE_MS))
                found.rounds.setdefault(number, []).append(seen)
            numbers = [n for n in numbers if n != 3]


def hold(rung: Rung, seconds: float, last: int, found: Found) -> None:
    """Double the streams at the fast pace until one of them stalls or ends early."""
    count = FIRST_COUNT // 2
    while count <= last:
        seen = streams.run(paced(rung, count, seconds, FAST_PACE_MS))
        found.fast.append(seen)
        if seen.stalls or seen.completed < count:
            break
        found.held = count
        count *= 2


def cpu_per_token(up: Mapping[int, Rung], rounds: int, answers: int, found: Found) -> None:
    """Measure the processor's CPU for answers of 1 and of 2,000 chunks in turn, idling subtracted.

    Both at one rate, and with the same 2,000-chunk streams on the machine: through the product, or
    beside it through plain Envoy. Otherwise a busier machine would be taken for costlier answers.
    """
    idle = _idle_share(up[4])
    seen: dict[int, list[float]] = {1: [], LONG_CHUNKS: []}
    for turn in range(rounds):
        for chunks in turned(list(seen), turn):
            beside = up.get(2) if chunks == 1 else None
            seen[chunks].append(_answer_cpu(up[4], beside, answers, chunks, idle) * 1e6)
    found.answer_us = {chunks: statistics.median(spent) for chunks, spent in seen.items()}


def _answer_cpu(rung: Rung, beside: Rung | None, answers: int, chunks: int, idle: float) -> float:
    spread_ms = answers / LONG_STARTS_PER_SECOND * 1000
    before, began = cpu_seconds(rung.processor), time.monotonic()
    with ThreadPoolExecutor(1) as others:
        if beside is not None:
            others.submit(streams.run, spec(beside, answers, LONG_CHUNKS, 0.0, spread_ms))
        streams.run(spec(rung, answers, chunks, 0.0, spread_ms))
    time.sleep(SETTLE_SECONDS)
    spent = cpu_seconds(rung.processor) - before
    return max(0.0, spent - idle * (time.monotonic() - began)) / answers


def _idle_share(rung: Rung) -> float:
    time.sleep(SETTLE_SECONDS)
    before, began = cpu_seconds(rung.processor), time.monotonic()
    time.sleep(2.0)
    return (cpu_seconds(rung.processor) - before) / (time.monotonic() - began)


def pair(rungs: Mapping[int, Rung]) -> bool:
    """Tell whether both rungs of the comparison are up."""
    return all(number in rungs for number in PAIR)


def _say(text: str) -> None:
    print(text, flush=True)


def translated(rounds: int, found: Found) -> None:
    """Measure what a chunk of a translated stream costs, each direction in turn."""
    for _ in range(rounds):
        for direction in translation.DIRECTIONS:
            found.translated_us.setdefault(direction, []).append(translation.chunk_us(direction))
