"""The answers that all processes share, in Redis, behind the ones that each keeps itself.

Knows: Redis, the names it owns there, the stored form. Must not know: what a key is made of, HTTP.
Failure mode: bypass. A Redis that is down, slow, hung or emptied is a miss within the timeout, and
none at all while the breaker is open; every failure is counted. Puts are queued and written later.

All names share one hash tag, so that they live in one slot of a Redis Cluster:
  {llm-edge:answers}:entry:<key>  string: an answer by msgpack, its body by zlib where that helps
  {llm-edge:answers}:purged       hash: id (random, one for the life of the data), n (purges so
                                  far), and for each thing purged the n of its purge
A key already says whose it is, so that no two tenants can meet at one name; the form repeats key,
tenant and model, and what does not match is not served. An answer carries the id and n its process
knew: a purge raises n, a flush changes the id, and older answers are dead without being touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import zlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import msgspec

from extproc.answers import Entry, PurgeFailed
from extproc.ports import Observer
from extproc.stores.cluster import slot_of
from extproc.stores.guarded import STORE, Command, GuardedLink
from extproc.stores.link import Unavailable
from extproc.stores.scripts import Script
from extproc.stores.writer import Writer

log: Final = logging.getLogger(__name__)

PREFIX: Final = b"{llm-edge:answers}:"
ENTRY: Final = PREFIX + b"entry:"
PURGED: Final = PREFIX + b"purged"
PURGE: Final = Script.load("purge.lua")
MAX_PURGES: Final = 1_024
# In one round trip: 3 MB of usual embeddings, which a network of 1 Gbit/s moves within the timeout.
MAX_ASKED: Final = 512
MIN_PACKED_BYTES: Final = 1_024  # below it zlib saves less than a small string of Redis costs
LEVEL: Final = 1  # of zlib: JSON shrinks to a quarter at 100 MB/s, at level 6 to a fifth at 30
MIN_THREAD_BYTES: Final = 262_144  # unpacking more is a thread's work: half a millisecond and up
MAX_BODY_BYTES: Final = 64 * 2**20  # no more is unpacked, whatever Redis holds
WRITE_S: Final = 1.0
WATCH_S: Final = 0.25  # another process's purge is known here so much later
MEMORY_WATCHES: Final = 4  # times WATCH_S: how often to see whether Redis has room
# Of what Redis may hold: limits and budgets need the rest, and fail closed where it is full.
MAX_SHARE: Final = 0.5
_EVERYTHING: Final = (None, None)
_encode: Final = msgspec.msgpack.Encoder().encode
_field: Final = msgspec.json.Encoder().encode
_pair: Final = msgspec.json.Decoder(tuple[str | None, str | None]).decode


class Forget(Protocol):
    """Forget here what another process purged."""

    def __call__(
        self, *, tenant: str | None = None, model: str | None = None
    ) -> Awaitable[None]: ...


class _Kept(msgspec.Struct, array_like=True, gc=False):
    key: bytes
    id: bytes
    n: int
    size: int  # of the body, 0 where it is not packed
    entry: Entry


_decode: Final = msgspec.msgpack.Decoder(_Kept).decode


class RemoteStats(msgspec.Struct, frozen=True):
    """What one process asked of the shared store since the start."""

    hits: int
    misses: int
    failed: int


class RedisAnswers:
    """A `ResponseCache` in Redis. `clock` is unix seconds, `new_id` gives random bytes."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        clock: Callable[[], float],
        observer: Observer,
        new_id: Callable[[], bytes],
        forget: Forget,
        cluster: bool = False,
    ) -> None:
        """Take where Redis is, of a `cluster` any node.

        `forget` is awaited for each purge that some process made, this one included.
        """
        self._clock = clock
        self._observer = observer
        self._new_id = new_id
        self._forget = forget
        # Two, because a lookup must not wait behind somebody's large answer. Nobody waits for a
        # write, so it gets the time that a large one needs.
        slot = slot_of(PREFIX) if cluster else None
        link = partial(GuardedLink, url, clock=clock, observer=observer, slot=slot)
        self.link = link(timeout_s)
        self.writer = Writer(link(max(WRITE_S, timeout_s)), observer)
        self._id = b""  # unknown: what is put then is never served
        self._n = 0
        self._purged: dict[tuple[str | None, str | None], int] = {}
        self._crowded = False
        self._refreshing: asyncio.Task[bool] | None = None
        self._forgetting: set[asyncio.Future[None]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._hits = self._misses = self._failed = 0

    def __repr__(self) -> str:
        return f"RedisAnswers({self.link!r}, {self.writer!r}, n={self._n})"

    async def start(self) -> None:
        """Connect, for a second at most: without Redis the gateway starts as it would go on."""
        await asyncio.gather(self.link.start(), self.writer.start())
        if self.link.usable:
            await self._refresh()  # so that the first answer can be put already
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        """Write what is queued, for a second at most, and close the connections."""
        tasks = [t for t in (self._watcher, self._refreshing) if t is not None]
        for task in (*tasks, *self._forgetting):
            task.cancel()
        await asyncio.gather(*tasks, *self._forgetting, return_exceptions=True)
        await self.writer.close()
        await self.link.close()

    def stats(self) -> RemoteStats:
        """Return what was asked so far."""
        return RemoteStats(self._hits, self._misses, self._failed)

    async def get(self, key: bytes, now_ms: int) -> Entry | None:
        """Return a fresh entry, None after the timeout at the latest."""
        return (await self.get_many((key,), now_ms))[0]

    async def get_many(self, keys: Sequence[bytes], now_ms: int) -> list[Entry | None]:
        """Return fresh entries in one round trip, of the first `MAX_ASKED` keys."""
        asked = keys[:MAX_ASKED]
        not_asked: list[Entry | None] = [None] * (len(keys) - len(asked))
        try:
            # In this order: a purge between the two is seen.
            raws, head = await self.link.ask(
                "cache_get",
                (b"MGET", *[ENTRY + key for key in asked]),
                (b"HMGET", PURGED, b"id", b"n"),
            )
            found = await self._read(asked, raws, head, now_ms)
        except Unavailable:
            self._failed += 1
            return [None] * len(keys)
        misses = found.count(None)
        self._misses += misses
        self._hits += len(found) - misses
        return found + not_asked

    def put(self, key: bytes, entry: Entry) -> None:
        """Queue an entry, as of the purges that are known now and not of those until it is sent."""
        if self._crowded:
            self._observer.store_error(STORE, "cache_crowded")
        elif self._id:
            pack = partial(self._pack, key, self._id, self._n, entry)
            self.writer.submit("cache_put", entry.weight, pack)

    async def purge(self, *, tenant: str | None = None, model: str | None = None) -> None:
        """Raise the number below which such entries are dead. Raises PurgeFailed."""
        field, everything = _field((tenant, model)), _field(_EVERYTHING)
        most = b"%d" % MAX_PURGES
        try:
            await self.link.run(
                *("cache_purge", PURGE, b"1", PURGED, self._new_id(), field, everything, most)
            )
        except Unavailable as error:
            raise PurgeFailed("redis was not told") from error
        await self._refresh()

    async def _read(
        self, keys: Sequence[bytes], raws: Sequence[bytes | None], head: list[Any], now_ms: int
    ) -> list[Entry | None]:
        if not any(raws):
            return [None] * len(keys)
        if not self._knows(head) and not await self._refresh():
            raise Unavailable("what was purged is not known")
        kept = [self._checked(*pair, now_ms) for pair in zip(keys, raws, strict=True)]
        if sum([one.size for one in kept if one is not None]) >= MIN_THREAD_BYTES:
            found, damaged = await asyncio.to_thread(_unpacked_each, kept)
        else:
            found, damaged = _unpacked_each(kept)
        for _ in range(damaged):
            self._observer.store_error(STORE, "cache_unreadable")
        return found

    def _checked(self, key: bytes, raw: bytes | None, now_ms: int) -> _Kept | None:
        """Return what is kept under the key, as it is kept, if it may be served."""
        if raw is None:
            return None
        try:
            kept = _decode(raw)
        except (msgspec.MsgspecError, ValueError):
            # The text of the error may quote the answer.
            self._observer.store_error(STORE, "cache_unreadable")
            return None
        if kept.key != key:
            self._observer.store_error(STORE, "cache_foreign")
            return None
        return kept if kept.entry.expires_ms > now_ms and self._alive(kept) else None

    def _alive(self, kept: _Kept) -> bool:
        entry, purged = kept.entry, self._purged
        return (
            kept.id == self._id != b""
            and kept.n >= purged.get(_EVERYTHING, 0)
            and kept.n >= purged.get((entry.tenant, None), 0)
            and kept.n >= purged.get((None, entry.model), 0)
            and kept.n >= purged.get((entry.tenant, entry.model), 0)
        )

    def _pack(self, key: bytes, id_: bytes, n: int, entry: Entry) -> Command:
        """Return the command that stores it, an empty one where it is over; runs in any thread."""
        left_ms = entry.expires_ms - round(self._clock() * 1000)
        if left_ms <= 0:
            return ()
        body, size = entry.body, 0
        if len(body) >= MIN_PACKED_BYTES:
            packed = zlib.compress(body, LEVEL)
            if len(packed) < len(body):
                body, size = packed, len(body)
        kept = _Kept(key, id_, n, size, msgspec.structs.replace(entry, body=body))
        try:
            form = _encode(kept)
        except (UnicodeEncodeError, OverflowError):
            # Half a surrogate pair in the name of a tenant, or a count that 64 bits do not hold.
            self._observer.store_error(STORE, "cache_unwritable")
            return ()
        return b"SET", ENTRY + key, form, b"PX", b"%d" % left_ms

    def _knows(self, head: list[Any]) -> bool:
        return head == [self._id or None, b"%d" % self._n]

    async def _watch(self) -> None:
        """Notice the purges of other processes, because a hit in this one asks nobody."""
        for turn in itertools.count():
            if self.link.usable:
                with contextlib.suppress(Unavailable):
                    (head,) = await self.link.ask("cache_watch", (b"HMGET", PURGED, b"id", b"n"))
                    if not self._knows(head):
                        await self._refresh()
                    if turn % MEMORY_WATCHES == 0:
                        await self._look_for_room()
            await asyncio.sleep(WATCH_S)

    async def _look_for_room(self) -> None:
        """See whether Redis is so full that answers must not take more of it."""
        (info,) = await self.link.ask("cache_watch", (b"INFO", b"memory"))
        facts = dict(line.partition(b":")[::2] for line in info.splitlines())
        most = int(facts.get(b"maxmemory", 0))  # 0: as much as the machine has
        self._crowded = 0 < most * MAX_SHARE < int(facts.get(b"used_memory", 0))

    async def _refresh(self) -> bool:
        """Read what was purged, once for all who ask meanwhile; say whether it is known now."""
        if self._refreshing is None:
            self._refreshing = asyncio.get_running_loop().create_task(self._reread())
            self._refreshing.add_done_callback(self._reread_once)
        return await asyncio.shield(self._refreshing)

    def _reread_once(self, _: asyncio.Task[bool]) -> None:
        self._refreshing = None

    async def _reread(self) -> bool:
        try:
            (flat,) = await self.link.ask("cache_refresh", (b"HGETALL", PURGED))
            if b"id" not in flat[::2] or b"n" not in flat[::2]:  # new, or emptied
                _, _, flat = await self.link.ask(
                    "cache_refresh",
                    (b"HSETNX", PURGED, b"id", self._new_id()),
                    (b"HSETNX", PURGED, b"n", b"0"),
                    (b"HGETALL", PURGED),
                )
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            id_, n = fields.pop(b"id"), int(fields.pop(b"n"))
            purged = {_pair(name): int(number) for name, number in fields.items()}
        except Unavailable:
            return False
        except (LookupError, ValueError, msgspec.MsgspecError):
            self._observer.store_error(STORE, "cache_unreadable")
            return False
        known, first, same = self._purged, not self._id, id_ == self._id
        self._id, self._n, self._purged = id_, n, purged
        if not same and not first:
            log.warning("redis was emptied: answers kept here are dropped with it")
            self._forget_soon(*_EVERYTHING)  # a purge may have been lost in it
            return True
        for name, number in purged.items():
            if number > known.get(name, 0):
                self._forget_soon(*name)
        return True

    def _forget_soon(self, tenant: str | None, model: str | None) -> None:
        """Forget without having lookups wait until the memory is given back."""
        work = asyncio.ensure_future(self._forget(tenant=tenant, model=model))
        self._forgetting.add(work)
        work.add_done_callback(self._forgetting.discard)


def _unpacked_each(kept: Sequence[_Kept | None]) -> tuple[list[Entry | None], int]:
    """Return the entries, and how many could not be read; runs in any thread."""
    found: list[Entry | None] = []
    damaged = 0
    for one in kept:
        try:
            found.append(None if one is None else _unpacked(one))
        except (ValueError, zlib.error):
            found.append(None)
            damaged += 1
    return found, damaged


def _unpacked(kept: _Kept) -> Entry:
    """Return the entry with its body whole. Raises zlib.error, ValueError for another size."""
    if not kept.size:
        return kept.entry
    unpacking = zlib.decompressobj()
    body = unpacking.decompress(kept.entry.body, min(kept.size, MAX_BODY_BYTES) + 1)
    if len(body) != kept.size or not unpacking.eof:
        raise ValueError("another size")
    return msgspec.structs.replace(kept.entry, body=body)
