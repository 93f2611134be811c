"""Identical calls at the same time: one goes upstream, the others wait for its answer.

Knows: keys, ids of calls, futures, the loop's clock. Must not know: what a key is made of, stores,
Redis, HTTP.

A flight is one key's call upstream: the call that leads it and those that follow. What becomes of
it comes from the access log, by the leader's id, which outlives the leader's own connection.
  answered   every follower gets the entry
  unshared   complete, but not to be kept: every follower goes upstream itself, because one after
             the other they would wait for nothing
  failed     the follower that waits longest leads; so also when the leader is cancelled, or when
             nothing was heard of it until its lease ended
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from enum import Enum
from typing import Final, TypeAlias

from extproc.answers import End, Entry, Landing, Role
from extproc.ports import Waits, unasked
from extproc.stores.flight_stats import FlightStats

MAX_FLIGHTS: Final = 10_000  # as many as there may be connections
MAX_WAITING: Final = 10_000  # in all flights: about 20 MB with their tasks
MAX_FOLLOWERS: Final = 2_000  # of one: no single prompt takes every place
SWEEP_S: Final = 1.0

Turn: TypeAlias = "asyncio.Future[Landing]"
_LEAD: Final = Role.LEAD  # by names of our own: to read a member of an enum takes 700 instructions
_ALONE: Final = Role.ALONE
_UNSHARED: Final = End.UNSHARED


class Where(Enum):
    """Who else knows of a flight."""

    HERE = "here"  # nobody
    LEASED = "leased"  # it is led here, and every process sees the lease
    ELSEWHERE = "elsewhere"  # another process leads it


_HERE: Final = Where.HERE


class Flight:
    """One key's call upstream; `until` is when its lease ends, in the loop's time."""

    __slots__ = ("key", "leader", "timer", "until", "waiting", "where")

    def __init__(self, key: bytes, leader: str, until: float) -> None:
        self.key = key
        self.leader = leader
        self.until = until
        self.where = _HERE
        self.timer: asyncio.TimerHandle | None = None
        self.waiting: OrderedDict[Turn, tuple[str, float]] = OrderedDict()  # id and lease_s


class Flights:
    """The flights of one process: a `Coalescing`."""

    def __init__(self) -> None:
        self._flights: dict[bytes, Flight] = {}
        self._waiting = 0
        self._next_sweep = 0.0
        self._led = self._landed = self._alone = self._elected = 0

    def __repr__(self) -> str:
        return f"Flights({len(self._flights)} in flight, {self._waiting} waiting)"

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: bytes) -> bool:
        return key in self._flights

    def stats(self) -> FlightStats:
        """Return what is going on in this process."""
        return FlightStats(
            flights=len(self._flights),
            waiting=self._waiting,
            led=self._led,
            landed=self._landed,
            alone=self._alone,
            elected=self._elected,
        )

    @property
    def waiting(self) -> int:
        """Return how many calls wait."""
        return self._waiting

    def waited_for(self) -> Iterator[Flight]:
        """Return the flights that calls wait for."""
        return (one for one in self._flights.values() if one.waiting)

    def lead(self, key: bytes, call_id: str, lease_s: float) -> bool:
        """Lead where nobody does; False: it is for `join` to say."""
        if self._begin(key, call_id, lease_s) is not _LEAD:
            return False
        self._led += 1
        return True

    async def join(
        self,
        key: bytes,
        call_id: str,
        *,
        lease_s: float,
        patience_s: float,
        waits: Waits = unasked,
    ) -> Landing:
        """Lead, or wait for who leads; suspends only to wait."""
        landing = await self.seat(key, call_id, lease_s=lease_s, patience_s=patience_s, waits=waits)
        self.count(landing)
        return landing

    async def seat(
        self, key: bytes, call_id: str, *, lease_s: float, patience_s: float, waits: Waits
    ) -> Landing:
        """Do what `join` does, where it is not decided yet that the call leads."""
        flight = self._begin(key, call_id, lease_s)
        if isinstance(flight, Role):
            return flight
        return await self._follow(flight, call_id, lease_s, patience_s, waits)

    def _begin(self, key: bytes, call_id: str, lease_s: float) -> Flight | Role:
        """Lead, where no flight is under way and there is room; return the flight to wait for."""
        flight = self._flights.get(key)
        now = asyncio.get_running_loop().time()
        if flight is None:
            if len(self._flights) >= MAX_FLIGHTS and not self._room(now):
                return _ALONE
        elif flight.until > now or flight.waiting:
            return flight
        self._flights[key] = Flight(key, call_id, now + lease_s)
        return _LEAD

    def count(self, landing: Landing) -> None:
        """Note what was decided for a call."""
        if landing is _LEAD:
            self._led += 1
        elif landing is _ALONE:
            self._alone += 1
        else:
            self._landed += 1

    def leased(self, key: bytes, call_id: str) -> None:
        """Note that every process knows who leads."""
        flight = self._flights.get(key)
        if flight is not None and flight.leader == call_id:
            flight.where = Where.LEASED

    async def step_back(
        self,
        key: bytes,
        call_id: str,
        leader: str,
        *,
        lease_s: float,
        patience_s: float,
        waits: Waits,
    ) -> Landing:
        """Wait after all, before every other, because `leader` in another process leads."""
        flight = self._flights.get(key)
        if flight is None or flight.leader != call_id:
            return await self.seat(
                key, call_id, lease_s=lease_s, patience_s=patience_s, waits=waits
            )
        flight.leader = leader
        flight.where = Where.ELSEWHERE
        self._arm(flight, lease_s)
        return await self._follow(flight, call_id, lease_s, patience_s, waits, first=True)

    def finish(self, key: bytes, call_id: str, end: Entry | End) -> None:
        """Say what became of a call; an entry serves all who wait, whoever brings it."""
        flight = self._flights.get(key)
        if flight is None:
            return
        if isinstance(end, Entry):
            self._land(flight, end)
        elif flight.leader != call_id:
            return
        elif end is _UNSHARED:
            self._land(flight, _ALONE)
        elif self._elect(flight):
            return
        if flight.leader == call_id:
            del self._flights[key]

    def sweep(self) -> int:
        """Forget the flights whose lease ended unheard of and that nobody waits for."""
        now = asyncio.get_running_loop().time()
        lost = [k for k, one in self._flights.items() if one.until <= now and not one.waiting]
        for key in lost:
            del self._flights[key]
        return len(lost)

    async def _follow(
        self,
        flight: Flight,
        call_id: str,
        lease_s: float,
        patience_s: float,
        waits: Waits,
        *,
        first: bool = False,
    ) -> Landing:
        full = len(flight.waiting) >= MAX_FOLLOWERS or self._waiting >= MAX_WAITING
        if full or patience_s <= 0:
            return _ALONE
        loop = asyncio.get_running_loop()
        turn: Turn = loop.create_future()
        flight.waiting[turn] = call_id, lease_s
        if first:
            flight.waiting.move_to_end(turn, last=False)
        if flight.timer is None:
            self._arm(flight, flight.until - loop.time())
        self._waiting += 1
        timer = loop.call_later(patience_s, _give_up, turn)
        try:
            await waits()
            return await turn
        except BaseException:  # cancelled, or a limit allows no waiting
            if turn.done() and not turn.cancelled() and turn.result() is _LEAD:
                self.finish(flight.key, call_id, End.FAILED)
            raise
        finally:
            timer.cancel()
            self._waiting -= 1
            flight.waiting.pop(turn, None)
            if not flight.waiting:
                _disarm(flight)

    def _land(self, flight: Flight, landing: Landing) -> None:
        for turn in flight.waiting:
            if not turn.done():
                turn.set_result(landing)
        flight.waiting.clear()
        _disarm(flight)

    def _elect(self, flight: Flight) -> bool:
        """Have the call lead that waits longest; False where none does."""
        while flight.waiting:
            turn, (call_id, lease_s) = flight.waiting.popitem(last=False)
            if not turn.done():
                flight.leader = call_id
                flight.where = Where.HERE
                self._arm(flight, lease_s)
                turn.set_result(Role.LEAD)
                self._elected += 1
                return True
        _disarm(flight)
        return False

    def _arm(self, flight: Flight, lease_s: float) -> None:
        """Begin a lease; its end matters only to those who wait."""
        loop = asyncio.get_running_loop()
        flight.until = loop.time() + lease_s
        _disarm(flight)
        if flight.waiting:
            flight.timer = loop.call_at(flight.until, self._overdue, flight)

    def _overdue(self, flight: Flight) -> None:
        """End a lease that nothing was heard of."""
        flight.timer = None
        if self._flights.get(flight.key) is flight:
            self.finish(flight.key, flight.leader, End.FAILED)

    def _room(self, now: float) -> bool:
        """Make room for another flight, once a second at most: it looks at all of them."""
        if now < self._next_sweep:
            return False
        self._next_sweep = now + SWEEP_S
        return self.sweep() > 0


def _disarm(flight: Flight) -> None:
    if flight.timer is not None:
        flight.timer.cancel()
        flight.timer = None


def _give_up(turn: Turn) -> None:
    if not turn.done():
        turn.set_result(Role.ALONE)
