"""When to stop asking a store that fails, and when to ask again.

Knows: failures in a row and a clock. Must not know: which store, or how it fails.
(pybreaker wraps calls and takes a lock for each; this is asked on every call of the gateway.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

FAILURES: Final = 5  # in a row: one lost packet is none of them
OPEN_S: Final = 0.5  # how long nobody asks; then one probe at a time


class Breaker:
    """Closed until FAILURES in a row; then open for OPEN_S, and again as long as probes fail."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = 0
        self._until = 0.0

    def __repr__(self) -> str:
        return f"Breaker(open={self.is_open}, failures={self._failures})"

    @property
    def is_open(self) -> bool:
        """Say whether calls should not even try."""
        return self._failures >= FAILURES

    def probe(self) -> bool:
        """Say whether it is time to try whether the store is back; then not again for OPEN_S."""
        now = self._clock()
        if now < self._until:
            return False
        self._until = now + OPEN_S
        return True

    def failed(self) -> None:
        """Note a failure."""
        self._failures += 1
        if self._failures == FAILURES:
            self._until = self._clock() + OPEN_S

    def succeeded(self) -> None:
        """Note that the store is well."""
        self._failures = 0
