"""The streaming mock: a uvloop server that paces the chunks of a chat completion.

Run: python -m benchmarks.mock --port P. Asked with `x-sim-output-tokens` (chunks) and
`x-sim-chunk-ms` (pace, 0 for as fast as the peer reads), the simulator's names. Every content chunk
carries the monotonic clock in nanoseconds at which it was written, so that a reader on the same
machine can tell delivery time from the mock's own jitter. Knows nothing of gateways.
"""

import argparse
import asyncio
import time
from collections.abc import Callable
from typing import cast

import httptools
import uvloop

from benchmarks.processes import HOST

STAMP_DIGITS = 19
EVENT = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1750000000,'
    b'"model":"bench-model","choices":[{"index":0,"delta":{"content":"%019d"},'
    b'"finish_reason":null}]}\n\n'
)
LAST = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1750000000,'
    b'"model":"bench-model","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1750000000,'
    b'"model":"bench-model","choices":[],"usage":{"prompt_tokens":210,"completion_tokens":%d,'
    b'"total_tokens":%d}}\n\ndata: [DONE]\n\n'
)
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
LISTED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
FRAME = b"%x\r\n" % len(EVENT % 0) + EVENT + b"\r\n"
MODELS = b'{"object":"list","data":[{"id":"bench-model","object":"model"}]}'
PROMPT_TOKENS = 210


class Stream(asyncio.Protocol):
    """One connection: reads requests, answers each with a paced stream."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.parser = httptools.HttpRequestParser(self)
        self.write: Callable[[bytes], None] = lambda _: None
        self.close: Callable[[], None] = lambda: None
        self.paused = False
        self.timer: asyncio.Handle | None = None
        self.chunks = 1
        self.left = 0
        self.pace = 0.05
        self.due = 0.0
        self.answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)  # uvloop's own class, not asyncio's
        self.write = stream.write
        self.close = stream.close

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.answering = False
        if self.timer is not None:
            self.timer.cancel()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.answering and not self.pace:
            self.timer = self.loop.call_soon(self.chunk)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_message_begin(self) -> None:
        self.chunks, self.pace = 1, 0.05

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"x-sim-output-tokens":
                self.chunks = int(value)
            case b"x-sim-chunk-ms":
                self.pace = float(value) / 1000

    def on_message_complete(self) -> None:
        if self.parser.get_method() != b"POST":
            head = (
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            )
            self.write(head % len(MODELS) + MODELS)
            return
        self.write(HEAD)
        self.answering = True
        self.left = self.chunks
        self.due = self.loop.time()
        self.chunk()

    def chunk(self) -> None:
        """Write one chunk, or the end, and plan the next by the clock: lateness does not add up."""
        if not self.left:
            self.answering = False
            last = LAST % (self.chunks, self.chunks + PROMPT_TOKENS)
            self.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
            return
        self.left -= 1
        self.write(FRAME % time.monotonic_ns())
        if self.pace:
            self.due += self.pace
            self.timer = self.loop.call_at(self.due, self.chunk)
        elif not self.paused:
            self.timer = self.loop.call_soon(self.chunk)

    def eof_received(self) -> bool:
        return False


async def serve(port: int) -> None:
    """Serve on loopback until cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Stream(loop), HOST, port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--port", type=int, required=True)
    uvloop.run(serve(options.parse_args().port))
