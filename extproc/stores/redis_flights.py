"""Identical calls at the same time in several processes: one of all goes upstream.

Knows: the lease in Redis, and when to ask for it. Must not know: what a key is made of, HTTP.

{llm-edge:answers}:lease:<key> is a string: the id of the call that leads, or for MARK_MS after its
end what became of it, so that whoever missed the answer a moment before it was stored still finds
it. Each process's own followers wait in it (`flights`); one MGET every POLL_S asks for all of them,
whoever leads, because the entry of the access log that ends a call may come to any process. Asking
was chosen over PUBLISH: the load does not depend on how many wait, a message cannot be missed, and
10 ms are little beside the 50 ms that the log is flushed in.
Failure mode: local. Without Redis each process lets one of its own identical calls go upstream.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeAlias

from extproc.answers import End, Entry, Landing, Role
from extproc.ports import ResponseCache, Waits, unasked
from extproc.stores.flight_stats import FlightStats
from extproc.stores.flights import Flights, Where
from extproc.stores.guarded import Command, GuardedLink
from extproc.stores.link import Unavailable
from extproc.stores.redis_answers import PREFIX
from extproc.stores.scripts import Script
from extproc.stores.writer import Writer

LEASE: Final = PREFIX + b"lease:"
LEASE_END: Final = Script.load("lease_end.lua")
POLL_S: Final = 0.02
MARK_MS: Final = 2_000  # a hundred polls
MAX_ASKED: Final = 500  # leases in one command
OP: Final = "cache_lease"
STORED: Final = b"=stored"  # no id of a call begins like this
UNSHARED: Final = b"=unshared"
NO_WORD: Final = b""

_Asked: TypeAlias = "Sequence[tuple[bytes, str, Where]]"


class RedisFlights:
    """A `Coalescing` over all processes that share a Redis.

    `cache` is where an answer is found that another process stored, `clock` unix seconds, `draw`
    gives numbers in [0, 1). `link` and `writer` are those of the shared answers, because who is
    told that an answer is stored must find it.
    """

    def __init__(
        self,
        link: GuardedLink,
        writer: Writer,
        cache: ResponseCache,
        *,
        clock: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        self._link = link
        self._writer = writer
        self._cache = cache
        self._clock = clock
        self._draw = draw
        self._here = Flights()
        self._poller: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"RedisFlights({self._here!r}, {self._link!r})"

    async def close(self) -> None:
        """Stop asking; those who wait have their own patience."""
        if self._poller is not None:
            self._poller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poller

    def stats(self) -> FlightStats:
        """Return what is going on in this process."""
        return self._here.stats()

    def sweep(self) -> int:
        """Forget what was never heard of again."""
        return self._here.sweep()

    def lead(self, _key: bytes, _call_id: str, _lease_s: float) -> bool:
        """Do nothing: Redis is to be asked."""
        return False

    async def join(
        self,
        key: bytes,
        call_id: str,
        *,
        lease_s: float,
        patience_s: float,
        waits: Waits = unasked,
    ) -> Landing:
        """Lead for all processes, or wait for who does."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_s
        if key in self._here:
            self._ask_from_now_on()
        landing = await self._here.seat(
            key, call_id, lease_s=lease_s, patience_s=patience_s, waits=waits
        )
        while landing is Role.LEAD:
            try:
                landing, holder = await self._take(key, call_id, lease_s)
            except asyncio.CancelledError:
                self._give_back(key, call_id)
                self._here.finish(key, call_id, End.FAILED)
                raise
            if holder is None:
                break
            self._ask_from_now_on()
            landing = await self._here.step_back(
                key,
                call_id,
                holder,
                lease_s=lease_s,
                patience_s=deadline - loop.time(),
                waits=waits,
            )
        self._here.count(landing)
        return landing

    def finish(self, key: bytes, call_id: str, end: Entry | End) -> None:
        """Say what became of a leader's call, here and then, behind what was put, everywhere."""
        if end is End.FAILED:
            self._give_back(key, call_id)  # before whoever is elected here asks for the lease
        self._here.finish(key, call_id, end)
        if end is not End.FAILED:
            self._tell_later(key, call_id, UNSHARED if end is End.UNSHARED else STORED)

    async def poll(self) -> None:
        """Ask once for the leases of all flights that somebody waits for here."""
        known = [
            (one.key, one.leader, one.where)
            for one in self._here.waited_for()
            if one.where is not Where.HERE
        ]
        for at in range(0, len(known), MAX_ASKED):
            await self._ask(known[at : at + MAX_ASKED])

    async def _take(self, key: bytes, call_id: str, lease_s: float) -> tuple[Landing, str | None]:
        """Take the lease; return what to do, or who else holds it."""
        name, own = LEASE + key, call_id.encode()
        take = b"SET", name, own, b"NX", b"PX", b"%d" % max(1, round(lease_s * 1000))
        taken: bytes | None = None
        held: bytes | None = None
        while taken is None and held is None:  # it may end between the two
            try:
                taken, held = await self._link.ask(OP, take, (b"GET", name))
            except Unavailable:
                return Role.LEAD, None
        if taken is not None or held is None or held == own:
            self._here.leased(key, call_id)
            return Role.LEAD, None
        if held in {STORED, UNSHARED}:
            landing = await self._look(key, held)
            self._here.finish(key, call_id, landing if isinstance(landing, Entry) else End.UNSHARED)
            return landing, None
        return Role.LEAD, held.decode(errors="replace")

    async def _look(self, key: bytes, word: bytes) -> Entry | Role:
        """Return what a call that has ended left behind."""
        entry = None
        if word == STORED:
            entry = await self._cache.get(key, round(self._clock() * 1000))
        return Role.ALONE if entry is None else entry

    def _give_back(self, key: bytes, call_id: str) -> None:
        """End a lease on the connection it was asked for on, so after that and before others."""
        try:
            self._link.send(OP, _end(key, call_id, NO_WORD))
        except Unavailable:
            self._tell_later(key, call_id, NO_WORD)

    def _tell_later(self, key: bytes, call_id: str, word: bytes) -> None:
        self._writer.submit(OP, len(key), partial(_end, key, call_id, word), vital=True)

    def _ask_from_now_on(self) -> None:
        if self._poller is None or self._poller.done():
            self._poller = asyncio.get_running_loop().create_task(self._keep_asking())

    async def _keep_asking(self) -> None:
        while self._here.waiting:
            await asyncio.sleep(POLL_S * (0.75 + self._draw() / 2))  # not all processes at once
            await self.poll()

    async def _ask(self, asked: _Asked) -> None:
        if not self._link.usable:
            for key, leader, where in asked:
                if where is Where.ELSEWHERE:  # nothing will be heard of it: have one lead here
                    self._here.finish(key, leader, End.FAILED)
            return
        try:
            (words,) = await self._link.ask(OP, (b"MGET", *[LEASE + key for key, _, _ in asked]))
        except Unavailable:
            return
        for (key, leader, _), word in zip(asked, words, strict=True):
            if word is None:
                self._here.finish(key, leader, End.FAILED)
            elif word in {STORED, UNSHARED}:
                landing = await self._look(key, word)
                found = landing if isinstance(landing, Entry) else End.UNSHARED
                self._here.finish(key, leader, found)


def _end(key: bytes, call_id: str, word: bytes) -> Command:
    return (
        *(b"EVAL", LEASE_END.text, b"1", LEASE + key),
        *(call_id.encode(), word, b"%d" % MARK_MS),
    )
