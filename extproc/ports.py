"""What the core needs from outside, as small protocols.

Knows: domain values. Must not know: any implementation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from extproc.domain import Outcome, Principal


class Identify(Protocol):
    """Establish the caller from request headers; `now` is unix seconds. Raises Denied."""

    async def authenticate(self, headers: Mapping[str, str], now: float) -> Principal: ...


class UsageLog(Protocol):
    """Keep one row per planned call, once per `Outcome.id` however often it is recorded."""

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """Accept rows for writing without waiting for the disk; never raises."""

    async def flush(self) -> None:
        """Return when every accepted row is on disk."""


class Observer(Protocol):
    """Count what happened. Implementations never raise and never block."""

    def admission(self, phase: str, seconds: float) -> None: ...

    def denied(self, endpoint: str, status: int, code: str) -> None: ...

    def settled(self, outcome: Outcome) -> None: ...

    def store_error(self, store: str, op: str) -> None: ...


class SilentObserver:
    """An observer for when nobody watches."""

    def admission(self, phase: str, seconds: float) -> None:
        """Ignore a timing."""

    def denied(self, endpoint: str, status: int, code: str) -> None:
        """Ignore a refusal."""

    def settled(self, outcome: Outcome) -> None:
        """Ignore an outcome."""

    def store_error(self, store: str, op: str) -> None:
        """Ignore a failure."""
