"""What flights came to, in numbers.

Knows: its own fields. Must not know: how calls wait.
"""

from __future__ import annotations

import msgspec


class FlightStats(msgspec.Struct, frozen=True):
    """Flights and waiting calls now, and what became of calls since the start.

    `led` went upstream for others too, `landed` got another call's answer, `alone` waited too long,
    found no place, or was told that the answer is not to be shared. `elected` counts how often a
    waiting call was asked to lead, because another one failed.
    """

    flights: int
    waiting: int
    led: int
    landed: int
    alone: int
    elected: int
