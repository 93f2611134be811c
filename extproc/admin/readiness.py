"""Whether traffic may come.

Knows: conditions by name. Must not know: HTTP, what is behind a condition.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Readiness:
    """What must hold before traffic may come: (name, ok, detail) of each condition."""

    conditions: tuple[tuple[str, bool, str], ...]

    @property
    def ok(self) -> bool:
        """Say whether every condition holds."""
        return all(ok for _, ok, _ in self.conditions)
