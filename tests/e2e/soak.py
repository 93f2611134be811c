"""Mixed calls on a real Envoy and the lane for as long as wanted: `make soak`.

Run: python -m tests.e2e.soak --seconds 120. Exit code 0 when memory stayed flat, every stream
between Envoy and the processor was closed and nothing was refused that should not be; 1 says what
was not so. Every kind of end is in the mix: whole answers, streams left at any chunk, bodies that
are never finished, refusals at the headers and at the body, providers that fail.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from extproc.bundle.places import PROCESSOR

from .stack import Stack, start_stack, wait_for

WORKERS = 24
CHAT = "/v1/chat/completions"
SAMPLE_S = 1.0
WARM_UP = 0.25  # of the time: pools, caches and the allocator fill
GROWTH_MB = 4.0  # between the middle of the first and of the last third after it
SETTLE_S = 15.0
LIMIT_BYTES = 10 * 1024 * 1024
BIG_BYTES = 1024 * 1024


@dataclass
class Tally:
    """What was seen."""

    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)


def body(size: int, *, stream: bool) -> bytes:
    call = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x" * size}]}
    return json.dumps(call | {"stream": stream}).encode()


async def whole(client: httpx.AsyncClient, draw: random.Random) -> int:
    """Ask for a whole answer; one in ten bodies is large."""
    size = BIG_BYTES if draw.random() < 0.1 else draw.randint(1, 4000)
    return (await client.post(CHAT, content=body(size, stream=False))).status_code


async def streamed(client: httpx.AsyncClient, draw: random.Random) -> int:
    """Read a stream to its end."""
    headers = {"x-sim-output-tokens": str(draw.randint(1, 60)), "x-sim-chunk-ms": "2"}
    answer = await client.post(CHAT, content=body(50, stream=True), headers=headers)
    return answer.status_code if answer.content.endswith(b"data: [DONE]\n\n") else 0


async def left(client: httpx.AsyncClient, draw: random.Random) -> int:
    """Leave a stream at some chunk."""
    headers = {"x-sim-output-tokens": "500", "x-sim-chunk-ms": "2"}
    leave_at = draw.randint(0, 20)
    async with client.stream(
        "POST", CHAT, content=body(50, stream=True), headers=headers
    ) as answer:
        async for _ in answer.aiter_raw():
            leave_at -= 1
            if leave_at < 0:
                break
        return answer.status_code


async def unfinished(client: httpx.AsyncClient, draw: random.Random) -> int:
    """Leave in the middle of a request's body, while the processor waits for it."""
    base = client.base_url
    reader, writer = await asyncio.open_connection(base.host, base.port)
    try:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: {client.headers['authorization']}"
        )
        writer.write(
            f"{head}\r\ncontent-length: 5000\r\n\r\n".encode() + b"x" * draw.randint(0, 4999)
        )
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(draw.random() * 0.05):
                await reader.read(1)
        return 200
    finally:
        writer.close()


async def refused(client: httpx.AsyncClient, _: random.Random) -> int:
    """Come without a good key: answered at the headers."""
    return (
        await client.post(
            CHAT, content=body(10, stream=False), headers={"authorization": "Bearer x"}
        )
    ).status_code


async def malformed(client: httpx.AsyncClient, _: random.Random) -> int:
    """Send what is not JSON: answered at the body."""
    return (await client.post(CHAT, content=b"{")).status_code


async def failing(client: httpx.AsyncClient, _: random.Random) -> int:
    """Ask a provider that fails."""
    headers = {"x-sim-status": "503"}
    return (await client.post(CHAT, content=body(10, stream=False), headers=headers)).status_code


async def listed(client: httpx.AsyncClient, _: random.Random) -> int:
    """Ask for the models: no body at all."""
    return (await client.get("/v1/models")).status_code


KINDS = {whole: 200, streamed: 200, left: 200, unfinished: 200, refused: 401, malformed: 400}
KINDS |= {failing: 503, listed: 200}


async def worker(client: httpx.AsyncClient, number: int, until: float, tally: Tally) -> None:
    draw = random.Random(number)
    while time.monotonic() < until:
        kind = draw.choice(list(KINDS))
        tally.kinds[kind.__name__] += 1
        try:
            status = await kind(client, draw)
        except httpx.HTTPError as error:
            tally.problems.append(f"{kind.__name__}: {error!r}")
            continue
        tally.statuses[kind.__name__, status] += 1
        if status != KINDS[kind]:
            tally.problems.append(f"{kind.__name__} was answered {status}")


async def sample(stack: Stack, until: float, tally: Tally) -> None:
    while time.monotonic() < until:
        await asyncio.sleep(SAMPLE_S)
        tally.rss_mb.append(stack.processor.rss_mb())


async def load(stack: Stack, key: str, seconds: float, tally: Tally) -> None:
    """Run the mix and sample the processor's memory meanwhile."""
    until = time.monotonic() + seconds
    async with httpx.AsyncClient(
        base_url=stack.base, headers={"authorization": f"Bearer {key}"}, timeout=60
    ) as client:
        workers = (worker(client, number, until, tally) for number in range(WORKERS))
        await asyncio.gather(sample(stack, until, tally), *workers)


def growth_mb(samples: list[float]) -> float:
    """Return by how much the memory grew after the warm-up: last third minus first, medians."""
    kept = samples[int(len(samples) * WARM_UP) :]
    third = max(1, len(kept) // 3)
    return statistics.median(kept[-third:]) - statistics.median(kept[:third])


def open_streams(stack: Stack) -> int:
    """Count the streams Envoy has open to the processor; its access logs are among them."""
    name = f"cluster.{PROCESSOR}.upstream_rq_active"
    return stack.envoy_stats(name)[name]


def judge(stack: Stack, tally: Tally, before: int) -> list[str]:
    """Say everything that is not as it should be."""
    wrong = [f"{count} x {what}" for what, count in Counter(tally.problems).most_common(10)]
    missing = {kind.__name__ for kind in KINDS} - set(tally.kinds)
    wrong += [f"never tried: {kind}" for kind in sorted(missing)]
    try:
        wait_for("all streams to close", lambda: open_streams(stack) <= before, SETTLE_S)
    except AssertionError:
        wrong.append(f"{open_streams(stack)} streams are open, {before} were before")
    grown = growth_mb(tally.rss_mb)
    if grown > GROWTH_MB:
        wrong.append(
            f"the processor grew by {grown:.1f} MB: {tally.rss_mb[:: max(1, len(tally.rss_mb) // 20)]}"
        )
    log = stack.processor.log.read_text()
    wrong += [f"logged: {line[:300]}" for line in log.splitlines() if '"level":"error"' in line][:5]
    wrong += [f"logged: {what}" for what in ("Traceback", "connection refused") if what in log]
    for service in stack.services:
        if service.process is not None and service.process.poll() is not None:
            wrong.append(f"{service.name} ended")
    return wrong


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=120)
    options.add_argument("--transport", default="lane", choices=["lane", "grpcio"])
    chosen = options.parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as directory:
        stack = start_stack(Path(directory), transport=chosen.transport)
        try:
            key = stack.create_key("soak")
            asyncio.run(load(stack, key, 3, Tally()))  # Envoy's log streams open, pools fill
            wait_for("Envoy to settle", lambda: open_streams(stack) <= 2, SETTLE_S)
            before = open_streams(stack)
            asyncio.run(load(stack, key, chosen.seconds, tally))
            wrong = judge(stack, tally, before)
            print(
                f"{sum(tally.kinds.values()):,} calls in {chosen.seconds:.0f} s: {dict(tally.statuses)}"
            )
            print(
                f"processor RSS {tally.rss_mb[0]:.1f} MB first, {tally.rss_mb[-1]:.1f} last, "
                f"{growth_mb(tally.rss_mb):+.1f} MB after the warm-up; "
                f"streams open: {open_streams(stack)}, as before"
            )
        finally:
            stack.stop()
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
