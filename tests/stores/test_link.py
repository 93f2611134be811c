"""The one connection: whose reply is whose, what a liar or a refusal at the door does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from extproc.stores import link as module
from extproc.stores.link import Link, Unavailable
from tests.redis_server import RedisServer

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def nothing(_: Link) -> None:
    """Do nothing on a new connection."""


@asynccontextmanager
async def linked(url: str, timeout_s: float = 5.0) -> AsyncIterator[Link]:
    one = Link(url, timeout_s, nothing)
    one.start()
    yield one
    await one.close()


@asynccontextmanager
async def server(path: Path, answer: Answer) -> AsyncIterator[str]:
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    listening = await asyncio.start_unix_server(accept, str(path))
    async with listening:
        yield f"unix://{path}"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_replies_go_to_their_callers(redis_server: RedisServer) -> None:
    """A thousand calls at once, every third one cancelled: the others get their own."""
    async with linked(redis_server.url) as one:
        await one.connected.wait()
        turns = [one.send(b"ECHO", b"%d" % number) for number in range(1000)]
        for turn in turns[::3]:
            turn.cancel()
        for number, turn in enumerate(turns):
            if number % 3:
                assert await turn == b"%d" % number


async def test_a_late_reply_is_nobodys(tmp_path: Path) -> None:
    """The caller has lost patience; the next one is not handed what it did not ask."""
    go = asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        await go.wait()
        writer.write(b"+first\r\n+second\r\n")
        await reader.read(100)

    async with server(tmp_path / "s", late) as url, linked(url, 0.02) as one:
        await one.connected.wait()
        with pytest.raises(Unavailable, match="in time"):
            await one.send(b"ONE")
        second = one.send(b"TWO")
        go.set()
        assert await second == b"second"


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="another protocol"),
        pytest.param(b"+one\r\n+two\r\n", id="a reply nobody asked for"),
        pytest.param(b"", id="the end"),
    ],
)
async def test_a_connection_that_lies_is_closed(tmp_path: Path, written: bytes) -> None:
    async def liar(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(written)

    async with server(tmp_path / "s", liar) as url, linked(url) as one:
        await one.connected.wait()
        calls = [one.send(b"ONE")]
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(done[0], Unavailable) or done == [b"one"]
        while one.connected.is_set():
            await asyncio.sleep(0)


async def test_a_stuck_connection_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STUCK_S", 0.02)
    accepted = asyncio.Semaphore(0)

    async def mute(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        accepted.release()
        while await reader.read(100):
            pass

    async with server(tmp_path / "s", mute) as url, linked(url, 0.01) as one:
        await accepted.acquire()
        await one.connected.wait()
        with pytest.raises(Unavailable):
            await one.send(b"ONE")
        await accepted.acquire()


async def test_without_a_connection_nobody_waits(tmp_path: Path) -> None:
    async with linked(f"unix://{tmp_path}/none") as one:
        with pytest.raises(Unavailable, match="no connection"):
            one.send(b"PING")


async def test_commands_without_a_reply_are_bounded(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    async with linked(redis_server.url) as one:
        await one.connected.wait()
        turns = [one.send(b"PING") for _ in range(3)]
        with pytest.raises(Unavailable, match="too many"):
            one.send(b"PING")
        assert await asyncio.gather(*turns) == [b"PONG"] * 3


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("unix://user:secret@{path}?db=3", [b"AUTH", b"user", b"secret"]),
        ("unix://:secret@{path}?db=3", [b"AUTH", b"secret"]),
    ],
)
async def test_a_password_is_said_first_and_never_shown(
    tmp_path: Path, url: str, expected: list[bytes]
) -> None:
    heard: list[bytes] = []
    closed = asyncio.Event()

    async def strict(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1000))
        writer.write(b"-WRONGPASS no\r\n")
        closed.set()
        await reader.read(1)

    path = tmp_path / "s"
    async with server(path, strict):
        async with linked(url.format(path=path)) as one:
            await closed.wait()
            assert not one.connected.is_set()
            assert "secret" not in repr(one)
    words: Any = heard[0].split(b"\r\n")[2::2]
    assert words[: len(expected)] == expected


async def test_a_database_is_selected(redis_server: RedisServer) -> None:
    async with linked(f"{redis_server.url}?db=7") as one:
        await one.connected.wait()
        await one.send(b"SET", b"here", b"1")
    assert redis_server.client.get("here") is None
