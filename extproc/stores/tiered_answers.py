"""Two stores of answers as one: this process's in front, the shared one behind it.

Knows: both and their order. Must not know: how either keeps an answer.
Failure mode: bypass. What is in front is served whether or not Redis is there; while it is not, a
purge elsewhere is unknown here, at most until the entry's time is over. The purge itself says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from extproc.answers import Entry
from extproc.ports import Observer
from extproc.stores.answers import MemoryAnswers
from extproc.stores.redis_answers import RedisAnswers


class TieredAnswers:
    """A `ResponseCache`; what it finds behind it keeps in front as well."""

    remote: ClassVar[bool] = True

    def __init__(self, near: MemoryAnswers, far: RedisAnswers) -> None:
        self.near = near
        self.far = far

    def __repr__(self) -> str:
        return f"TieredAnswers({self.near!r}, {self.far!r})"

    @classmethod
    def open(
        cls,
        near: MemoryAnswers,
        url: str,
        *,
        timeout_s: float,
        clock: Callable[[], float],
        observer: Observer,
        new_id: Callable[[], bytes],
        cluster: bool = False,
    ) -> TieredAnswers:
        """Put a memory store in front of a Redis; arguments as of `RedisAnswers`."""
        far = RedisAnswers(
            url,
            timeout_s=timeout_s,
            clock=clock,
            observer=observer,
            new_id=new_id,
            forget=near.purge,
            cluster=cluster,
        )
        return cls(near, far)

    async def start(self) -> None:
        """Connect, for a second at most."""
        await self.far.start()

    async def close(self) -> None:
        """Write what is queued, for a second at most, and close the connections."""
        await self.far.close()

    def lookup(self, key: bytes, now_ms: int) -> Entry | None:
        """Return a fresh entry that is in front."""
        return self.near.lookup(key, now_ms)

    async def fetch(self, key: bytes, now_ms: int) -> Entry | None:
        """Return a fresh entry from behind, and keep it in front."""
        entry = await self.far.get(key, now_ms)
        if entry is not None:
            self.near.keep(key, entry, now_ms)
        return entry

    async def get(self, key: bytes, now_ms: int) -> Entry | None:
        """Return a fresh entry; suspends only where it is not in front."""
        entry = self.near.lookup(key, now_ms)
        return await self.fetch(key, now_ms) if entry is None else entry

    async def get_many(self, keys: Sequence[bytes], now_ms: int) -> list[Entry | None]:
        """Return fresh entries; asks once for all that are not in front."""
        found = [self.near.lookup(key, now_ms) for key in keys]
        lacking = [key for key, entry in zip(keys, found, strict=True) if entry is None]
        if not lacking:
            return found
        behind = await self.far.get_many(lacking, now_ms)
        for key, entry in zip(lacking, behind, strict=True):
            if entry is not None:
                self.near.keep(key, entry, now_ms)
        rest = iter(behind)
        return [next(rest) if entry is None else entry for entry in found]

    def put(self, key: bytes, entry: Entry) -> None:
        """Offer an entry to both, unless a purge has come since it was stored."""
        if not self.near.purges.covers(entry):
            self.near.put(key, entry)
            self.far.put(key, entry)

    def purged_since(self, tenant: str, model: str, at_ms: int) -> bool:
        """Say whether answers to a call from then have been purged since, as far as known here."""
        return self.near.purged_since(tenant, model, at_ms)

    async def purge(self, *, tenant: str | None = None, model: str | None = None) -> None:
        """Forget here first, then everywhere. Raises PurgeFailed where Redis was not told."""
        await self.near.purge(tenant=tenant, model=model)
        await self.far.purge(tenant=tenant, model=model)
