"""The streaming load: many paced SSE streams in one uvloop process of its own.

Run: python -m benchmarks.streams '{"port": ..., "streams": ...}' (fields of `Spec`); prints one
line of JSON (fields of `Streamed`). Connects first, then starts the streams spread evenly over
`spread_ms`, so that what is measured is not a herd. Knows the mock's chunks.
"""

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import httptools
import uvloop

from benchmarks.mock import STAMP_DIGITS
from benchmarks.processes import HOST

MARK = b'"content":"'
SETTLE_SECONDS = 20.0  # beyond the pace a stream may be late before it counts as lost
CONNECT_BATCH = 100


@dataclass(frozen=True, slots=True)
class Spec:
    """What to load: `streams` at once, each of `chunks` content chunks, one every `pace_ms`."""

    port: int
    path: str
    model: str
    headers: Mapping[str, str]
    streams: int
    chunks: int
    pace_ms: float
    stall_ms: float
    spread_ms: float


@dataclass(frozen=True, slots=True)
class Streamed:
    """What the streams showed, in milliseconds; `delay` is from the mock's write to our read."""

    streams: int
    completed: int
    chunks: int
    stalls: int
    ttft_p50: float
    ttft_p99: float
    gap_p50: float
    gap_p99: float
    gap_max: float
    delay_p50: float
    delay_p99: float


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of an ascending sequence; 0 when it is empty."""
    if not ordered:
        return 0.0
    rank = -int(-share * len(ordered) // 100)  # the ceiling, exactly
    return ordered[min(len(ordered), max(1, rank)) - 1]


@dataclass(slots=True)
class Totals:
    """Raw observations of all streams, in nanoseconds."""

    ttft: list[int] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)
    delays: list[int] = field(default_factory=list)
    completed: int = 0


class Client(asyncio.Protocol):
    """One connection that asks for one stream."""

    def __init__(self, request: bytes, chunks: int, totals: Totals) -> None:
        self.request = request
        self.chunks = chunks
        self.totals = totals
        self.parser = httptools.HttpResponseParser(self)
        self.carry = b""
        self.asked = 0
        self.last = 0
        self.seen = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's own class, not asyncio's

    def ask(self) -> None:
        self.asked = time.monotonic_ns()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if not self.ended.done():
            self.ended.set_result(None)

    def on_body(self, body: bytes) -> None:
        now = time.monotonic_ns()
        data = self.carry + body if self.carry else body
        totals, at = self.totals, 0
        while (end := data.find(b"\n\n", at)) >= 0:
            mark = data.find(MARK, at, end)
            at = end + 2
            if mark < 0:
                continue
            start = mark + len(MARK)
            totals.delays.append(now - int(data[start : start + STAMP_DIGITS]))
            if self.seen:
                totals.gaps.append(now - self.last)
            else:
                totals.ttft.append(now - self.asked)
            self.seen += 1
            self.last = now
        self.carry = data[at:]

    def on_message_complete(self) -> None:
        if self.parser.get_status_code() == 200 and self.seen == self.chunks:
            self.totals.completed += 1
        if not self.ended.done():
            self.ended.set_result(None)


def _request(spec: Spec, number: int) -> bytes:
    call = {
        "model": spec.model,
        "stream": True,
        "max_tokens": spec.chunks,
        "messages": [{"role": "user", "content": f"stream {number} of {time.time_ns()}"}],
    }
    body = json.dumps(call).encode()
    headers = {
        "host": f"{HOST}:{spec.port}",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "x-sim-output-tokens": str(spec.chunks),
        "x-sim-chunk-ms": f"{spec.pace_ms:g}",
        **spec.headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {spec.path} HTTP/1.1\r\n{lines}\r\n".encode() + body


async def load(spec: Spec) -> Streamed:
    """Run the streams of `spec` to their ends and sum up."""
    loop = asyncio.get_running_loop()
    totals = Totals()
    clients: list[Client] = []
    for number in range(spec.streams):
        _, client = await loop.create_connection(
            partial(Client, _request(spec, number), spec.chunks, totals), HOST, spec.port
        )
        clients.append(client)
        if number % CONNECT_BATCH == 0:
            await asyncio.sleep(0)
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection here would be measured as the gateway's pause
    started = loop.time()
    for number, client in enumerate(clients):
        loop.call_at(started + number * spec.spread_ms / 1000 / spec.streams, client.ask)
    ends = [client.ended for client in clients]
    longest = (spec.spread_ms + spec.chunks * spec.pace_ms) / 1000 + SETTLE_SECONDS
    await asyncio.wait(ends, timeout=longest)
    for client in clients:
        client.transport.close()
    return _sum_up(spec, totals)


def _sum_up(spec: Spec, totals: Totals) -> Streamed:
    ttft, gaps, delays = (
        [value / 1e6 for value in sorted(values)]
        for values in (totals.ttft, totals.gaps, totals.delays)
    )
    return Streamed(
        streams=spec.streams,
        completed=totals.completed,
        chunks=len(delays),
        stalls=sum(gap > spec.stall_ms for gap in gaps),
        ttft_p50=percentile(ttft, 50),
        ttft_p99=percentile(ttft, 99),
        gap_p50=percentile(gaps, 50),
        gap_p99=percentile(gaps, 99),
        gap_max=gaps[-1] if gaps else 0.0,
        delay_p50=percentile(delays, 50),
        delay_p99=percentile(delays, 99),
    )


def run(spec: Spec, timeout_seconds: float = 300.0) -> Streamed:
    """Run the load in a process of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.streams", json.dumps(asdict(spec))],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=timeout_seconds,
    )
    return Streamed(**json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(load(Spec(**json.loads(sys.argv[1])))))))
