"""Answers to keep, and stores to keep them in, whose clock the test sets.

Knows: how each store is opened. Must not know: what a test expects of them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from extproc.answers import Entry
from extproc.stores.answers import MemoryAnswers
from extproc.stores.redis_answers import RedisAnswers
from extproc.stores.tiered_answers import TieredAnswers
from tests.ledgers import Clock, Errors

ENOUGH = 64 * 2**20
TTL_MS = 300_000


def key(name: object) -> bytes:
    """Return a key like those of the product: 32 bytes."""
    return blake2b(repr(name).encode(), digest_size=32).digest()


def entry(now_ms: int, **more: Any) -> Entry:
    """Return an answer stored now."""
    values: dict[str, Any] = {
        "endpoint": "chat",
        "tenant": "acme",
        "model": "small",
        "provider": "a",
        "served_model": "small-2024",
        "stored_ms": now_ms,
        "expires_ms": now_ms + TTL_MS,
        "form": "json",
        "usage": (10, 5, 0),
        "body": b'{"id": "x"}',
    }
    return Entry(**{**values, **more})


class Bench:
    """One process's store, its clock and its errors."""

    kind = ""
    store: MemoryAnswers | RedisAnswers | TieredAnswers

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.errors = Errors()

    @property
    def now_ms(self) -> int:
        """Return the test's time."""
        return round(self.clock.now * 1000)

    async def start(self) -> None:
        """Begin."""

    async def stop(self) -> None:
        """Leave nothing behind."""

    async def quiet(self) -> None:
        """Wait until what was put shows."""

    def put(self, name: object, **more: Any) -> Entry:
        """Put an answer stored now."""
        made = entry(self.now_ms, **more)
        self.store.put(key(name), made)
        return made

    async def get(self, name: object) -> Entry | None:
        """Look one up now."""
        return await self.store.get(key(name), self.now_ms)


class MemoryBench(Bench):
    kind = "memory"

    def __init__(self, max_bytes: int = ENOUGH, *, clock: Clock | None = None, **more: Any) -> None:
        super().__init__(clock)
        self.store: MemoryAnswers = MemoryAnswers(max_bytes, clock=self.clock, **more)


def _options(bench: Bench, timeout_s: float) -> dict[str, Any]:
    return {
        "timeout_s": timeout_s,
        "clock": bench.clock,
        "observer": bench.errors,
        "new_id": lambda: os.urandom(16),
    }


class RedisBench(Bench):
    kind = "redis"

    def __init__(self, url: str, *, timeout_s: float = 5.0, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self.forgotten: list[tuple[str | None, str | None]] = []
        self.store: RedisAnswers = RedisAnswers(
            url, **_options(self, timeout_s), forget=self._forget
        )

    async def _forget(self, *, tenant: str | None = None, model: str | None = None) -> None:
        self.forgotten.append((tenant, model))

    async def start(self) -> None:
        await self.store.start()

    async def stop(self) -> None:
        await self.store.close()

    async def quiet(self) -> None:
        await self.store.writer.drained()


class TieredBench(Bench):
    kind = "tiered"

    def __init__(
        self, url: str, *, timeout_s: float = 5.0, clock: Clock | None = None, **more: Any
    ) -> None:
        super().__init__(clock)
        near = MemoryAnswers(ENOUGH, clock=self.clock)
        self.store: TieredAnswers = TieredAnswers.open(
            near, url, **_options(self, timeout_s), **more
        )

    async def start(self) -> None:
        await self.store.start()

    async def stop(self) -> None:
        await self.store.close()

    async def quiet(self) -> None:
        await self.store.far.writer.drained()


async def until(what: Callable[[], Any], patience_s: float = 10.0) -> None:
    """Poll until it is so."""
    async with asyncio.timeout(patience_s):
        while not what():
            await asyncio.sleep(0.005)
