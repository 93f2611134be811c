"""Calls that were planned and whose log entry has not come: what a drain waits for.

Knows: ids and deadlines. Must not know: what the calls are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

GRACE_S: Final = 5.0  # after its time limit a call is ended by Envoy and its entry flushed


class InFlight:
    """A set of ids that forgets each at its deadline, so a lost log entry cannot hold a drain."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._deadlines: dict[str, float] = {}
        self._emptied = asyncio.Event()
        self._emptied.set()

    def __len__(self) -> int:
        return len(self._deadlines)

    def __contains__(self, call_id: str) -> bool:
        return call_id in self._deadlines

    def add(self, call_id: str, deadline: float) -> None:
        """Note a planned call; `deadline` is when Envoy ends it, in the clock's seconds."""
        self._deadlines[call_id] = deadline + GRACE_S
        self._emptied.clear()

    def settled(self, call_id: str) -> None:
        """Forget a call whose entry came; one not known, planned by an earlier process, is fine."""
        self._deadlines.pop(call_id, None)
        if not self._deadlines:
            self._emptied.set()

    def expire(self) -> int:
        """Forget the overdue ones and return how many there were."""
        now = self._clock()
        overdue = [call_id for call_id, deadline in self._deadlines.items() if deadline <= now]
        for call_id in overdue:
            self.settled(call_id)
        return len(overdue)

    async def empty(self) -> None:
        """Return once nothing is in flight."""
        await self._emptied.wait()
