"""The ledger that several processes share: every admission is one script in Redis.

Knows: the scripts, their keys, what to do without Redis. Must not know: the wire, the transports.
Failure mode: rates, counts and concurrency go on in this process alone, each limit divided by the
number of replicas; a call under a budget of money is refused (503 `store_unavailable`), because a
budget that nobody can read cannot be kept. Settlements wait and are sent again: each counts once.
A caller that gives up takes its reservation back, also one that Redis has not come to yet.

All names share one hash tag, so that a call's accounts live in one slot of a Redis Cluster:
  {llm-edge}:r:<id>     string: what a reservation charged, until it is settled or its lease ends
  {llm-edge}:a:<name>   hash: an account; t is the rate's arrival time, wN and uN slot N's counter
  {llm-edge}:c:<name>   sorted set: the reservations that hold a slot, by their lease's end in ms
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Final

import hiredis
import msgspec

from extproc.errors import Denied
from extproc.hold import Hold
from extproc.limits import US_PER_MS, Ask, Grant, Settlement, Unit
from extproc.policies import quota, standing
from extproc.policies.limit_headers import limit_headers
from extproc.policies.quota import Held, Windows
from extproc.policies.refuse import label_of, refuse, refuse_concurrency
from extproc.ports import Look, Observer
from extproc.stores.breaker import Breaker
from extproc.stores.cluster import slot_of
from extproc.stores.link import Link, Say, Unavailable
from extproc.stores.memory import MemoryLedger
from extproc.stores.redis_accounts import account_of, read_accounts
from extproc.stores.scripts import ADMIT, SETTLE, Script, rules_blob, scaled
from extproc.stores.turns import Turns

log: Final = logging.getLogger(__name__)

PREFIX: Final = "{llm-edge}:"
MAX_PENDING: Final = 50_000  # settlements that wait for Redis, about 20 MB
MAX_SENT: Final = 1_000  # of them at once: admissions need room on the connection too
START_S: Final = 1.0
CLOSE_S: Final = 1.0
PROBE_S: Final = 0.1
RETRY_S: Final = 1
ADMITTED, REFUSED, FULL = 1, 2, 3  # what admit.lua says; anything else is no decision
_pack: Final = msgspec.msgpack.Encoder().encode


class _Verdict:
    __slots__ = ("full", "held", "now_us", "output", "status", "windows")

    def __init__(self, status: int, output: int, full: int, held: list[Held], now_us: int) -> None:
        self.status = status
        self.output = output
        self.full = full
        self.held = held
        self.now_us = now_us
        self.windows: Windows = quota.windows_at(now_us)


class RedisLedger:
    """Reservations in Redis. `clock` is unix seconds, `replicas` how many processes share it."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        replicas: int,
        clock: Callable[[], float],
        observer: Observer,
        cluster: bool = False,
    ) -> None:
        """Take where Redis is, of a `cluster` any node, and how long a command may take."""
        self._clock = clock
        self._observer = observer
        self._replicas = replicas
        slot = slot_of(PREFIX.encode()) if cluster else None
        self._link = Link(url, timeout_s, self._load, slot=slot)
        self._breaker = Breaker(clock)
        self._local = MemoryLedger(clock, observer)
        self._turns = Turns()
        self._mine: dict[str, tuple[tuple[str, ...], float]] = {}
        self._active: dict[str, int] = {}  # this process's reservations by account
        self._pending: deque[tuple[str, tuple[bytes, ...]]] = deque()
        self._sent = 0
        self._watcher: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"RedisLedger({self._link!r}, {self._breaker!r}, pending={len(self._pending)})"

    async def start(self) -> None:
        """Connect, for a second at most: without Redis the gateway starts as it would go on."""
        self._link.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                await self._link.connected.wait()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        """Send what is settled, for a second at most, and close the connection."""
        self.flush()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                while self._pending or self._sent:
                    await asyncio.sleep(PROBE_S / 10)
                    self.flush()
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        await self._link.close()
        await self._local.close()

    async def admit(self, ask: Ask) -> Grant:
        """Reserve, over all of the call's accounts or none. Raises Denied."""
        if self._breaker.is_open:
            return await self._alone(ask)
        try:
            return await self._shared(ask)
        except Unavailable:
            self._observer.store_error("redis", "admit")
            self._breaker.failed()
            self._give_up(ask)
            return await self._alone(ask)
        except asyncio.CancelledError:
            self._give_up(ask)
            raise

    async def look(self, ask: Ask) -> Look:
        """Say what `admit` would do now, but for waiting; nothing is held against Redis."""
        if not self._breaker.is_open:
            try:
                held, now_us = await read_accounts(self._link, PREFIX, ask.subjects)
            except Unavailable:
                pass  # as `admit` would go on: alone
            else:
                return standing.look(ask, held, now_us, quota.windows_at(now_us))
        found = await self._local.look(self._own(ask))
        if _has_budget(ask):
            return Look(found.output, found.standings, _unreadable())
        return found

    def settle(self, settlement: Settlement) -> None:
        """Queue the truth; a call that was admitted without Redis is settled without it."""
        hold = settlement.hold
        if hold is None:
            self._local.settle(settlement)
            return
        change = quota.difference(hold.amount, settlement)
        self._queue(settlement.id, hold.accounts, 0, tuple([b"%d" % one for one in change]))

    def flush(self) -> None:
        """Send what was settled in one write."""
        self._local.flush()
        if self._breaker.is_open:
            return
        while self._pending and self._sent < MAX_SENT:
            call_id, parts = self._pending.popleft()
            try:
                turn = self._send(SETTLE, parts)
            except Unavailable:
                self._pending.appendleft((call_id, parts))
                return
            self._sent += 1
            turn.add_done_callback(partial(self._acknowledge, call_id, parts))

    def sweep(self) -> int:
        """Forget what is over; returns how many leases of this process ended. Once a second."""
        now = self._clock()
        lost = [id_ for id_, (_, end) in self._mine.items() if end <= now]
        for id_ in lost:
            self._release(id_)
        self.flush()
        return len(lost) + self._local.sweep()

    def sync(self) -> None:
        """Do nothing: how long Redis keeps its data is for its persistence to say."""

    async def _shared(self, ask: Ask) -> Grant:
        message = self._message(ask)
        verdict: _Verdict | None = None
        name = self._turns.queued(ask.subjects)
        if name is None:
            verdict = await self._decide(ask, message)
            name = self._blocked_by(ask, verdict)
        if name is not None:
            async with self._turns.of(name) as turn:
                while await turn.again():
                    verdict = await self._decide(ask, message)
                    name = self._blocked_by(ask, verdict)
                    if name is None:
                        break
        if verdict is None:
            verdict = await self._decide(ask, message)
        if verdict.status == ADMITTED:
            return self._granted(ask, verdict)
        raise self._denied(ask, verdict)

    async def _decide(self, ask: Ask, message: tuple[bytes, ...]) -> _Verdict:
        reply = await self._send(ADMIT, message)
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            reply = await self._send(ADMIT, message, whole=True)
        if isinstance(reply, hiredis.ReplyError):
            self._complain(reply)
            raise Unavailable("refused")
        self._breaker.succeeded()
        status, now_us, output, full, *reads = reply
        if status not in {ADMITTED, REFUSED, FULL}:
            raise Unavailable("given up already")
        held = [
            (account_of(rules, read), rules)
            for (_, rules), read in zip(ask.subjects, reads, strict=True)
        ]
        return _Verdict(status, output, full, held, now_us)

    def _granted(self, ask: Ask, verdict: _Verdict) -> Grant:
        held, windows = verdict.held, verdict.windows
        amount = quota.amounts(ask, verdict.output)
        quota.charge(held, amount, verdict.now_us, windows)  # as the script did, for the headers
        names = tuple([name for name, _ in ask.subjects])
        self._mine[ask.id] = (names, self._clock() + ask.lease_us / 1e6)
        active = self._active
        for name in names:
            active[name] = active.get(name, 0) + 1
        accounts = tuple([(name, rules.mask) for name, rules in ask.subjects])
        headers = limit_headers(ask.dialect, ask.policy, held, verdict.now_us, windows)
        return Grant(verdict.output, headers, Hold(accounts, amount, windows))

    def _denied(self, ask: Ask, verdict: _Verdict) -> Denied:
        held, now_us, windows = verdict.held, verdict.now_us, verdict.windows
        headers = limit_headers(ask.dialect, ask.policy, held, now_us, windows)
        if verdict.status == FULL:
            rules = held[verdict.full - 1][1]
            self._observer.limited(f"{rules.scope.name.lower()}/concurrent_requests")
            return refuse_concurrency(rules, headers)
        _, refusal = quota.decide(ask, held, now_us, windows)
        assert refusal is not None, "the script refuses what the policy would not"
        self._observer.limited(label_of(refusal))
        return refuse(refusal, headers)

    def _blocked_by(self, ask: Ask, verdict: _Verdict) -> str | None:
        """Return the account that calls in flight may make room in soon."""
        if verdict.status == ADMITTED:
            return None
        if verdict.status == FULL:
            return ask.subjects[verdict.full - 1][0]
        _, refusal = quota.decide(ask, verdict.held, verdict.now_us, verdict.windows)
        if refusal is None or refusal.meter is None or refusal.meter.unit is Unit.REQUESTS:
            return None
        name = next(name for name, rules in ask.subjects if rules is refusal.rules)
        return name if refusal.wait_us is not None and name in self._active else None

    async def _alone(self, ask: Ask) -> Grant:
        if _has_budget(ask):
            raise _unreadable()
        self._observer.store_error("redis", "local")
        return await self._local.admit(self._own(ask))

    def _own(self, ask: Ask) -> Ask:
        """Return the call as this process alone limits it."""
        own = tuple([(name, scaled(rules, self._replicas)) for name, rules in ask.subjects])
        return ask.of(own)

    def _message(self, ask: Ask) -> tuple[bytes, ...]:
        call = (ask.id, ask.lease_us // US_PER_MS, ask.fixed, ask.per_output, ask.output)
        keys = _keys(ask.id, [name for name, _ in ask.subjects])
        blobs = [rules_blob(rules) for _, rules in ask.subjects]
        return (b"%d" % len(keys), *keys, _pack(call), *blobs)

    def _give_up(self, ask: Ask) -> None:
        accounts = tuple([(name, rules.mask) for name, rules in ask.subjects])
        self._queue(ask.id, accounts, ask.lease_us // US_PER_MS, (b"", b"", b""))
        self.flush()

    def _queue(
        self,
        call_id: str,
        accounts: tuple[tuple[str, int], ...],
        remember_ms: int,
        change: tuple[bytes, ...],
    ) -> None:
        if len(self._pending) >= MAX_PENDING:
            self._pending.popleft()
            self._observer.store_error("redis", "settlement_lost")  # its lease stands as charged
        keys = _keys(call_id, [name for name, _ in accounts])
        masks = [b"%d" % mask for _, mask in accounts]
        parts = (b"%d" % len(keys), *keys, call_id.encode(), b"%d" % remember_ms, *change, *masks)
        self._pending.append((call_id, parts))

    def _acknowledge(
        self, call_id: str, parts: tuple[bytes, ...], turn: asyncio.Future[Any]
    ) -> None:
        self._sent -= 1
        if turn.cancelled():
            return
        failure = turn.exception()
        reply = None if failure else turn.result()
        if isinstance(reply, hiredis.ReplyError):
            if str(reply).startswith("NOSCRIPT"):
                with contextlib.suppress(Unavailable):
                    again = self._send(SETTLE, parts, whole=True)
                    self._sent += 1
                    again.add_done_callback(partial(self._acknowledge, call_id, parts))
                    return
            self._complain(reply)
            if str(reply).startswith(("ERR", "WRONGTYPE")):  # no later time will do better
                self._observer.store_error("redis", "settlement_lost")
                self._release(call_id)
                return
            failure = reply
        if failure is not None:
            # Sent again, because what was done once is not done twice.
            self._observer.store_error("redis", "settle")
            self._breaker.failed()
            self._pending.append((call_id, parts))
            return
        self._release(call_id)
        self._turns.news()
        if self._pending and not self._sent:
            self.flush()

    def _release(self, call_id: str) -> None:
        mine = self._mine.pop(call_id, None)
        if mine is None:
            return
        active = self._active
        for name in mine[0]:
            left = active[name] - 1
            if left:
                active[name] = left
            else:
                del active[name]

    def _send(
        self, script: Script, parts: tuple[bytes, ...], *, whole: bool = False
    ) -> asyncio.Future[Any]:
        if whole:
            return self._link.send(b"EVAL", script.text, *parts)
        return self._link.send(b"EVALSHA", script.sha, *parts)

    def _complain(self, reply: hiredis.ReplyError) -> None:
        code = str(reply).partition(" ")[0]  # the rest may quote a key
        hint = {"hint": "write state.redis.cluster: true"} if code == "MOVED" else {}
        log.error("redis refuses a script", extra={"code": code, **hint})

    async def _load(self, say: Say) -> None:
        for script in (ADMIT, SETTLE):
            reply = await say(b"SCRIPT", b"LOAD", script.text)
            if isinstance(reply, hiredis.ReplyError):
                self._complain(reply)
                raise Unavailable("no scripts")

    async def _watch(self) -> None:
        """Ask again where Redis failed, so that no call has to find out."""
        while True:
            await asyncio.sleep(PROBE_S)
            if self._breaker.is_open and self._breaker.probe():
                try:
                    await self._link.send(b"PING")
                except Unavailable:
                    continue
                self._breaker.succeeded()
                log.info("redis answers again")
                self.flush()


def _keys(call_id: str, names: list[str]) -> list[bytes]:
    keys = [f"{PREFIX}r:{call_id}".encode()]
    for name in names:
        keys += _account_keys(name)
    return keys


@lru_cache(maxsize=8192)  # callers by their scopes
def _account_keys(name: str) -> tuple[bytes, bytes]:
    return f"{PREFIX}a:{name}".encode(), f"{PREFIX}c:{name}".encode()


def _has_budget(ask: Ask) -> bool:
    return any(m.unit is Unit.PICO_USD for _, rules in ask.subjects for m in rules.meters)


def _unreadable() -> Denied:
    return Denied(
        "store_unavailable",
        "The budget of this caller cannot be read at the moment.",
        retry_after_s=RETRY_S,
    )
