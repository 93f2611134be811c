"""What is written to Redis behind the calls' backs: in order, bounded, never waited for.

Knows: commands and their sizes. Must not know: what they mean.
Order is kept from `submit` to the connection, because whoever is told that an answer is stored has
to find it. While Redis is away what was submitted waits, up to the bounds; beyond them it is lost
and counted. A command that was sent and not answered is sent again only if it is `vital`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from extproc.ports import Observer
from extproc.stores.guarded import PROBE_S, STORE, Command, GuardedLink
from extproc.stores.link import Unavailable

MAX_QUEUED_BYTES: Final = 16 * 2**20
MAX_QUEUED: Final = 10_000
MAX_SENT_BYTES: Final = 4 * 2**20  # without a reply, so that a Redis that hangs holds no more
MAX_SENT: Final = 1_000
MAX_TRIES: Final = 5  # of a vital command: what it ends has ended by itself some seconds later
BIG_BYTES: Final = 65_536  # packing more is a thread's work: half a millisecond of zlib and up
CLOSE_S: Final = 1.0

Pack = Callable[[], Command]


class _Job:
    __slots__ = ("op", "pack", "tries", "weight")

    def __init__(self, op: str, weight: int, pack: Pack, tries: int) -> None:
        self.op = op
        self.weight = weight
        self.pack = pack
        self.tries = tries


class Writer:
    """The queue in front of one connection, which nothing else may write to."""

    def __init__(self, link: GuardedLink, observer: Observer) -> None:
        self._link = link
        self._observer = observer
        self._queue: deque[_Job] = deque()
        self._queued_bytes = 0
        self._sent = 0
        self._sent_bytes = 0
        self._news = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Writer({self._link!r}, queued={len(self._queue)}, sent={self._sent})"

    async def drained(self) -> None:
        """Return once everything submitted was answered or given up."""
        await self._drained.wait()

    async def start(self) -> None:
        """Connect, for a second at most, and begin."""
        await self._link.start()
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Write what is queued, for a second at most, and close the connection."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._drained.wait()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._link.close()

    def submit(self, op: str, weight: int, pack: Pack, *, vital: bool = False) -> None:
        """Queue the command that `pack` makes when its turn comes; never raises, never blocks.

        `weight` is about its size in bytes; that of BIG_BYTES and more is packed in a thread. An
        empty command is none.
        """
        full = len(self._queue) >= MAX_QUEUED
        if full or (not vital and self._queued_bytes + weight > MAX_QUEUED_BYTES):
            self._observer.store_error(STORE, f"{op}_lost")
            return
        self._queue.append(_Job(op, weight, pack, MAX_TRIES if vital else 1))
        self._queued_bytes += weight
        self._drained.clear()
        self._news.set()

    async def _work(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._queue and self._sent < MAX_SENT and self._sent_bytes < MAX_SENT_BYTES:
                if not self._link.usable:
                    await asyncio.sleep(PROBE_S)  # the link comes back by itself
                    continue
                await self._write(self._queue[0])

    async def _write(self, job: _Job) -> None:
        """Send the first of the queue, which stays there until it is."""
        command = await asyncio.to_thread(job.pack) if job.weight >= BIG_BYTES else job.pack()
        if command:
            try:
                turn = self._link.send(job.op, command)
            except Unavailable:
                return  # nothing was sent, so that its turn comes again
            self._sent += 1
            self._sent_bytes += job.weight
            turn.add_done_callback(partial(self._answered, job))
        self._queue.popleft()
        self._queued_bytes -= job.weight
        self._note_drained()

    def _answered(self, job: _Job, turn: asyncio.Future[Any]) -> None:
        self._sent -= 1
        self._sent_bytes -= job.weight
        job.tries -= 1
        if turn.exception() is None:
            well = self._link.judge(job.op, (turn.result(),))
        else:
            self._link.failed(job.op)
            well = False
        if not well and job.tries > 0:
            self._queue.append(job)
            self._queued_bytes += job.weight
        self._note_drained()
        self._news.set()

    def _note_drained(self) -> None:
        if not self._queue and not self._sent:
            self._drained.set()
