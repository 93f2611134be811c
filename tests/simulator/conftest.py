"""A simulator on a free port, the official client, and a client that sees every byte."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import pytest
import uvloop
from openai import AsyncOpenAI

from extproc.simulator.server import Simulator, start

DEADLINE_S = 20.0  # generous: a slow machine must not fail a test that is right


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run everything here on both loops: their transports differ in what they are and buffer."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Answer(NamedTuple):
    """One answer as it came over the wire; `complete` says whether its end came too."""

    status: int
    headers: dict[str, str]
    body: bytes
    pieces: tuple[bytes, ...]
    complete: bool

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        text = self.body.decode().replace("\r\n", "\n")
        return [event.split("data: ", 1)[1] for event in text.split("\n\n") if event]

    @property
    def words(self) -> str:
        """Return the text of a chat stream."""
        chunks = [json.loads(event) for event in self.events if event != "[DONE]"]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)


Wire = Callable[[bytes], Awaitable[bytes]]
Send = Callable[..., Awaitable[Answer]]
Until = Callable[[Callable[[], bool]], Awaitable[None]]


def parse(raw: bytes) -> Answer:
    head, _, rest = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    pieces: list[bytes] = []
    if headers.get("transfer-encoding") != "chunked":
        complete = len(rest) == int(headers.get("content-length", len(rest)))
        return Answer(int(first.split()[1]), headers, rest, (rest,), complete)
    complete = False
    while rest and not complete:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        complete = length == 0
        if length:
            pieces.append(rest[:length])
        rest = rest[length + 2 :]
    assert not rest
    return Answer(int(first.split()[1]), headers, b"".join(pieces), tuple(pieces), complete)


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    simulator = await start("127.0.0.1", 0, name="test")
    yield simulator
    await simulator.close()


@pytest.fixture
async def client(sim: Simulator) -> AsyncIterator[AsyncOpenAI]:
    base_url = f"http://127.0.0.1:{sim.port}/v1"
    async with AsyncOpenAI(base_url=base_url, api_key="sk-test", max_retries=0) as openai:
        yield openai


@pytest.fixture
def until() -> Until:
    """Wait until a condition holds, and fail when it does not in time."""

    async def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, "the condition never came true"
            await asyncio.sleep(0.001)

    return wait


@pytest.fixture
def wire(sim: Simulator) -> Wire:
    """Send bytes and return all that comes back until the simulator closes."""

    async def exchange(data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
        writer.write(data)
        received = await asyncio.wait_for(reader.read(-1), DEADLINE_S)
        writer.close()
        await writer.wait_closed()
        return received

    return exchange


@pytest.fixture
def send(wire: Wire) -> Send:
    """Send one request on its own connection: `send(method, path, body, headers)`."""

    async def exchange(
        method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body)
        data = content.encode() if isinstance(content, str) else content
        lines = {"host": "x", "connection": "close", "content-length": str(len(data))}
        lines |= headers or {}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return parse(await wire(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data))

    return exchange


@pytest.fixture
def stream(send: Send) -> Send:
    """Stream one chat completion with usage: `stream(headers, **request fields)`."""

    async def exchange(headers: Mapping[str, str] | None = None, **fields: object) -> Answer:
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
        return await send("POST", "/v1/chat/completions", body, headers)

    return exchange
