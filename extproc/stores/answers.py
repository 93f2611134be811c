"""The answers one process keeps: a window for the new, TinyLFU for those asked for again.

Knows: entries, bytes, moka. Must not know: what a key is made of, Redis, HTTP.

A new answer enters the window, whose least recently used one leaves when room is needed. The first
hit offers it to the main part, where moka admits by how often a key was asked for lately (TinyLFU).
What the main part does not use is the window's. Because of that window a burst of new prompts is
kept before anybody knows whether it is asked again, and because of the main part a flood of prompts
that come once pushes out no popular one: alone, either loses to the other on some traffic
(`python -m benchmarks.cache_trace` shows both).

The sum of weights never passes the bound, not within a call either: room is made before it is
taken. moka alone would: it lets 64 writes wait for its housekeeping, 64 MiB of the largest entries.
One event loop uses it; nothing here is for threads.
"""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from moka_py import Moka

from extproc.answers import OVERHEAD_BYTES, Entry
from extproc.stores.held import AnswerStats, Held
from extproc.stores.purges import Purges

MAX_MAIN_BYTES: Final = 2**32 - 1  # moka weighs in 32 bits
_BATCH: Final = 1_024  # entries a purge drops before it lets the loop go on: 1 ms
_LASTING: Final = "embeddings"  # kept for hours and asked for seldom: idle time would end them all


def _fresh(held: Held, now_ms: int) -> bool:
    idle_ms = held.idle_ms
    return now_ms < held.entry.expires_ms and (not idle_ms or now_ms - held.touched_ms < idle_ms)


class MemoryAnswers:
    """A `ResponseCache` within `max_bytes`; `clock` is unix seconds, `idle_s` None keeps all.

    Whether an entry is fresh is decided by the times it is asked with; moka's own clock only gives
    memory back.
    """

    remote: ClassVar[bool] = False

    def __init__(
        self,
        max_bytes: int,
        *,
        clock: Callable[[], float],
        idle_s: float | None = None,
        purges: Purges | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._idle_ms = 0 if idle_s is None else round(idle_s * 1000)
        self._purges = Purges() if purges is None else purges
        self._window: OrderedDict[bytes, Held] = OrderedDict()
        self._window_bytes = 0
        # Half, because a popular part that could take all would leave new answers no time to be
        # asked for a second time; on the traces that were tried a half loses least.
        self._main: Moka[bytes, Held] = Moka(
            min(max_bytes // 2, MAX_MAIN_BYTES),
            policy="tiny_lfu",
            weigher=_weight,
            eviction_listener=self._left,
        )
        # What moka said last. It is asked seldom, because each question lets go of the lock of the
        # interpreter, which another thread may take for long; of itself moka only gives bytes back.
        self._main_bytes = 0
        self._in_main: dict[bytes, Held] = {}  # moka cannot be walked, and a purge has to
        self._offered: Held | None = None
        self._hits = self._misses = self._evicted = 0
        self._expired = self._purged = self._declined = 0

    def __repr__(self) -> str:
        return f"MemoryAnswers({len(self)} entries, {self.weight} of {self._max_bytes} bytes)"

    def __len__(self) -> int:
        return len(self._window) + len(self._in_main)

    @property
    def weight(self) -> int:
        """Return the sum of weights."""
        return self._window_bytes + self._main.weighted_size()

    @property
    def purges(self) -> Purges:
        """Return the marks, for a store that is behind this one."""
        return self._purges

    def stats(self) -> AnswerStats:
        """Return what it holds, without what is known to be over."""
        self._main.run_pending_tasks()
        self._sweep(round(self._clock() * 1000))
        return AnswerStats(
            entries=len(self),
            bytes=self.weight,
            max_bytes=self._max_bytes,
            hits=self._hits,
            misses=self._misses,
            evicted=self._evicted,
            expired=self._expired,
            purged=self._purged,
            declined=self._declined,
        )

    async def fetch(self, _key: bytes, _now_ms: int) -> Entry | None:
        """Return nothing: all there is `lookup` finds."""
        return None

    async def get(self, key: bytes, now_ms: int) -> Entry | None:
        """Return a fresh entry; never suspends."""
        return self.lookup(key, now_ms)

    async def get_many(self, keys: Sequence[bytes], now_ms: int) -> list[Entry | None]:
        """Return fresh entries, None for those that are not there; never suspends."""
        return [self.lookup(key, now_ms) for key in keys]

    def lookup(self, key: bytes, now_ms: int) -> Entry | None:
        """Return a fresh entry; `now_ms` counts as when it was last used."""
        held = self._main.get(key)  # first, because this is how moka learns what is asked for
        new = held is None
        if held is None:
            held = self._window.get(key)
        if held is None:
            self._misses += 1
            return None
        if not _fresh(held, now_ms) or self._purges.covers(held.entry):
            self._drop(key)
            self._misses += 1
            return None
        held.touched_ms = now_ms
        if new:
            self._promote(key, held, now_ms)
        self._hits += 1
        return held.entry

    def put(self, key: bytes, entry: Entry) -> None:
        """Take an entry into the window, unless it is over, purged, too large or replaced."""
        self.keep(key, entry, round(self._clock() * 1000))

    def keep(self, key: bytes, entry: Entry, now_ms: int) -> None:
        """Take an entry that is used now, as `put` does."""
        idle_ms = 0 if entry.endpoint == _LASTING else self._idle_ms
        weight = len(entry.body) + OVERHEAD_BYTES
        known = self._in_main.get(key) or self._window.get(key)
        if (
            now_ms >= entry.expires_ms
            or self._purges.covers(entry)
            or (known is not None and known.entry.stored_ms > entry.stored_ms)
        ):
            self._declined += 1
            return
        if known is not None:  # also where this one does not fit: it is not the answer any more
            self._remove(key)
        self._sweep(now_ms)
        if weight > self._max_bytes or not self._make_room(weight):
            self._declined += 1
            return
        self._window[key] = Held(_shared(entry), weight, now_ms, idle_ms)
        self._window_bytes += weight

    def purged_since(self, tenant: str, model: str, at_ms: int) -> bool:
        """Say whether answers to a call from then have been purged since."""
        return self._purges.came_since(tenant, model, at_ms)

    async def purge(self, *, tenant: str | None = None, model: str | None = None) -> None:
        """Forget at once, and give the memory back in turns with the loop's other work."""
        self._purges.note(tenant, model, round(self._clock() * 1000))
        for at, key in enumerate([*self._window, *self._in_main]):
            held = self._window.get(key) or self._in_main.get(key)
            if held is not None and self._purges.covers(held.entry):
                self._drop(key)
            if at % _BATCH == _BATCH - 1:
                await asyncio.sleep(0)

    def _promote(self, key: bytes, held: Held, now_ms: int) -> None:
        """Offer what was hit to the main part; what that declines has been used all the same."""
        weight = held.weight
        self._in_main[key] = self._offered = held
        ttl_s = (held.entry.expires_ms - now_ms) / 1000
        self._main.set(key, held, ttl=ttl_s, tti=held.idle_ms / 1000 if held.idle_ms else None)
        self._main.run_pending_tasks()
        self._main_bytes = self._main.weighted_size()
        self._offered = None
        if self._in_main.get(key) is held:
            del self._window[key]
            self._window_bytes -= weight
        else:
            self._window.move_to_end(key)

    def _left(self, key: bytes, held: Held, cause: str) -> None:
        """Note what moka let go of; it calls this within its own calls.

        What another one pushed out is first in the window to leave: it stays while there is room.
        """
        if self._in_main.get(key) is not held:
            return  # dropped here already, or replaced
        del self._in_main[key]
        if cause == "expired":
            self._expired += 1
        elif cause == "size" and held is not self._offered:
            self._window[key] = held
            self._window.move_to_end(key, last=False)
            self._window_bytes += held.weight

    def _make_room(self, weight: int) -> bool:
        """Let the longest unused of the window go until so much fits; False where it cannot."""
        limit = self._max_bytes - self._main_bytes - weight
        if self._window_bytes > limit:
            if limit < 0:
                self._main.run_pending_tasks()  # some of that may be over
            self._main_bytes = self._main.weighted_size()
            limit = self._max_bytes - self._main_bytes - weight
            if limit < 0:
                return False
        while self._window_bytes > limit:
            _, held = self._window.popitem(last=False)
            self._window_bytes -= held.weight
            self._evicted += 1
        return True

    def _sweep(self, now_ms: int) -> None:
        """Let go of what is over at the window's old end."""
        window = self._window
        while window:
            key = next(iter(window))
            if _fresh(window[key], now_ms):
                return
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        """Remove what is over or purged."""
        held = self._remove(key)
        if held is not None and self._purges.covers(held.entry):
            self._purged += 1
        else:
            self._expired += 1

    def _remove(self, key: bytes) -> Held | None:
        held = self._window.pop(key, None)
        if held is not None:
            self._window_bytes -= held.weight
            return held
        held = self._in_main.pop(key, None)
        self._main.remove(key)
        return held


def _weight(_key: bytes, held: Held) -> int:
    return held.weight


def _shared(entry: Entry) -> Entry:
    """Return the entry with names that all entries share: decoded anew they cost 300 bytes each."""
    intern = sys.intern
    return Entry(
        intern(entry.endpoint),
        intern(entry.tenant),
        intern(entry.model),
        intern(entry.provider),
        intern(entry.served_model),
        entry.stored_ms,
        entry.expires_ms,
        entry.form,
        entry.usage,
        entry.body,
    )
