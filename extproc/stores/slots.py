"""Who waits until an account has room: for a slot, or for a reservation to be settled.

Knows: accounts, futures, the loop's timer. Must not know: what is counted, the stores.
First come, first served: a slot that comes free is promised before anybody new can take it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import IntEnum
from typing import Final

from extproc.policies.quota import Account

# Two flushes of the access log, which settles the caller's own last call, and their way here.
WAIT_S: Final = 0.15
MAX_WAITING: Final = 64  # per account: in that time more cannot be served by it than refused
ANY_NEWS: Final = 0  # in place of a number of slots: wake me when anything is settled


class _News(IntEnum):
    NONE = 0
    SETTLED = 1
    SLOT = 2


class Slots:
    """The waiters of every account that has some."""

    def __init__(self) -> None:
        self._queues: dict[Account, deque[tuple[asyncio.Future[_News], int]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    async def wait(self, account: Account, most: int, patience_s: float) -> bool:
        """Wait for one of the account's `most` slots, or for ANY_NEWS; say whether it came.

        A slot is the caller's to take at once: nothing else may be awaited in between.
        """
        if patience_s <= 0:
            return False
        queue = self._queues.setdefault(account, deque())
        if len(queue) >= MAX_WAITING:
            return False
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[_News] = loop.create_future()
        queue.append((turn, most))
        timer = loop.call_later(patience_s, _give_up, turn)
        news = _News.NONE
        try:
            news = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result() is _News.SLOT:
                account.handed -= 1
                self.offer(account)  # the slot is the next one's
            raise
        finally:
            timer.cancel()
            self._forget(account)
        if news is _News.SLOT:
            account.handed -= 1
        return news is not _News.NONE

    def offer(self, account: Account) -> None:
        """Promise what is free to whoever waits longest; tell those who wait for any news."""
        queue = self._queues.get(account) if self._queues else None
        if queue is None:
            return
        waiting: deque[tuple[asyncio.Future[_News], int]] = deque()
        for turn, most in queue:
            if turn.done():
                continue
            if most == ANY_NEWS:
                turn.set_result(_News.SETTLED)
            elif account.active + account.handed < most:
                account.handed += 1
                turn.set_result(_News.SLOT)
            else:
                waiting.append((turn, most))
        queue.clear()
        queue.extend(waiting)
        self._forget(account)

    def _forget(self, account: Account) -> None:
        queue = self._queues.get(account)
        while queue and queue[0][0].done():
            queue.popleft()
        if queue is not None and not queue:
            del self._queues[account]


def _give_up(turn: asyncio.Future[_News]) -> None:
    if not turn.done():
        turn.set_result(_News.NONE)
