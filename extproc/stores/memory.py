"""The ledger of a gateway with one process: accounts and reservations in memory, and a journal.

Knows: accounts, reservations, leases, who waits. Must not know: the wire or the transports.
An admission is one step of the loop, so nothing comes between deciding and charging; it suspends
only while a caller waits for room that its own calls will give back.
Failure mode of the journal: open. Limits hold on without it, counted as `journal` errors; what it
could not write is forgotten if the process is killed.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from extproc.limits import MINUTE_US, US_PER_S, Ask, Grant, Rules, Scope, Settlement, Unit
from extproc.policies import quota, standing
from extproc.policies.limit_headers import limit_headers
from extproc.policies.quota import Account, Held, Refusal, Windows
from extproc.policies.refuse import label_of, refuse, refuse_concurrency
from extproc.ports import Look, Observer
from extproc.stores.journal import Journal, read_only
from extproc.stores.remembered import Recall, Reservation, admitted, everything, settled
from extproc.stores.slots import ANY_NEWS, WAIT_S, Slots

log: Final = logging.getLogger(__name__)

# Addresses are free to have: an account each, about 300 bytes; the least recently seen goes.
MAX_ADDRESSES: Final = 100_000
_IP: Final = Scope.IP  # here, because an enum's member takes a look-up each time
SWEPT_AT_ONCE: Final = 2_000  # accounts looked at per sweep, well under a millisecond


class MemoryLedger:
    """Reservations and counters of this process. `clock` is unix seconds."""

    def __init__(
        self, clock: Callable[[], float], observer: Observer, journal: Journal | None = None
    ) -> None:
        """Go on from where the journal ends. Raises OSError where it cannot be read."""
        self._clock = clock
        self._observer = observer
        self._journal = journal
        self._accounts: dict[str, Account] = {}
        self._addresses: OrderedDict[str, Account] = OrderedDict()
        self._open: dict[str, Reservation] = {}
        self._slots = Slots()
        self._settled: list[object] = []  # as `remembered.settled` takes them
        self._latest_us = 0
        self._current: Windows = (-1, -1, -1)
        self._to_sweep: list[str] = []
        if journal is not None:
            self._remember(journal.read())
            self._rewrite(journal)

    @classmethod
    def as_written(cls, clock: Callable[[], float], observer: Observer, path: Path) -> MemoryLedger:
        """Return the state a journal tells now, which another process may be writing; to look at.

        Raises OSError where there is a file that cannot be read.
        """
        made = cls(clock, observer)
        made._remember(read_only(path))
        made.sweep()
        return made

    def __repr__(self) -> str:
        accounts = len(self._accounts) + len(self._addresses)
        return f"MemoryLedger(accounts={accounts}, open={len(self._open)})"

    async def admit(self, ask: Ask) -> Grant:
        """Reserve, over all of the call's accounts or none. Raises Denied."""
        patience_s = WAIT_S
        waited: Account | None = None
        while True:
            # Looked up after every wait, because an idle account may have been forgotten meanwhile.
            held = [(self._account(name, rules), rules) for name, rules in ask.subjects]
            now_us = int(self._clock() * US_PER_S)
            windows = self._windows(now_us)
            output, refusal = quota.decide(ask, held, now_us, windows)
            blocked = _full(held) if refusal is None else _owed(held, refusal)
            if refusal is None and blocked is None:
                break
            if waited is not None:
                self._slots.offer(waited)  # it was no use here: it is the next one's
            if blocked is not None:
                waited, most = blocked
                began = self._clock()
                if await self._slots.wait(waited, most, patience_s):
                    patience_s -= max(0.0, self._clock() - began)
                    continue
            headers = limit_headers(ask.dialect, ask.policy, held, now_us, windows)
            if refusal is not None:
                self._observer.limited(label_of(refusal))
                raise refuse(refusal, headers)
            rules = next(rules for account, rules in held if account is waited)
            self._observer.limited(f"{rules.scope.name.lower()}/concurrent_requests")
            raise refuse_concurrency(rules, headers)
        amount = quota.amounts(ask, output)
        quota.charge(held, amount, now_us, windows)
        reservation = Reservation(ask.subjects, held, amount, windows, now_us + ask.lease_us)
        self._open[ask.id] = reservation
        if self._journal is not None:
            try:
                self._journal.add(admitted(ask.id, reservation))
            except OSError:
                self._observer.store_error("journal", "write")
        return Grant(output, limit_headers(ask.dialect, ask.policy, held, now_us, windows))

    async def look(self, ask: Ask) -> Look:
        """Say what `admit` would do now, but for waiting."""
        held = [(self._seen(name, rules), rules) for name, rules in ask.subjects]
        now_us = int(self._clock() * US_PER_S)
        windows = quota.windows_at(max(self._latest_us, now_us))
        return standing.look(ask, held, now_us, windows)

    def settle(self, settlement: Settlement) -> None:
        """Replace a reservation by the truth; one not open is settled or expired already."""
        reservation = self._open.pop(settlement.id, None)
        if reservation is None:
            return
        change = quota.difference(reservation.amount, settlement)
        quota.correct(reservation.held, change, reservation.windows)
        self._release(settlement.id, reservation, change)

    def flush(self) -> None:
        """Write down what was settled."""
        if self._settled and self._journal is not None:
            settled_now, self._settled = self._settled, []
            self._write(list(settled(settled_now)))

    def sweep(self) -> int:
        """Let reservations whose lease is over stand as charged, forget accounts that say nothing.

        Returns how many leases ended. Once a second; makes the journal short again when it is long.
        """
        now_us = int(self._clock() * US_PER_S)
        lost = [id_ for id_, one in self._open.items() if one.expires_us <= now_us]
        for id_ in lost:
            self._release(id_, self._open.pop(id_), (0, 0, 0))
        self.flush()
        self._drop_idle(now_us, self._windows(now_us))
        if self._journal is not None and self._journal.is_long:
            self._rewrite(self._journal)
        return len(lost)

    def sync(self) -> None:
        """Bring the journal to the disk: for a thread."""
        if self._journal is not None:
            self._journal.sync()

    async def start(self) -> None:
        """Do nothing: what was known is remembered when this is made."""

    async def close(self) -> None:
        """Write the state as it is and let go of the journal."""
        if self._journal is not None:
            self.flush()
            self._rewrite(self._journal)
            self._journal.close()
            self._journal = None

    def _release(self, id_: str, reservation: Reservation, change: tuple[int, int, int]) -> None:
        if self._journal is not None:
            made = self._settled
            made.append(id_)
            made.append(change[0])
            made.append(change[1])
            made.append(change[2])
        for account, _ in reservation.held:
            account.active -= 1
            self._slots.offer(account)

    def _windows(self, now_us: int) -> Windows:
        """Return the windows of now, or of the latest moment there was: a window never reopens."""
        self._latest_us = max(self._latest_us, now_us)
        if self._latest_us // MINUTE_US != self._current[0]:  # a minute is of one day and month
            self._current = quota.windows_at(self._latest_us)
        return self._current

    def _account(self, name: str, rules: Rules) -> Account:
        if rules.scope is not _IP:
            found = self._accounts.get(name)
            if found is None:
                found = self._accounts[name] = Account()
            return found
        found = self._addresses.get(name)
        if found is None:
            if len(self._addresses) >= MAX_ADDRESSES:
                self._addresses.popitem(last=False)
            found = self._addresses[name] = Account()
        else:
            self._addresses.move_to_end(name)
        return found

    def _seen(self, name: str, rules: Rules) -> Account:
        """Return an account that is there, or one as it would be made; neither makes it younger."""
        found = (self._addresses if rules.scope is Scope.IP else self._accounts).get(name)
        return Account() if found is None else found

    def _drop_idle(self, now_us: int, windows: Windows) -> None:
        if not self._to_sweep:
            self._to_sweep = [*self._accounts, *self._addresses]
        for _ in range(min(SWEPT_AT_ONCE, len(self._to_sweep))):
            name = self._to_sweep.pop()
            for accounts in (self._accounts, self._addresses):
                found = accounts.get(name)
                if found is not None and quota.is_idle(found, now_us, windows):
                    del accounts[name]

    def _remember(self, records: Iterable[bytes]) -> None:
        recall = Recall()
        for record in records:
            try:
                recall.take(record)
            except (msgspec.MsgspecError, ValueError, TypeError, LookupError):
                # Written by another version: what it says cannot be had, what follows may.
                self._observer.store_error("journal", "read")
                log.exception("a record of the limits' journal is not readable")
        for name, account in recall.accounts.items():
            address = name.startswith("ip:")
            (self._addresses if address else self._accounts)[name] = account
        self._open = recall.open
        self._latest_us = int(self._clock() * US_PER_S)
        if recall.open:
            log.info("reservations remembered", extra={"count": len(recall.open)})

    def _write(self, records: Sequence[bytes]) -> None:
        assert self._journal is not None
        try:
            self._journal.append(*records)
        except OSError:
            self._observer.store_error("journal", "write")

    def _rewrite(self, journal: Journal) -> None:
        try:
            journal.rewrite(everything((self._accounts, self._addresses), self._open))
        except OSError:
            self._observer.store_error("journal", "write")
            log.exception("the limits' journal cannot be made anew")


def _full(held: list[Held]) -> tuple[Account, int] | None:
    """Return the first account without a free slot, and how many it has."""
    for account, rules in held:
        if rules.concurrent and account.active + account.handed >= rules.concurrent:
            return account, rules.concurrent
    return None


def _owed(held: list[Held], refusal: Refusal) -> tuple[Account, int] | None:
    """Return the account that refuses, where calls that are about to be settled may make room."""
    meter = refusal.meter
    if meter is None or meter.unit is Unit.REQUESTS or refusal.wait_us is None:
        return None
    account = next(account for account, rules in held if rules is refusal.rules)
    return (account, ANY_NEWS) if account.active else None
