"""What kept answers became when they were told otherwise than recorded, for as long as that helps.

Knows: entries, bytes. Must not know: how an answer is told, stores, keys.
An answer that many ask for in another form than the first did is made once. It is found by the very
entry that a store gave out, so what was purged, replaced or is over is not told from here; its
memory comes back when other answers take its place.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from extproc.answers import Entry

MAX_BYTES: Final = 4_194_304  # beside what the cache keeps: some hundred streams of 100 tokens

Way: TypeAlias = Literal["document", "stream", "stream without usage"]


class Retold:
    """Bodies by entry and way, the least recently told leave first. One event loop uses it."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        # With the entry, so that no other one is ever at its address, and weighed with it.
        self._made: OrderedDict[tuple[int, Way], tuple[Entry, bytes]] = OrderedDict()
        self._weight = 0

    def __repr__(self) -> str:
        return f"Retold({len(self)} answers, {self._weight} of {self._max_bytes} bytes)"

    def __len__(self) -> int:
        return len(self._made)

    def told(self, entry: Entry, way: Way, make: Callable[[], bytes]) -> bytes:
        """Return what this very entry became, made now if it must be. Raises what `make` does."""
        place = (id(entry), way)
        found = self._made.get(place)
        if found is not None:
            self._made.move_to_end(place)
            return found[1]
        body = make()
        weight = entry.weight + len(body)
        if weight <= self._max_bytes:
            self._made[place] = entry, body
            self._weight += weight
            while self._weight > self._max_bytes:
                _, (left, other) = self._made.popitem(last=False)
                self._weight -= left.weight + len(other)
        return body
