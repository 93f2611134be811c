"""The admin server lives in a loop that is not its own."""

import asyncio
import signal
import socket
from contextlib import closing
from typing import Any

import httpx
import pytest

from extproc.admin.server import start


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answer every request with its path."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


async def test_serves_on_a_port_of_the_kernels_choice() -> None:
    """The server answers once `start` returned, and no more once `close` did."""
    server = await start(hello, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.port}/x"
    assert repr(server) == f"AdminServer(port={server.port})"
    async with httpx.AsyncClient() as client:
        answer = await client.get(url)
        assert (answer.text, "server" in answer.headers) == ("/x", False)
    await server.close()
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(url)


async def test_close_does_not_wait_for_idle_connections() -> None:
    """A scraper that keeps its connection does not hold the process."""
    server = await start(hello, "127.0.0.1", 0)
    async with httpx.AsyncClient() as client:
        await client.get(f"http://127.0.0.1:{server.port}/")
        async with asyncio.timeout(5):
            await server.close()


async def test_leaves_signals_alone() -> None:
    """Handlers are those of whoever owns the process."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    server = await start(hello, "127.0.0.1", 0)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    await server.close()


async def test_a_port_in_use_is_named() -> None:
    """Whoever starts it learns which address it was."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"admin 127.0.0.1:{port}: .*in use"):
            await start(hello, "127.0.0.1", port)


async def test_can_start_again_on_its_port() -> None:
    """A restart does not wait for old connections to time out."""
    first = await start(hello, "127.0.0.1", 0)
    async with httpx.AsyncClient() as client:
        await client.get(f"http://127.0.0.1:{first.port}/")
    await first.close()
    second = await start(hello, "127.0.0.1", first.port)
    assert second.port == first.port
    await second.close()
