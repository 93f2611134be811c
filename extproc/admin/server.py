"""Serve the admin API inside the running event loop.

Knows: uvicorn and one socket. Must not know: what is served. Signals stay with whoever owns the
process, and so does logging.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import uvicorn

from extproc.sockets import listening

BACKLOG: Final = 64  # probes and scrapers
CLOSE_S: Final = 1  # a scrape takes tens of milliseconds


class _Server(uvicorn.Server):
    """uvicorn without signal handlers, and with a way to wait for its start."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.bound = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's signal handlers alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving and say so."""
        await super().startup(sockets=sockets)
        self.bound.set()


class AdminServer:
    """A server that is running; `close` it once."""

    def __init__(self, server: _Server, task: asyncio.Task[None], port: int) -> None:
        self._server = server
        self._task = task
        self.port = port

    def __repr__(self) -> str:
        return f"AdminServer(port={self.port})"

    async def close(self) -> None:
        """Stop listening, let open requests end for up to a second, and return."""
        self._server.should_exit = True
        await self._task


async def start(app: Any, host: str, port: int) -> AdminServer:
    """Serve an ASGI application on host and port (0: the kernel chooses) and return when bound.

    Raises OSError where the address cannot be had.
    """
    bound = _bind(host, port)
    return await _serve(app, bound, bound.getsockname()[1])


async def start_local(app: Any, path: Path) -> AdminServer:
    """Serve an ASGI application on a Unix socket that only this user may connect to.

    Raises OSError where it cannot be made.
    """
    return await _serve(app, listening(path), 0)


async def _serve(app: Any, bound: socket.socket, port: int) -> AdminServer:
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=CLOSE_S,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[bound]), name="admin")
    waiting = asyncio.create_task(server.bound.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not server.bound.is_set():
        waiting.cancel()
        bound.close()
        await task
    return AdminServer(server, task, port)


def _bind(host: str, port: int) -> socket.socket:
    family, *_, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"admin {host}:{port}: {error.strerror}") from None
    bound.setblocking(False)
    return bound
