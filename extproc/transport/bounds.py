"""What one connection may ask of us before it is told ENHANCE_YOUR_CALM, each with its reason.

Knows: numbers and a clock. Must not know: frames. Rates are counted in windows of `WINDOW_S`.
The peers are the Envoys of this machine: an honest one comes nowhere near any of these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from extproc.transport.frames import ENHANCE_YOUR_CALM, ConnectionFault

MIB: Final = 1024 * 1024
WINDOW_S: Final = 10.0  # long enough for an honest burst, short enough to end a flood early


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of one connection; a test may set lower ones."""

    streams: int = 100_000  # ten times the connections Envoy's listener admits; 2 KB each
    header_list_bytes: int = 65536  # Envoy's own limit; gRPC's headers are a few hundred bytes
    header_table_bytes: int = 4096  # the protocol's default, never raised (the HPACK bomb)
    continuations: int = 16  # a list of the largest size fits five (the CONTINUATION flood)
    queued_bytes: int = 64 * MIB  # replies a peer's windows hold back: six of the largest bodies
    held_bytes: int = 512 * MIB  # bodies under way or waiting: fifty of the largest at once
    unread_bytes: int = 512 * MIB  # answers the socket does not take: of calls that had suspended
    lingering: int = 10_000  # streams we ended and the peer did not; Envoy ends them at once
    # The rest are counts in WINDOW_S.
    pings: int = 1_000  # grpcio probes its bandwidth by at most one PING a round trip, with pauses
    settings: int = 100  # a peer changes them once, a probing grpcio a few times
    goaways: int = 10  # one says it all
    resets: int = 20_000  # every client of a full listener going away at once, twice (rapid reset)
    faults: int = 1_000  # streams we had to reset: an honest peer causes none (MadeYouReset)
    empty: int = 1_000  # DATA that carries nothing and ends nothing: nobody sends it on purpose
    ignored: int = 1_000  # PRIORITY, unknown kinds, frames of closed streams: nghttp sends five
    windows: int = 500_000  # a WINDOW_UPDATE for each reply at the fastest rate there is, twice


class Meter:
    """Counts one kind of event. The clock (seconds) is read only when a window's count is full."""

    __slots__ = ("_clock", "_count", "_limit", "_since", "_what")

    def __init__(self, limit: int, what: str, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._what = what
        self._clock = clock
        self._count = 0
        self._since = clock()

    def count(self) -> None:
        """Count one more. Raises ConnectionFault when they come faster than the bound."""
        self._count += 1
        if self._count > self._limit:
            now = self._clock()
            if now - self._since < WINDOW_S:
                raise ConnectionFault(ENHANCE_YOUR_CALM, f"too many {self._what}")
            self._since = now
            self._count = 1
