"""What a store of answers keeps of each, and what it did, in numbers.

Knows: entries. Must not know: how they are found or let go. Apart from `answers`, because that is
compiled and these classes cannot be.
"""

from __future__ import annotations

import msgspec

from extproc.answers import Entry


class Held(msgspec.Struct, gc=False):
    """An entry, its weight in bytes, when it was last used; `idle_ms` 0: as long as it lives."""

    entry: Entry
    weight: int
    touched_ms: int
    idle_ms: int


class AnswerStats(msgspec.Struct, frozen=True):
    """What one store holds and did since the start; sizes in bytes by `Entry.weight`.

    `evicted` made room for others, `declined` was too large or too old to take in.
    """

    entries: int
    bytes: int
    max_bytes: int
    hits: int
    misses: int
    evicted: int
    expired: int
    purged: int
    declined: int
