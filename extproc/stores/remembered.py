"""What the memory ledger writes to its journal, and how it comes back from it.

Knows: the records' forms, accounts and reservations. Must not know: files, clocks.
A record is a list by msgpack, its first member the kind:
  A  admitted     id, now, lease's end, amount, windows, [account, slots, tat]...
  S  settled      id, change by unit
  N  account      name, tat, window per slot, used per slot
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from extproc.limits import SLOTS, Meter, Rules, Scope
from extproc.policies import quota
from extproc.policies.quota import Account, Held, Windows

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder().decode


class Reservation:
    """What one call holds until it is settled: accounts and their names, the charge, until when."""

    __slots__ = ("amount", "expires_us", "held", "subjects", "windows")

    def __init__(
        self,
        subjects: Sequence[tuple[str, Rules]],
        held: list[Held],
        amount: tuple[int, int, int],
        windows: Windows,
        expires_us: int,
    ) -> None:
        self.subjects = subjects
        self.held = held
        self.amount = amount
        self.windows = windows
        self.expires_us = expires_us


def admitted(call_id: str, one: Reservation) -> bytes:
    """Write an admission."""
    held = []
    at = 0
    for account, rules in one.held:  # counted, because this is on the path of every call
        held.append((one.subjects[at][0], rules.mask, account.tat_us))
        at += 1  # noqa: SIM113 (zip costs twice as much here)
    return _encode(("A", call_id, one.expires_us, one.amount, one.windows, held))


def settled(call_id: str, change: tuple[int, int, int]) -> bytes:
    """Write a settlement; a lease that ended changes nothing."""
    return _encode(("S", call_id, change))


def everything(
    accounts: Iterable[Mapping[str, Account]], opened: Mapping[str, Reservation]
) -> Iterator[bytes]:
    """Write the whole state: the accounts without their reservations' mark, then those."""
    for named in accounts:
        for name, one in named.items():
            yield _encode(("N", name, one.tat_us, one.ids, one.used))
    for call_id, reservation in opened.items():
        held = [(name, rules.mask, 0) for name, rules in reservation.subjects]
        form = ("O", call_id, reservation.expires_us, reservation.amount, reservation.windows, held)
        yield _encode(form)


class Recall:
    """Accounts and reservations as the records leave them."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.open: dict[str, Reservation] = {}

    def take(self, record: bytes) -> None:
        """Apply one record. Raises msgspec.MsgspecError, ValueError, TypeError, IndexError."""
        kind, *fields = _decode(record)
        if kind == "N":
            name, tat_us, ids, used = fields
            account = self._account(name)
            account.tat_us, account.ids, account.used = tat_us, ids, used
        elif kind in {"A", "O"}:
            self._admit(*fields, charged=kind == "O")
        else:
            call_id, change = fields
            reservation = self.open.pop(call_id, None)
            if reservation is not None:
                quota.correct(reservation.held, tuple(change), reservation.windows)
                for account, _ in reservation.held:
                    account.active -= 1

    def _admit(
        self, call_id: str, expires_us: int, amount: Any, windows: Any, held: Any, *, charged: bool
    ) -> None:
        subjects = [(name, _rules_of(name, mask)) for name, mask, _ in held]
        pairs = [(self._account(name), rules) for name, rules in subjects]
        windows = tuple(windows)
        reservation = Reservation(subjects, pairs, tuple(amount), windows, expires_us)
        if charged:
            for account, _ in pairs:
                account.active += 1
        else:
            quota.charge(pairs, reservation.amount, 0, windows)
            for (account, _), (_, _, tat_us) in zip(pairs, held, strict=True):
                account.tat_us = tat_us
        self.open[call_id] = reservation

    def _account(self, name: str) -> Account:
        found = self.accounts.get(name)
        if found is None:
            found = self.accounts[name] = Account()
        return found


def _rules_of(name: str, mask: int) -> Rules:
    """Return rules that charge the slots of a mask: limits themselves are no part of a charge."""
    scope = Scope[name.partition(":")[0].upper()]
    meters = tuple(
        [
            Meter(field, "", slot, unit, window, budget, 0)
            for slot, (field, unit, window, budget) in enumerate(SLOTS)
            if mask & 1 << slot
        ]
    )
    return Rules(scope, 0, 0, 0, 1, meters, mask=mask)
