"""Which limits a call meets, whether it fits, and what it is charged: integer arithmetic, pure.

Knows: rates (GCRA), counters of UTC windows, reservations of requests, tokens and pico-USD. Must
not know: where accounts are kept, clocks (time is an argument) or who waits.
A call is decided over all its accounts at once: what is refused has charged nothing anywhere.
Source of the rate's arithmetic: GCRA, ITU-T I.371; `tat` is the theoretical arrival time.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import TypeAlias

import msgspec

from extproc.limits import (
    DAY_US,
    MINUTE_US,
    MONTHS,
    SLOTS,
    US_PER_S,
    Ask,
    Meter,
    Rules,
    Settlement,
    Window,
)


class Account:
    """What one key, tenant, address or the whole gateway has used. Counters are by slot."""

    __slots__ = ("active", "handed", "ids", "tat_us", "used")

    def __init__(self) -> None:
        self.tat_us = 0
        self.ids = [0] * len(SLOTS)  # the window each counter is of
        self.used = [0] * len(SLOTS)
        self.active = 0  # reservations that hold this account
        self.handed = 0  # free slots promised to a waiter that has not run yet

    def __repr__(self) -> str:
        return f"Account(tat_us={self.tat_us}, used={self.used}, active={self.active})"


Held: TypeAlias = tuple[Account, Rules]
Windows: TypeAlias = tuple[int, int, int]


def of_three(three: tuple[int, int, int], index: int) -> int:
    """Return `three[index]`; compiled, an index that varies would make the tuple anew each time."""
    if index == 0:
        return three[0]
    return three[1] if index == 1 else three[2]


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """The limit that was hit; `wait_us` until it would not be, None where waiting cannot help."""

    rules: Rules
    meter: Meter | None  # None: the rate
    wait_us: int | None


@lru_cache(maxsize=8)
def month_of(day: int) -> int:
    """Return the number of the month a day since 1970 is in."""
    date = datetime.fromtimestamp(day * 86_400, UTC)
    return date.year * MONTHS + date.month - 1


def windows_at(now_us: int) -> Windows:
    """Return the minute, day and month of a moment, in UTC."""
    day = now_us // DAY_US
    return now_us // MINUTE_US, day, month_of(day)


@lru_cache(maxsize=64)
def window_end_us(window: Window, number: int) -> int:
    """Return when a window ends, in unix microseconds."""
    if window is Window.MINUTE:
        return (number + 1) * MINUTE_US
    if window is Window.DAY:
        return (number + 1) * DAY_US
    following = number + 1
    start = datetime(following // MONTHS, following % MONTHS + 1, 1, tzinfo=UTC)
    return int(start.timestamp()) * US_PER_S


def arrival_us(account: Account, rules: Rules, now_us: int) -> int:
    """Return the account's theoretical arrival time, never further ahead than rules allow.

    Because a clock that was set back must not lock an account out for longer than its burst.
    """
    tat_us = account.tat_us
    if tat_us <= now_us:
        return now_us
    return min(tat_us, now_us + rules.tolerance_us)


def used_of(account: Account, meter: Meter, windows: Windows) -> int:
    """Return what is used of a limit in the current window."""
    return account.used[meter.slot] if account.ids[meter.slot] == windows[meter.window] else 0


def decide(ask: Ask, held: list[Held], now_us: int, windows: Windows) -> tuple[int, Refusal | None]:
    """Return how many output tokens per choice the call may have, and why it may not be.

    Of several limits that refuse, the one that refuses longest is named, so that its wait is true.
    Charges nothing.
    """
    output = wanted = ask.output
    fixed, per_output = ask.fixed, ask.per_output
    refused: Refusal | None = None
    tight = False
    for account, rules in held:
        if rules.interval_us and account.tat_us > now_us:
            tat = arrival_us(account, rules, now_us)
            late = tat + rules.interval_us - rules.tolerance_us - now_us
            if late > 0:
                refused = _longer(refused, Refusal(rules, None, late))
        ids, used = account.ids, account.used
        for meter in rules.meters:
            slot, left, unit = meter.slot, meter.limit, meter.counts
            if ids[slot] == of_three(windows, meter.over):
                left -= used[slot]
            per, least = of_three(per_output, unit), of_three(fixed, unit)
            if per * wanted <= left - least:
                continue
            if not meter.budget:
                # A rate leaves its whole limit here, because the rest of it comes back soon.
                left = meter.limit
                tight = True
            room = left - least
            if per * output > room:
                if per and room >= per:
                    output = room // per
                else:
                    refused = _longer(refused, _over(ask, rules, meter, now_us, windows))
    if tight:
        for refusal in _rates(ask, held, output, now_us, windows):
            refused = _longer(refused, refusal)
    return output, refused


def _rates(
    ask: Ask, held: list[Held], output: int, now_us: int, windows: Windows
) -> Iterator[Refusal]:
    """Find the limits that come back and do not fit, now that the answer is bounded."""
    for account, rules in held:
        for meter in rules.meters:
            if not meter.budget:
                left = meter.limit - used_of(account, meter, windows)
                unit = meter.unit
                if ask.fixed[unit] + ask.per_output[unit] * output > left:
                    yield _over(ask, rules, meter, now_us, windows)


def _over(ask: Ask, rules: Rules, meter: Meter, now_us: int, windows: Windows) -> Refusal:
    least = ask.fixed[meter.unit] + ask.per_output[meter.unit]
    if least > meter.limit:
        return Refusal(rules, meter, None)
    return Refusal(rules, meter, window_end_us(meter.window, windows[meter.window]) - now_us)


def _longer(one: Refusal | None, other: Refusal) -> Refusal:
    if one is None or other.wait_us is None:
        return other
    return one if one.wait_us is None or one.wait_us >= other.wait_us else other


def amounts(ask: Ask, output: int) -> tuple[int, int, int]:
    """Return what a call of so many output tokens reserves, by unit."""
    fixed, per = ask.fixed, ask.per_output  # by index, because compiled a tuple is taken apart so
    return fixed[0], fixed[1] + per[1] * output, fixed[2] + per[2] * output


def charge(held: list[Held], amount: tuple[int, int, int], now_us: int, windows: Windows) -> None:
    """Charge every account of an admitted call and take its slots."""
    for account, rules in held:
        if rules.interval_us:
            account.tat_us = arrival_us(account, rules, now_us) + rules.interval_us
        ids, used = account.ids, account.used
        for meter in rules.meters:
            slot = meter.slot
            current, more = of_three(windows, meter.over), of_three(amount, meter.counts)
            if ids[slot] == current:
                used[slot] += more
            else:
                ids[slot] = current
                used[slot] = more
        account.active += 1


def difference(reserved: tuple[int, int, int], settlement: Settlement) -> tuple[int, int, int]:
    """Return by how much the truth differs from what was reserved."""
    amount = settlement.amount
    requests, tokens, pico = amount[0], amount[1], amount[2]
    if not settlement.certain:
        tokens, pico = min(tokens, reserved[1]), min(pico, reserved[2])
    return requests - reserved[0], tokens - reserved[1], pico - reserved[2]


def correct(held: list[Held], change: tuple[int, int, int], windows: Windows) -> None:
    """Add the difference between what was reserved in those windows and the truth.

    A window that has passed meanwhile is left alone, because its counter is of another one now.
    """
    for account, rules in held:
        ids, used = account.ids, account.used
        for meter in rules.meters:
            slot = meter.slot
            if ids[slot] == of_three(windows, meter.over):
                used[slot] += of_three(change, meter.counts)


def is_idle(account: Account, now_us: int, windows: Windows) -> bool:
    """Say whether an account says nothing any more: forgetting it gives nobody anything."""
    if account.active or account.handed or account.tat_us > now_us:
        return False
    return all(
        not account.used[slot] or account.ids[slot] != windows[window]
        for slot, (_, _, window, _) in enumerate(SLOTS)
    )
