"""A circuit breaker for one target, fed by what has happened rather than wrapped around calls.

Knows: pybreaker's states and how long a circuit stays open. Must not know: targets, statuses, what
a failure is, or clocks: `now` is an argument, seconds of a clock that never jumps.

States (pybreaker's, M. Nygard's "Release It!"): closed, open, half-open. pybreaker counts and
changes state; the times are kept here, because its own are the wall clock's.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast

import pybreaker

State: TypeAlias = Literal["closed", "open", "half-open"]

PROBE_S: Final = 20.0  # a probe nobody heard of again: after so long the next one may go
MAX_DOUBLINGS: Final = 32  # of the open time; far beyond any open_max


@dataclass(frozen=True, slots=True)
class Rules:
    """When a circuit opens, and for how long: doubling from `open_min_s` to `open_max_s`."""

    failures: int = 5
    window_s: float = 60.0
    open_min_s: float = 0.1
    open_max_s: float = 30.0


class _Failure(Exception):
    """What pybreaker is shown of a failure."""


def _fail() -> None:
    raise _Failure


def _succeed() -> None:
    """What pybreaker is shown of a success."""


class Breaker:
    """One circuit. Not for several threads but for reading `state`."""

    __slots__ = (
        "_circuit",
        "_failed_at",
        "_openings",
        "_probe_until",
        "_rules",
        "_storage",
        "until",
    )

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._storage = pybreaker.CircuitMemoryStorage(pybreaker.STATE_CLOSED)
        self._circuit = pybreaker.CircuitBreaker(
            fail_max=rules.failures, state_storage=self._storage, throw_new_error_on_trip=False
        )
        self._failed_at: deque[float] = deque(maxlen=rules.failures)
        self._openings = 0
        self._probe_until = 0.0
        self.until = 0.0  # when an open circuit lets a probe through

    def __repr__(self) -> str:
        return f"Breaker({self.state}, openings={self._openings})"

    @property
    def state(self) -> State:
        """Return where the circuit stands."""
        return cast("State", self._storage.state)

    @property
    def failing(self) -> bool:
        """Say whether anything failed since the last good answer."""
        return bool(self._failed_at)

    def admits(self, now: float) -> bool:
        """Say whether a call may go: always when closed, one probe at a time when its time came."""
        state = self._storage.state
        if state == pybreaker.STATE_CLOSED:
            return True
        return now >= (self.until if state == pybreaker.STATE_OPEN else self._probe_until)

    def retry_at(self) -> float:
        """Return when `admits` turns true, if nothing happens until then; the past when closed."""
        state = self._storage.state
        if state == pybreaker.STATE_CLOSED:
            return 0.0
        return self.until if state == pybreaker.STATE_OPEN else self._probe_until

    def claim(self, now: float, lease_s: float = PROBE_S) -> None:
        """Take the probe that `admits` just allowed; nobody else gets one for `lease_s`."""
        if self._storage.state == pybreaker.STATE_CLOSED:
            return
        if self._storage.state == pybreaker.STATE_OPEN:
            self._circuit.half_open()
        self._probe_until = now + lease_s

    def succeeded(self) -> None:
        """Take in a good answer: closes a half-open circuit, ends a run of failures."""
        if not self._failed_at or self._storage.state == pybreaker.STATE_OPEN:
            # While it is open, an answer is of a call from before.
            return
        self._circuit.call(_succeed)
        self._failed_at.clear()
        self._openings = 0

    def failed(self, now: float) -> None:
        """Take in a failure: the n-th in a row within the window opens, and so does a probe's."""
        state = self._storage.state
        if state == pybreaker.STATE_OPEN:
            return
        if state == pybreaker.STATE_CLOSED:
            self._forget(now - self._rules.window_s)
        self._failed_at.append(now)
        with suppress(_Failure):  # our own, coming back
            self._circuit.call(_fail)
        if self._storage.state == pybreaker.STATE_OPEN:
            doubled = self._rules.open_min_s * 2 ** min(self._openings, MAX_DOUBLINGS)
            self.until = now + min(doubled, self._rules.open_max_s)
            self._openings += 1

    def _forget(self, before: float) -> None:
        """Make pybreaker's count that of the failures since then."""
        times = self._failed_at
        while times and times[0] < before:
            times.popleft()
        self._storage.reset_counter()
        for _ in times:
            self._storage.increment_counter()
