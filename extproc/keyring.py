"""Keep the authenticator's keys as fresh as the store, and tell the store which were used.

Knows: a key store, the authenticator and how old keys may grow. Must not know: requests, what a
store is made of. Failure mode: stale. While the store cannot be read the keys known last go on
working for MAX_STALE_S, so that is how long a revocation made elsewhere can be late; after that
API keys are refused with `store_unavailable`, and other credentials work on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from extproc.identity import Authenticator
from extproc.ports import Observer
from extproc.schema import State
from extproc.stores.keys import KeyStore, KeyStoreError
from extproc.stores.sqlite_keys import SqliteKeys

log: Final = logging.getLogger(__name__)

POLL_S: Final = 0.25  # a revoked key stops working within a second, poll and all
RETRY_S: Final = 1.0
MAX_STALE_S: Final = 300.0  # outlasts a failover of Redis; a stolen key lives five minutes more
WRITE_USED_S: Final = 5.0


def open_key_store(state: State) -> KeyStore:
    """Return the store that the configuration names. Raises KeyStoreError."""
    if state.store == "redis":
        # Not at the top, because importing redis takes 0.3 s that others need not wait for.
        from extproc.stores.redis_keys import RedisKeys  # noqa: PLC0415

        return RedisKeys(state.redis_url, cluster=state.redis is not None and state.redis.cluster)
    return SqliteKeys(state.dir)


class Keyring:
    """The keys of one process; `clock` is monotonic seconds."""

    def __init__(
        self,
        store: KeyStore,
        identity: Authenticator,
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._identity = identity
        self._observer = observer
        self._clock = clock
        self._fresh_at: float | None = None  # None: never read
        self._current = False  # the authenticator has what was read last
        self._failing: set[str] = set()  # operations, so that each outage is logged once

    @property
    def loaded(self) -> bool:
        """Say whether the keys were ever read: without them no caller can be let in."""
        return self._fresh_at is not None

    async def poll(self) -> bool:
        """Take up what changed; False where the store could not be read. Never raises for it."""
        asked_at = self._clock()
        try:
            if not self._current or await asyncio.to_thread(self._store.changed):
                directory = await asyncio.to_thread(self._store.directory)
                self._identity.replace_directory(directory)
                self._current = True
        except KeyStoreError as error:
            self._failed("read", error)
            if self._fresh_at is None or asked_at - self._fresh_at > MAX_STALE_S:
                self._identity.replace_directory(None)
                self._current = False
            return False
        self._fresh_at = asked_at
        self._failing.discard("read")
        return True

    async def watch(self) -> None:
        """Poll once after a while; a little longer after a failure, itself included."""
        await asyncio.sleep(POLL_S)
        if not await self.poll():
            await asyncio.sleep(RETRY_S - POLL_S)

    async def write_used(self) -> None:
        """Write which keys were used since the last time; what cannot be written waits."""
        used = self._identity.take_used()
        if not used:
            return
        try:
            await asyncio.to_thread(self._store.write_used, used)
        except KeyStoreError as error:
            self._identity.give_back_used(used)  # bounded by the number of keys
            self._failed("write", error)
        else:
            self._failing.discard("write")

    async def note_use(self) -> None:
        """Write once after a while."""
        await asyncio.sleep(WRITE_USED_S)
        await self.write_used()

    async def close(self) -> None:
        """Write what is left and let go of the store."""
        await self.write_used()
        await asyncio.to_thread(self._store.close)

    def _failed(self, op: str, error: KeyStoreError) -> None:
        self._observer.store_error("keys", op)
        if op not in self._failing:
            log.warning("key store failed", extra={"op": op, "reason": str(error)})
        self._failing.add(op)
