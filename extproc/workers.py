"""`llm-edge serve` with `server.workers` above 1: so many processors, and one process for them all.

Knows: processes, sockets, the admin port. Must not know: requests, Redis, gRPC.
Each worker decides about the calls that Envoy brings it, at a socket of its own; how they ended it
is told at another one, which this process binds and keeps: while a worker starts again the entries
of its calls wait there. Calls meanwhile go to the others, because nobody listens at the first.
A worker whose supervisor is gone finds its standard input at an end and leaves too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from extproc import __version__
from extproc.admin.server import start as start_admin
from extproc.admin.workers import WorkersAdmin
from extproc.children import Child, keep
from extproc.places import Places
from extproc.schema import Config
from extproc.sockets import listening
from extproc.stores import usage_log

log: Final = logging.getLogger(__name__)

BACKLOG: Final = 128  # of log connections while a worker starts: one for each thread of Envoy
POLL_S: Final = 0.05
CLOSE_S: Final = 7.0  # after the drain: the ledger on a slow disk, settlements to Redis


async def serve_workers(config: Config, files: Sequence[Path], env: Mapping[str, str]) -> int:
    """Run until SIGTERM or SIGINT, which drains; a second one stops. Returns the exit code.

    A worker that ends before all were ready ends this; later it is started again. Raises OSError or
    sqlite3.Error where a socket, the admin port or the ledger cannot be had.
    """
    stop = asyncio.Event()
    crew = _Crew(config, files, env)

    def asked() -> None:
        if stop.is_set():
            crew.kill()
            os._exit(1)
        stop.set()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, asked)
    return await crew.run(stop)


class _Crew:
    """The workers of one gateway."""

    def __init__(self, config: Config, files: Sequence[Path], env: Mapping[str, str]) -> None:
        self._config = config
        self._files = files
        self._env = env
        self._places = places = Places.of(config)
        self._numbers = range(config.server.workers)
        self._logs: list[socket.socket] = []
        self._children: list[Child] = []
        self._app = WorkersAdmin(
            [places.worker_admin_socket(number) for number in self._numbers], __version__
        )

    async def run(self, stop: asyncio.Event) -> int:
        """Start everything and return when it has ended."""
        admin = self._config.admin
        # First, because where it cannot be had another one runs, whose sockets are not ours.
        port = await start_admin(self._app, admin.host, admin.port)
        keepers: list[asyncio.Task[None]] = []
        try:
            self._prepare()
            for child in self._children:
                await child.start()
            if not await self._up(stop):
                return next((child.code for child in self._children if child.code), 1)
            keepers += [asyncio.create_task(keep(c, stop, self._ended)) for c in self._children]
            if not stop.is_set():
                sys.stdout.write(f"ready admin=http://{admin.host}:{port.port}\n")
                sys.stdout.flush()
                extra = {"workers": len(self._children), "admin_port": port.port}
                log.info("serving", extra=extra)
            await _first(stop, keepers)
            return 0
        finally:
            stop.set()
            self._app.draining = True
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            log.info("draining", extra={"workers": len(self._children)})
            await self._drain()
            await port.close()

    def _prepare(self) -> None:
        places = self._places
        places.envoy.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Before there is anybody to quarrel about who makes it, or brings it up to date.
        usage_log.prepare(places.ledger)
        for number in self._numbers:
            made = _log_socket(places.log_socket(number))
            self._logs.append(made)
            self._children.append(_child(number, made, self._files, self._env))

    def kill(self) -> None:
        """End all of them at once."""
        for child in self._children:
            if child.process is not None and child.process.returncode is None:
                child.process.kill()

    async def _up(self, stop: asyncio.Event) -> bool:
        """Wait until every worker answers; False where one has ended instead."""
        for number in range(len(self._children)):
            while not stop.is_set() and not await self._app.answers(number):
                if any(child.code is not None for child in self._children):
                    return False
                await asyncio.sleep(POLL_S)
        return True

    def _ended(self, child: Child, code: int) -> None:
        number = self._children.index(child)
        log.error("worker ended, starting it again", extra={"of": number, "code": code})
        self._app.ended(number)

    async def _drain(self) -> None:
        patience_s = self._config.server.drain_seconds + CLOSE_S
        await asyncio.gather(*(child.stop(patience_s) for child in self._children))
        for number, made in enumerate(self._logs):
            made.close()
            self._places.log_socket(number).unlink(missing_ok=True)
            self._places.worker_admin_socket(number).unlink(missing_ok=True)


def _log_socket(path: Path) -> socket.socket:
    made = listening(path)
    made.listen(BACKLOG)  # already now, because it is to be there whenever its worker is not
    return made


def _child(
    number: int, made: socket.socket, files: Sequence[Path], env: Mapping[str, str]
) -> Child:
    words = [sys.executable, "-m", "extproc.cli", "serve", "--worker", str(number)]
    words += ["--log-socket", str(made.fileno())]
    words += [word for file in files for word in ("--config", str(file))]
    return Child(f"worker {number}", words, env=env, files=[made.fileno()], tethered=True)


async def _first(stop: asyncio.Event, keepers: Sequence[asyncio.Task[None]]) -> None:
    """Return when asked to stop. Raises what a keeper raises: nobody would start its worker."""
    asked = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([asked, *keepers], return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    for task in done:
        await task
