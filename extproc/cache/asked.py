"""A call as the cache sees it: its key, or why it has none.

Knows: keys, and what a caller may want. Must not know: how either is found. Apart from `lookup`,
because that is compiled and this class cannot be.
"""

from __future__ import annotations

import msgspec

from extproc.cache.control import Control
from extproc.cache.reasons import Reason


class Asked(msgspec.Struct, frozen=True, gc=False):
    """A call as the cache sees it.

    `key` is None where the cache has nothing to do with the call, and then `reason` says why. An
    answer is good for `ttl_ms` to this caller, whenever and by whomever it was stored.
    """

    key: bytes | None
    reason: Reason | None
    control: Control
    ttl_ms: int = 0

    @property
    def may_look_up(self) -> bool:
        """Say whether the call may be answered from the cache."""
        return self.key is not None and not self.control.no_cache

    @property
    def may_store(self) -> bool:
        """Say whether its answer may be kept, if `rules.may_store` says so as well."""
        return self.key is not None and not self.control.no_store
