"""Who asks a shared store again, when: one caller at a time per account, first come first served.

Knows: names, the loop's clock. Must not know: stores or what is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from extproc.stores.slots import MAX_WAITING, WAIT_S

POLL_S: Final = 0.02  # what another process settled is noticed so much later


class Turn:
    """One caller's place: `again` waits until it is worth asking again, False when it is not."""

    def __init__(self, news: asyncio.Event, deadline: float, *, head: bool) -> None:
        self._news = news
        self._deadline = deadline
        self._first = head

    async def again(self) -> bool:
        """Wait for news, or a little; say whether there is patience left."""
        if self._deadline <= asyncio.get_running_loop().time():
            return False
        if self._first:
            self._first = False  # whoever waited for its turn has waited enough
            return True
        self._news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._news.wait()
        return True


class Turns:
    """The queues of every account that somebody waits for."""

    def __init__(self) -> None:
        self._queues: dict[str, tuple[asyncio.Lock, list[int]]] = {}
        self._news = asyncio.Event()

    def __contains__(self, name: str) -> bool:
        return name in self._queues

    def __len__(self) -> int:
        return sum(count[0] for _, count in self._queues.values())

    def queued(self, subjects: Sequence[tuple[str, Any]]) -> str | None:
        """Return the first of the accounts that others wait for already."""
        if not self._queues:
            return None
        return next((name for name, _ in subjects if name in self._queues), None)

    def news(self) -> None:
        """Say that something was settled."""
        self._news.set()

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[Turn]:
        """Wait for the caller's turn at an account, WAIT_S in all; its `again` says whether."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WAIT_S
        known = name in self._queues
        lock, count = self._queues.setdefault(name, (asyncio.Lock(), [0]))
        if count[0] >= MAX_WAITING:
            yield Turn(self._news, 0.0, head=False)
            return
        count[0] += 1
        got = False
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    got = await lock.acquire()
            yield Turn(self._news, deadline if got else 0.0, head=known)
        finally:
            if got:
                lock.release()
            count[0] -= 1
            if not count[0]:
                del self._queues[name]
