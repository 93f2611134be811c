"""Ledgers for tests, on memory and on a real Redis, whose clock the test sets.

Knows: where each ledger keeps its counters. Must not know: what a test expects of them.
"""

from __future__ import annotations

import asyncio
import itertools
from hashlib import sha1
from typing import Any

import pytest

from extproc.errors import Denied
from extproc.limits import SLOTS, US_PER_S, Ask, Grant, Rules, Scope, Settlement
from extproc.policies import quota
from extproc.ports import SilentObserver
from extproc.schema import Tier as Written
from extproc.stores import memory, redis_accounts, redis_ledger, scripts, turns
from extproc.stores.journal import Journal
from extproc.stores.memory import MemoryLedger
from extproc.stores.redis_ledger import RedisLedger
from extproc.stores.scripts import Script
from extproc.tiers import rules_of
from tests.redis_server import RedisServer

NOON = 1_788_177_600  # 2026-08-31 12:00:00 UTC, the last day of a month
LEASE_S = 60
CLOCK = "{llm-edge}:clock"


class Clock:
    """Unix seconds, as a test sets them."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Errors(SilentObserver):
    """Remembers failures and the limits that were hit."""

    def __init__(self) -> None:
        self.failures: list[tuple[str, str]] = []
        self.limits: list[str] = []

    def store_error(self, store: str, op: str) -> None:
        self.failures.append((store, op))

    def limited(self, limit: str) -> None:
        self.limits.append(limit)


def rules(scope: Scope = Scope.KEY, **limits: Any) -> Rules:
    """Compile limits of one scope."""
    made = rules_of(scope, Written(**limits))
    assert made is not None
    return made


def ask(call_id: str, *subjects: tuple[str, Rules], **more: Any) -> Ask:
    """Build a call of 10 prompt tokens and 5 output tokens at 1,000 and 4,000 pico-USD."""
    values: dict[str, Any] = {
        "id": call_id,
        "dialect": "openai",
        "policy": b"",
        "subjects": subjects,
        "fixed": (1, 10, 10_000),
        "per_output": (0, 1, 4_000),
        "output": 5,
        "lease_us": LEASE_S * US_PER_S,
    }
    return Ask(**{**values, **more})


class Bench:
    """One ledger, its clock and its errors; `counters` looks into it from outside."""

    kind = ""
    ledger: MemoryLedger | RedisLedger

    def __init__(self) -> None:
        self.clock = Clock()
        self.errors = Errors()
        self.ids = (f"id-{n}" for n in itertools.count(1))

    async def start(self) -> None:
        """Begin."""

    async def stop(self) -> None:
        """Leave nothing behind."""
        await self.ledger.close()

    async def advance(self, seconds: float) -> None:
        """Let time pass, with the housekeeping of every second at the end of it."""
        self.clock.now += seconds
        self.ledger.sweep()

    async def admit(self, *subjects: tuple[str, Rules], **more: Any) -> tuple[str, Grant]:
        """Admit a call and return its id and grant. Raises Denied."""
        call_id = next(self.ids)
        return call_id, await self.ledger.admit(ask(call_id, *subjects, **more))

    async def refused(self, *subjects: tuple[str, Rules], **more: Any) -> Denied:
        """Return the refusal of a call."""
        with pytest.raises(Denied) as caught:
            await self.admit(*subjects, **more)
        return caught.value

    async def settle(self, call_id: str, grant: Grant, *amount: int, certain: bool = True) -> None:
        """Settle a call and wait until it shows."""
        self.ledger.settle(Settlement(call_id, amount, certain, grant.hold))  # type: ignore[arg-type]
        self.ledger.flush()
        await self.quiet()

    async def quiet(self) -> None:
        """Wait until everything settled shows."""

    async def waiting(self, count: int) -> None:
        """Return when so many calls wait for room."""
        queue = self.ledger._turns if isinstance(self.ledger, RedisLedger) else self.ledger._slots
        while len(queue) < count:
            await asyncio.sleep(0)

    def counters(self, name: str) -> tuple[int, ...]:
        """Return the counters of an account by slot, in the current windows."""
        raise NotImplementedError  # because each store keeps them in a form of its own

    def slots(self, name: str) -> int:
        """Return how many calls hold a slot of the account."""
        raise NotImplementedError  # likewise


class MemoryBench(Bench):
    kind = "memory"

    def __init__(self, journal: Journal | None = None) -> None:
        super().__init__()
        self.ledger: MemoryLedger = MemoryLedger(self.clock, self.errors, journal)

    def counters(self, name: str) -> tuple[int, ...]:
        self.ledger.flush()
        accounts = {**self.ledger._accounts, **self.ledger._addresses}
        windows = quota.windows_at(int(self.clock.now) * US_PER_S)
        account = accounts.get(name) or quota.Account()
        return tuple(
            used if number == windows[window] else 0
            for used, number, (_, _, window, _) in zip(
                account.used, account.ids, SLOTS, strict=True
            )
        )

    def slots(self, name: str) -> int:
        account = {**self.ledger._accounts, **self.ledger._addresses}.get(name)
        return account.active if account else 0


class RedisBench(Bench):
    kind = "redis"

    def __init__(self, server: RedisServer, **more: Any) -> None:
        super().__init__()
        self.server = server
        values: dict[str, Any] = {"timeout_s": 5.0, "replicas": 1}
        self.ledger: RedisLedger = RedisLedger(
            server.url, **{**values, **more}, clock=self.clock, observer=self.errors
        )
        self._leases: dict[str, float] = {}

    async def start(self) -> None:
        self._set_clock()
        await self.ledger.start()

    def _set_clock(self) -> None:
        seconds = int(self.clock.now)
        us = round((self.clock.now - seconds) * US_PER_S)
        self.server.client.hset(CLOCK, mapping={"s": seconds, "us": us})

    async def advance(self, seconds: float) -> None:
        await super().advance(seconds)
        self._set_clock()
        for call_id, end in list(self._leases.items()):
            if end <= self.clock.now:  # Redis' own clock ends leases, and is not the test's
                self.server.client.delete(f"{redis_ledger.PREFIX}r:{call_id}")
                del self._leases[call_id]

    async def admit(self, *subjects: tuple[str, Rules], **more: Any) -> tuple[str, Grant]:
        call_id, grant = await super().admit(*subjects, **more)
        self._leases[call_id] = self.clock.now + LEASE_S
        return call_id, grant

    async def quiet(self) -> None:
        while self.ledger._pending or self.ledger._sent:
            await self.ledger._link.send(b"PING")
            self.ledger.flush()

    def counters(self, name: str) -> tuple[int, ...]:
        found = self.server.client.hgetall(f"{redis_ledger.PREFIX}a:{name}")
        windows = quota.windows_at(int(self.clock.now) * US_PER_S)
        return tuple(
            int(found.get(b"u%d" % slot, 0))
            if int(found.get(b"w%d" % slot, -1)) == windows[window]
            else 0
            for slot, (_, _, window, _) in enumerate(SLOTS)
        )

    def slots(self, name: str) -> int:
        now_ms = int(self.clock.now * 1000)
        return int(
            self.server.client.zcount(f"{redis_ledger.PREFIX}c:{name}", f"({now_ms}", "+inf")
        )


def on_the_tests_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Redis take the time from the test instead of its own clock."""
    told = b'redis.call("HMGET", "%s", "s", "us")' % CLOCK.encode()
    text = scripts.ADMIT.text.replace(b'redis.call("TIME")', told)
    assert text != scripts.ADMIT.text
    monkeypatch.setattr(redis_ledger, "ADMIT", Script(text, sha1(text).hexdigest().encode()))
    monkeypatch.setattr(redis_accounts, "TIME", (b"HMGET", CLOCK.encode(), b"s", b"us"))


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody wait for room."""
    monkeypatch.setattr(memory, "WAIT_S", 0.0)
    monkeypatch.setattr(turns, "WAIT_S", 0.0)
