"""What a strict model allows: no target where a translation would lose something.

Knows: plans, and the names of what a translation loses. Must not know: dialects' formats.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from extproc.domain import Dialect, Plan
from extproc.errors import Denied


def enforce(plan: Plan, caller: Dialect, lossy: Callable[[], tuple[str, ...]]) -> Plan:
    """Leave out the targets that would not get the whole call.

    `lossy` is asked, once, where a target is of another dialect than the caller's.
    Raises Denied (422) naming what would be lost where no target is left.
    """
    if all(target.dialect == caller for target in plan.attempts):
        return plan
    lost = lossy()
    if not lost:
        return plan
    left = tuple(target for target in plan.attempts if target.dialect == caller)
    if not left:
        names = ", ".join(lost)
        message = f"No provider of this model can be sent the whole call. Lost: {names}."
        raise Denied("lossy_translation", message, param=lost[0])
    return replace(plan, attempts=left)
