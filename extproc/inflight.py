"""Calls that were planned and whose log entry has not come: what a drain waits for.

Knows: ids and deadlines. Must not know: what the calls are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

GRACE_S: Final = 5.0  # after its time limit a call is ended by Envoy and its entry flushed


def _nothing() -> None:
    """Do nothing at a call's end."""


class InFlight:
    """A set of ids that forgets each at its deadline, so a lost log entry cannot hold a drain."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._deadlines: dict[str, tuple[float, Callable[[], None]]] = {}
        self._emptied = asyncio.Event()
        self._emptied.set()

    def __len__(self) -> int:
        return len(self._deadlines)

    def __contains__(self, call_id: str) -> bool:
        return call_id in self._deadlines

    def add(self, call_id: str, deadline: float, *, ended: Callable[[], None] = _nothing) -> None:
        """Note a planned call; `deadline` is when Envoy ends it, in the clock's seconds.

        `ended` is called once, when it is settled or overdue.
        """
        self._deadlines[call_id] = deadline + GRACE_S, ended
        self._emptied.clear()

    def settled(self, call_id: str) -> None:
        """Forget a call whose entry came; one not known, planned by an earlier process, is fine."""
        noted = self._deadlines.pop(call_id, None)
        if noted is not None:
            noted[1]()
        if not self._deadlines:
            self._emptied.set()

    def expire(self) -> int:
        """Forget the overdue ones and return how many there were."""
        now = self._clock()
        overdue = [call_id for call_id, (at, _) in self._deadlines.items() if at <= now]
        for call_id in overdue:
            self.settled(call_id)
        return len(overdue)

    async def empty(self) -> None:
        """Return once nothing is in flight."""
        await self._emptied.wait()
