"""`python -m benchmarks.cache_stores`: what the response cache's stores cost in processor CPU.

Everything that a lookup, a put, a flight and a poll for leases take, in memory and at a Redis on a
Unix socket, on the gateway's own kind of loop: the least of several rounds, because whatever else
runs on the machine only adds.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import uvloop

from benchmarks.limits import redis_server
from extproc.answers import End, Entry, Role
from extproc.ports import SilentObserver
from extproc.stores.answers import MemoryAnswers
from extproc.stores.flights import Flights
from extproc.stores.redis_flights import LEASE, RedisFlights
from extproc.stores.tiered_answers import TieredAnswers

MAX_BYTES: Final = 64 * 2**20
SENTENCE: Final = b'data: {"choices": [{"index": 0, "delta": {"content": "word"}}]}\n\n'
BODIES: Final = {"1 KB": SENTENCE * 16, "64 KB": SENTENCE * 1_024}
LONG_S: Final = 3_600.0
POLLED: Final = (1, 100, 1_000)
Work = Callable[[int], Awaitable[None]]


def now_ms() -> int:
    """Return the time as the stores take it."""
    return round(time.time() * 1000)


def entry(body: bytes) -> Entry:
    """Return an answer stored now."""
    names = ("chat", "tenant", "model", "provider", "model-2024")
    at_ms = now_ms()
    return Entry(*names, at_ms, at_ms + 300_000, "sse", (10, 5, 0), body)


async def least(work: Work, count: int, rounds: int) -> tuple[float, float]:
    """Return the CPU and the wall time of one of `count`, in microseconds."""
    cpu = wall = float("inf")
    for _ in range(rounds):
        began, began_cpu = time.perf_counter(), time.process_time()
        await work(count)
        cpu = min(cpu, (time.process_time() - began_cpu) / count)
        wall = min(wall, (time.perf_counter() - began) / count)
    return cpu * 1e6, wall * 1e6


async def in_memory(rounds: int) -> None:
    """Measure what a process without Redis pays."""
    store, flights = MemoryAnswers(MAX_BYTES, clock=time.time), Flights()
    known, made = os.urandom(32), entry(BODIES["1 KB"])
    store.put(known, made)

    async def hit(count: int) -> None:
        at_ms = now_ms()
        for _ in range(count):
            await store.get(known, at_ms)

    async def miss(count: int) -> None:
        at_ms = now_ms()
        for key in [os.urandom(32) for _ in range(count)]:
            await store.get(key, at_ms)

    async def put(count: int) -> None:
        for key in [os.urandom(32) for _ in range(count)]:
            store.put(key, made)

    async def fly(count: int) -> None:
        for _ in range(count):
            await flights.join(known, "id", lease_s=LONG_S, patience_s=LONG_S)
            flights.finish(known, "id", End.FAILED)

    for name, work in (
        ("hit", hit),
        ("miss (with making a key)", miss),
        ("put (with making a key)", put),
        ("lead and finish", fly),
    ):
        cpu, _ = await least(work, 10_000, rounds)
        print(f"memory   {name:34} {cpu:8.2f} us CPU")


async def in_redis(url: str, rounds: int) -> None:
    """Measure what a process pays for a shared store, one call after the other."""
    near = MemoryAnswers(MAX_BYTES, clock=time.time)
    tiered = TieredAnswers.open(
        near,
        url,
        timeout_s=1.0,
        clock=time.time,
        observer=SilentObserver(),
        new_id=lambda: os.urandom(16),
    )
    await tiered.start()
    far = tiered.far
    flights = RedisFlights(far.link, far.writer, tiered, clock=time.time, draw=lambda: 0.5)
    for size, body in BODIES.items():
        key, made = os.urandom(32), entry(body)

        async def put(count: int, made: Entry = made) -> None:
            for _ in range(count):
                far.put(os.urandom(32), made)
            await far.writer.drained()

        async def hit(count: int, key: bytes = key) -> None:
            for _ in range(count):
                assert await far.get(key, now_ms()) is not None

        far.put(key, made)
        await far.writer.drained()
        count = 500 if len(body) < 2**15 else 50
        for name, work in (("hit", hit), ("put, compressed", put)):
            cpu, wall = await least(work, count, rounds)
            print(f"redis    {name + ', ' + size:34} {cpu:8.1f} us CPU {wall:8.1f} us")

    async def miss(count: int) -> None:
        for _ in range(count):
            await far.get(os.urandom(32), now_ms())

    async def fly(count: int) -> None:
        for _ in range(count):
            key = os.urandom(32)
            await flights.join(key, "id", lease_s=LONG_S, patience_s=LONG_S)
            flights.finish(key, "id", End.UNSHARED)
        await far.writer.drained()

    for name, work in (("miss", miss), ("lead and finish", fly)):
        cpu, wall = await least(work, 500, rounds)
        print(f"redis    {name:34} {cpu:8.1f} us CPU {wall:8.1f} us")
    await polls(flights, far.link.ask, rounds)
    await flights.close()
    await tiered.close()


async def polls(
    flights: RedisFlights, ask: Callable[..., Awaitable[list[object]]], rounds: int
) -> None:
    """Measure one question for the leases that calls wait for."""
    calls: list[asyncio.Task[Entry | Role]] = []
    for wanted in POLLED:
        for n in range(len(calls), wanted):
            key = n.to_bytes(32)
            await ask("lease", (b"SET", LEASE + key, b"another", b"PX", b"600000"))
            work = flights.join(key, str(n), lease_s=LONG_S, patience_s=LONG_S)
            calls.append(asyncio.ensure_future(work))
        while flights.stats().waiting < wanted:
            await asyncio.sleep(0.01)

        async def poll(count: int) -> None:
            for _ in range(count):
                await flights.poll()

        cpu, _ = await least(poll, 20, rounds)
        label = f"poll for {wanted:,} keys"
        print(f"redis    {label:34} {cpu:8.1f} us CPU, {cpu * 50 / 1e4:.2f}% of a core")
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


def main(argv: Sequence[str]) -> int:
    """Measure and print; 0 whatever the figures are."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.cache_stores", description=__doc__)
    options.add_argument("--rounds", type=int, default=7)
    chosen = options.parse_args(argv)
    uvloop.run(in_memory(chosen.rounds))
    with contextlib.ExitStack() as stack:
        uvloop.run(in_redis(f"unix://{redis_server(stack)}", chosen.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
