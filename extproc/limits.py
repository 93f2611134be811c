"""The nouns of limits: who is counted, what is counted, over which window; a call's reservation.

Knows: names and numbers. Must not know: arithmetic, stores, the configuration or the wire.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, TypeAlias

import msgspec

US_PER_S: Final = 1_000_000
US_PER_MS: Final = 1_000
MINUTE_US: Final = 60 * US_PER_S
DAY_US: Final = 86_400 * US_PER_S
MONTHS: Final = 12
# Redis' scripts count in doubles, which are whole numbers up to here: 9,007 USD for one call.
MAX_AMOUNT: Final = 2**53 - 1
MAX_LIMIT: Final = 9 * 10**18  # 64-bit counters: 9 million USD in pico-USD


class Unit(IntEnum):
    """What a counter counts; an index into a call's amounts."""

    REQUESTS = 0
    TOKENS = 1
    PICO_USD = 2


class Window(IntEnum):
    """What a counter is over; an index into the windows of one moment."""

    MINUTE = 0
    DAY = 1
    MONTH = 2


class Scope(IntEnum):
    """Whom a limit is for."""

    GLOBAL = 0
    IP = 1
    TENANT = 2
    KEY = 3


# One counter of an account each; the index is its place there and in the stores. The third column:
# a budget gives what is left of it, by a lower `max_tokens`; a rate refuses what does not fit now.
SLOTS: Final[tuple[tuple[str, Unit, Window, bool], ...]] = (
    ("requests_per_day", Unit.REQUESTS, Window.DAY, False),
    ("tokens_per_minute", Unit.TOKENS, Window.MINUTE, False),
    ("tokens_per_day", Unit.TOKENS, Window.DAY, True),
    ("usd_per_day", Unit.PICO_USD, Window.DAY, True),
    ("usd_per_month", Unit.PICO_USD, Window.MONTH, True),
)


@dataclass(frozen=True, slots=True)
class Meter:
    """One limit over a window: the counter at `slot` may not pass `limit`.

    `label` is what answers and metrics call it: `key/requests_per_day`.
    """

    name: str
    label: str
    slot: int
    unit: Unit
    window: Window
    budget: bool  # see SLOTS
    limit: int


# A counter as answers tell it: the beginning of its text, slot, window, limit, the limit as text,
# is it of tokens.
Shown: TypeAlias = tuple[bytes, int, int, int, bytes, bool]
# A meter as the arithmetic reads it: slot, unit, window, limit, budget, itself. Plain integers,
# because an index that is an enum's takes three times as long, and this is read for every call.
Counted: TypeAlias = tuple[int, int, int, int, bool, Meter]


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits of one scope. A rate has one request per `interval_us` and a burst above it.

    0 stands for no rate and no limit of concurrency.
    """

    scope: Scope
    interval_us: int
    tolerance_us: int  # burst times interval: how far ahead of time an account may be
    burst: int
    concurrent: int
    meters: tuple[Meter, ...]
    rate_label: str = ""  # `key/requests_per_second`
    mask: int = 0  # a bit per slot that is charged
    rate_shown: bytes = b""  # how the answer's headers begin to tell the rate, empty: they do not
    shown: tuple[Shown, ...] = ()
    counted: tuple[Counted, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        counted = tuple(
            (m.slot, int(m.unit), int(m.window), m.limit, m.budget, m) for m in self.meters
        )
        object.__setattr__(self, "counted", counted)


@dataclass(frozen=True, slots=True)
class Tier:
    """What callers of one tier meet, in order.

    `bounded`: some limit counts tokens or money; `priced`: some limit counts money; `by_address`:
    some limit is of the caller's address.
    """

    scopes: tuple[Rules, ...]
    bounded: bool
    priced: bool
    by_address: bool
    policy: bytes = b""  # the RateLimit-Policy header


class Ask(msgspec.Struct, frozen=True, gc=False):
    """One call before admission. A Struct, because one is made for every call.

    `dialect` and `policy` are for the headers of the answer. `subjects` are account names with
    their rules. `fixed` is what the call takes whatever it answers, by unit; `per_output` what each
    output token of a choice adds; `output` how many it may want. `lease_us` is how long a
    reservation is believed in without news.
    """

    id: str
    dialect: str
    policy: bytes
    subjects: tuple[tuple[str, Rules], ...]
    fixed: tuple[int, int, int]
    per_output: tuple[int, int, int]
    output: int
    lease_us: int


class Hold(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A reservation as it travels with its call, so that any process can settle it.

    `accounts` are names with a bit per charged slot; `amount` and `windows` as they were charged.
    """

    accounts: tuple[tuple[str, int], ...]
    amount: tuple[int, int, int]
    windows: tuple[int, int, int]


class Grant(msgspec.Struct, frozen=True, gc=False):
    """What an admitted call may have, and what its answer says about the caller's limits."""

    output: int
    headers: tuple[tuple[str, bytes], ...]
    hold: Hold | None = None


class Standing(msgspec.Struct, frozen=True, gc=False):
    """One limit as a call would find it, which charges nothing.

    `limit`, `used` and `left` are of now, `asked` is what the call would take: requests, tokens or
    pico-USD by `unit`, calls under way where it is None. `resets_us` is until all of it is back,
    None where nobody knows; `refuses` says that the call would not be let through by it.
    """

    label: str
    unit: Unit | None
    limit: int
    used: int
    left: int
    asked: int
    resets_us: int | None
    refuses: bool


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """What an admitted call came to, by unit.

    `certain` says that a provider counted; an estimate never exceeds what was reserved.
    """

    id: str
    amount: tuple[int, int, int]
    certain: bool
    hold: Hold | None = None


UNLIMITED: Final = Tier((), bounded=False, priced=False, by_address=False)
