"""A call as the cache sees it: its key, or why it has none.

Knows: keys, and what a caller may want. Must not know: how either is found.
"""

from __future__ import annotations

from extproc.cache.control import Control
from extproc.cache.reasons import Reason


class Asked:
    """A call as the cache sees it.

    `key` is None where the cache has nothing to do with the call, and then `reason` says why. An
    answer is good for `ttl_ms` to this caller, whenever and by whomever it was stored.
    `may_look_up`: the call may be answered from the cache. `may_store`: its answer may be kept, if
    `rules.may_store` says so as well.
    """

    __slots__ = ("control", "key", "may_look_up", "may_store", "reason", "ttl_ms")

    def __init__(
        self, key: bytes | None, reason: Reason | None, control: Control, ttl_ms: int = 0
    ) -> None:
        self.key = key
        self.reason = reason
        self.control = control
        self.ttl_ms = ttl_ms
        self.may_look_up = key is not None and not control.no_cache
        self.may_store = key is not None and not control.no_store

    def __repr__(self) -> str:
        key = None if self.key is None else self.key.hex()
        return f"Asked({key}, {self.reason}, {self.control}, ttl_ms={self.ttl_ms})"
