"""What the memory ledger writes to its journal, and how it comes back from it.

Knows: the records' forms, accounts and reservations. Must not know: files, clocks.
A record is a list by msgpack, its first member the kind:
  B  admitted     id, lease's end, [windows, [account, slots]...], amount by unit, tat...
  T  settled      id, change by unit, of each of several calls in a row
  N  account      name, tat, window per slot, used per slot
  O  open         id, lease's end, amount, windows, [account, slots, 0]...
  A  admitted, as it was written before: like O, with tat
  S  settled, as it was written before: id, change
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from extproc.limits import SLOTS, Meter, Rules, Scope, Subject
from extproc.policies import quota
from extproc.policies.quota import Account, Held, Windows

EACH: Final = 4  # members of a record of settlements that are one call's
MAX_SETTLED: Final = 1000 * EACH  # of one record, which so stays far below the journal's longest
MAX_PLACES: Final = 4096
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder().decode


class Reservation:
    """What one call holds until it is settled: accounts and their names, the charge, until when."""

    __slots__ = ("amount", "expires_us", "held", "subjects", "windows")

    def __init__(
        self,
        subjects: Sequence[Subject],
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


class _Place:
    """What a caller's admissions of one minute have in common, encoded."""

    __slots__ = ("encoded", "subjects", "windows")

    def __init__(self, subjects: Sequence[Subject], windows: Windows) -> None:
        self.subjects = subjects
        self.windows = windows
        named = [(name, rules.mask) for name, rules in subjects]
        self.encoded = msgspec.Raw(_encode((windows, named)))


# By the name of the last account, the most particular one.
_PLACES: Final[dict[str, _Place]] = {}


def admitted(call_id: str, one: Reservation) -> bytes:
    """Write an admission."""
    subjects, windows, amount = one.subjects, one.windows, one.amount
    name = subjects[-1][0] if subjects else ""
    place = _PLACES.get(name)
    if place is None or place.windows != windows or place.subjects != subjects:
        if len(_PLACES) >= MAX_PLACES:
            _PLACES.clear()
        place = _PLACES[name] = _Place(subjects, windows)
    record: list[object] = [
        "B",
        call_id,
        one.expires_us,
        place.encoded,
        amount[0],
        amount[1],
        amount[2],
    ]
    for account, _ in one.held:
        record.append(account.tat_us)
    return _encode(record)


def settled(changes: Sequence[object]) -> Iterator[bytes]:
    """Write settlements, each an id and three changes; a lease that ended changes nothing."""
    for at in range(0, len(changes), MAX_SETTLED):
        yield _encode(("T", *changes[at : at + MAX_SETTLED]))


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
        elif kind == "B":
            call_id, expires_us, (windows, named), *numbers = fields
            amount, tats = numbers[:3], numbers[3:]
            held = [(*one, tat_us) for one, tat_us in zip(named, tats, strict=True)]
            self._admit(call_id, expires_us, amount, windows, held, charged=False)
        elif kind in {"A", "O"}:
            self._admit(*fields, charged=kind == "O")
        elif kind == "T":
            for at in range(0, len(fields), EACH):
                call_id, *change = fields[at : at + EACH]
                self._settle(call_id, change)
        else:
            self._settle(*fields)

    def _settle(self, call_id: str, change: Sequence[int]) -> None:
        requests, tokens, pico = change
        reservation = self.open.pop(call_id, None)
        if reservation is not None:
            quota.correct(reservation.held, (requests, tokens, pico), reservation.windows)
            for account, _ in reservation.held:
                account.active -= 1

    def _admit(
        self, call_id: str, expires_us: int, amount: Any, windows: Any, held: Any, *, charged: bool
    ) -> None:
        subjects = [(name, _rules_of(name.partition(":")[0], mask)) for name, mask, _ in held]
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


@lru_cache(maxsize=256)  # scopes by masks: to make them takes longer than all else of a record
def _rules_of(scope: str, mask: int) -> Rules:
    """Return rules that charge the slots of a mask: limits themselves are no part of a charge."""
    meters = tuple(
        [
            Meter(field, "", slot, unit, window, budget, 0)
            for slot, (field, unit, window, budget) in enumerate(SLOTS)
            if mask & 1 << slot
        ]
    )
    return Rules(Scope[scope.upper()], 0, 0, 0, 1, meters, mask=mask)
