"""What the core needs from outside, as small protocols.

Knows: domain values. Must not know: any implementation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

from extproc.answers import End, Entry, Landing
from extproc.domain import Outcome, Principal, Trace
from extproc.errors import Denied
from extproc.limits import Ask, Grant, Settlement, Standing


class Identify(Protocol):
    """Establish the caller from request headers; `now` is unix seconds. Raises Denied."""

    async def authenticate(self, headers: Mapping[str, str], now: float) -> Principal: ...


class UsageLog(Protocol):
    """Keep one row per planned call, once per `Outcome.id` however often it is recorded."""

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """Accept rows for writing without waiting for the disk; never raises."""

    async def flush(self) -> None:
        """Return when every accepted row is on disk."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a call would meet in the ledger now: its bound of output, every limit, the refusal."""

    output: int
    standings: tuple[Standing, ...]
    refusal: Denied | None


class Ledger(Protocol):
    """Keep reservations and the counters they are charged to."""

    async def admit(self, ask: Ask) -> Grant:
        """Reserve, over all of the call's accounts or none. Raises Denied; charges nothing then.

        Suspends only for a remote store, or for a slot of concurrency.
        """

    async def look(self, ask: Ask) -> Look:
        """Say what `admit` would do now, but for waiting; charges, counts and makes nothing.

        Suspends only for a remote store; never raises.
        """

    def settle(self, settlement: Settlement) -> None:
        """Replace a reservation by the truth, once per id; never raises, never blocks."""

    def flush(self) -> None:
        """Hand on what was settled since the last time; never raises, never blocks."""


class Unlimited:
    """A ledger for where nothing is limited."""

    async def admit(self, ask: Ask) -> Grant:
        """Grant what is asked."""
        return Grant(ask.output, ())

    async def look(self, ask: Ask) -> Look:
        """Find no limit."""
        return Look(ask.output, (), None)

    def settle(self, settlement: Settlement) -> None:
        """Forget it."""

    def flush(self) -> None:
        """Do nothing."""


class ResponseCache(Protocol):
    """Keep answers by key, within a bound of bytes. Failure mode: bypass, counted."""

    remote: ClassVar[bool]  # False: what `lookup` does not find is nowhere

    def lookup(self, key: bytes, now_ms: int) -> Entry | None:
        """Return a fresh entry of those that this process keeps; never raises."""

    async def fetch(self, key: bytes, now_ms: int) -> Entry | None:
        """Return a fresh entry that `lookup` did not find; suspends, never raises."""

    async def get(self, key: bytes, now_ms: int) -> Entry | None:
        """Return a fresh entry, wherever it is: `lookup`, else `fetch`."""

    async def get_many(self, keys: Sequence[bytes], now_ms: int) -> list[Entry | None]:
        """Return what `get` does for each key; one round trip for all where it is remote."""

    def put(self, key: bytes, entry: Entry) -> None:
        """Offer an entry, which admission may decline; never raises, never blocks."""

    def purged_since(self, tenant: str, model: str, at_ms: int) -> bool:
        """Say whether answers to a call that began then have been purged since."""

    async def purge(self, *, tenant: str | None = None, model: str | None = None) -> None:
        """Forget the entries of a tenant, of a model, of one in the other, or all of them.

        Raises PurgeFailed where a remote store could not be told.
        """


Waits: TypeAlias = Callable[[], Awaitable[None]]


async def unasked() -> None:
    """Let a call wait."""


class Coalescing(Protocol):
    """Have one of identical concurrent calls go upstream. Failure mode: each goes itself."""

    def lead(self, key: bytes, call_id: str, lease_s: float) -> bool:
        """Do what `join` does where a call leads and nobody is to be asked; False: it did nothing.

        Never suspends: most calls are like no other, and a coroutine costs more than what it does.
        """

    async def join(
        self, key: bytes, call_id: str, *, lease_s: float, patience_s: float, waits: Waits = unasked
    ) -> Landing:
        """Return another call's answer, or what to do without one.

        Waits for `patience_s` at most; `waits` is awaited each time a wait begins, and only what it
        raises is raised. `lease_s` is how long the call may take, if it is to lead, until its log
        entry has come. Where a call leads, `finish` is owed whatever becomes of it.
        """

    def finish(self, key: bytes, call_id: str, end: Entry | End) -> None:
        """Say what became of a leader's call, in any process and however often; never blocks.

        An entry is put into the store before.
        """


class Observer(Protocol):
    """Count what happened. Implementations never raise and never block."""

    def admission(self, phase: str, seconds: float) -> None: ...

    def denied(self, endpoint: str, status: int, code: str) -> None: ...

    def settled(self, outcome: Outcome) -> None: ...

    def store_error(self, store: str, op: str) -> None: ...

    def limited(self, limit: str) -> None: ...

    def looked_up(self, result: str) -> None: ...

    def kept(self, result: str) -> None: ...


class Tracer(Protocol):
    """Record spans of calls whose caller is known. Never raises, never blocks; unix seconds."""

    def begin(self, traceparent: str | None) -> Trace: ...

    def admitted(self, trace: Trace, started: float, ended: float) -> None: ...

    def denied(
        self,
        trace: Trace,
        *,
        started: float,
        ended: float,
        who: Principal,
        endpoint: str,
        code: str,
    ) -> None: ...

    def settled(self, trace: Trace, outcome: Outcome) -> None: ...


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

    def limited(self, limit: str) -> None:
        """Ignore a limit that was hit."""

    def looked_up(self, result: str) -> None:
        """Ignore what a call found in the cache."""

    def kept(self, result: str) -> None:
        """Ignore whether an answer is kept."""
