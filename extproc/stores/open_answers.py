"""The stores of answers that a configuration asks for, opened and closed together.

Knows: the configuration and which stores there are. Must not know: how they work, calls, HTTP.
"""

from __future__ import annotations

import os
import random
import time
from typing import Self

from extproc.gateway import Caching
from extproc.ports import Observer
from extproc.schema import Config
from extproc.stores.answers import MemoryAnswers
from extproc.stores.flights import Flights
from extproc.stores.redis_flights import RedisFlights
from extproc.stores.tiered_answers import TieredAnswers


class AnswerStores:
    """What keeps answers and makes calls wait: in this process, or also in Redis."""

    def __init__(
        self,
        near: MemoryAnswers,
        answers: MemoryAnswers | TieredAnswers,
        flights: Flights | RedisFlights,
    ) -> None:
        self.near = near
        self.answers = answers
        self.flights = flights

    @classmethod
    def of(cls, config: Config, observer: Observer) -> Self | None:
        """Make them, None where no answer is to be kept."""
        cache, redis = config.cache, config.state.redis
        if not cache.enabled:
            return None
        near = MemoryAnswers(cache.max_bytes, clock=time.time, idle_s=cache.idle)
        if config.state.store != "redis" or redis is None:
            return cls(near, near, Flights())
        tiered = TieredAnswers.open(
            near,
            redis.url,
            timeout_s=redis.timeout_ms / 1000,
            clock=time.time,
            observer=observer,
            new_id=_new_id,
            cluster=redis.cluster,
        )
        far = tiered.far
        flights = RedisFlights(far.link, far.writer, tiered, clock=time.time, draw=random.random)
        return cls(near, tiered, flights)

    @property
    def caching(self) -> Caching:
        """Return what the flow of a call needs of them."""
        return Caching(self.answers, self.flights)

    async def start(self) -> None:
        """Connect, for a second at most: without Redis each process keeps answers alone."""
        if isinstance(self.answers, TieredAnswers):
            await self.answers.start()

    def sweep(self) -> None:
        """Forget the calls that nothing was heard of."""
        self.flights.sweep()

    async def close(self) -> None:
        """Write what is queued, for a second at most."""
        if isinstance(self.flights, RedisFlights):
            await self.flights.close()
        if isinstance(self.answers, TieredAnswers):
            await self.answers.close()


def _new_id() -> bytes:
    return os.urandom(16)
