"""What was purged and when: an entry from before it is dead wherever it turns up.

Knows: tenants, models, times in unix milliseconds. Must not know: keys, stores, clocks.
One mark per purge, whatever it covers, and four lookups per entry: an index of keys by tenant could
not catch the answer that was on its way to the store while its tenant was purged.
"""

from __future__ import annotations

from typing import Final

from extproc.answers import Entry

MAX_MARKS: Final = 1_024  # the next one becomes a purge of everything: forgetting more is safe
_NEVER: Final = -1


class Purges:
    """The marks of one process."""

    def __init__(self) -> None:
        self._at_ms: dict[tuple[str | None, str | None], int] = {}

    def __repr__(self) -> str:
        return f"Purges(marks={len(self._at_ms)})"

    def __len__(self) -> int:
        return len(self._at_ms)

    def note(self, tenant: str | None, model: str | None, at_ms: int) -> None:
        """Mark what was stored until now, this millisecond included; None stands for all."""
        marks = self._at_ms
        name = tenant, model
        if name not in marks and len(marks) >= MAX_MARKS:
            at_ms = max(at_ms, *marks.values())
            marks.clear()
            name = None, None
        marks[name] = max(at_ms, marks.get(name, _NEVER))

    def covers(self, entry: Entry) -> bool:
        """Say whether the entry is from before a purge of its tenant, its model, both or all."""
        return bool(self._at_ms) and self.came_since(entry.tenant, entry.model, entry.stored_ms)

    def came_since(self, tenant: str, model: str, at_ms: int) -> bool:
        """Say whether a tenant, a model, one in the other or all was purged then or later."""
        marks = self._at_ms
        return bool(marks) and (
            at_ms <= marks.get((None, None), _NEVER)
            or at_ms <= marks.get((tenant, None), _NEVER)
            or at_ms <= marks.get((None, model), _NEVER)
            or at_ms <= marks.get((tenant, model), _NEVER)
        )
