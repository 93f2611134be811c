"""The nouns of limits: who is counted, what is counted, over which window; a call's reservation.

Knows: names and numbers. Must not know: arithmetic, stores, the configuration or the wire.
Plain classes, because this is compiled: what a call reads of one is then a field of a C struct,
where an attribute of a msgspec Struct takes a hundred instructions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, TypeAlias

from extproc.hold import Hold

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


@dataclass(frozen=True)
class Meter:
    """One limit over a window: the counter at `slot` may not pass `limit`.

    `label` is what answers and metrics call it: `key/requests_per_day`. `counts` and `over` are
    unit and window as plain integers, because an index that is an enum's takes three times as
    long; `text` is how the answer's headers begin to tell the meter, `told` the limit as text.
    """

    name: str
    label: str
    slot: int
    unit: Unit
    window: Window
    budget: bool  # see SLOTS
    limit: int
    counts: int = field(init=False, compare=False, repr=False)
    over: int = field(init=False, compare=False, repr=False)
    text: bytes = field(init=False, compare=False, repr=False)
    told: bytes = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", int(self.unit))
        object.__setattr__(self, "over", int(self.window))
        object.__setattr__(self, "text", b', "%b";r=' % self.label.encode())
        object.__setattr__(self, "told", b"%d" % self.limit)


@dataclass(frozen=True)
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
    shown: tuple[Meter, ...] = ()  # what they tell besides
    rate_told: bytes = field(init=False, compare=False, repr=False)  # the burst as text
    hashed: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate_told", b"%d" % self.burst)
        rate = self.scope, self.interval_us, self.tolerance_us, self.burst, self.concurrent
        shown = self.rate_label, self.mask, self.rate_shown, self.shown
        object.__setattr__(self, "hashed", hash((rate, self.meters, shown)))

    def __hash__(self) -> int:
        """Return what was worked out once: the shared ledger looks rules up four times a call."""
        return self.hashed


Subject: TypeAlias = tuple[str, Rules]  # the name of an account, and what holds for it


@dataclass(frozen=True)
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


class Ask:
    """One call before admission.

    `dialect` and `policy` are for the headers of the answer. `subjects` are account names with
    their rules. `fixed` is what the call takes whatever it answers, by unit; `per_output` what each
    output token of a choice adds; `output` how many it may want. `lease_us` is how long a
    reservation is believed in without news.
    """

    __slots__ = (
        *("dialect", "fixed", "id", "lease_us", "output"),
        *("per_output", "policy", "subjects"),
    )

    def __init__(  # noqa: PLR0917 (by place, because it is made for every call)
        self,
        id: str,  # noqa: A002 (the contract's name)
        dialect: str,
        policy: bytes,
        subjects: tuple[tuple[str, Rules], ...],
        fixed: tuple[int, int, int],
        per_output: tuple[int, int, int],
        output: int,
        lease_us: int,
    ) -> None:
        self.id = id
        self.dialect = dialect
        self.policy = policy
        self.subjects = subjects
        self.fixed = fixed
        self.per_output = per_output
        self.output = output
        self.lease_us = lease_us

    def of(self, subjects: tuple[tuple[str, Rules], ...]) -> Ask:
        """Return the same call under other rules."""
        return Ask(
            self.id,
            self.dialect,
            self.policy,
            subjects,
            self.fixed,
            self.per_output,
            self.output,
            self.lease_us,
        )


class Grant:
    """What an admitted call may have, and what its answer says about the caller's limits.

    `hold` is the reservation where the ledger does not keep it itself.
    """

    __slots__ = ("headers", "hold", "output")

    def __init__(
        self, output: int, headers: tuple[tuple[str, bytes], ...], hold: Hold | None = None
    ) -> None:
        self.output = output
        self.headers = headers
        self.hold = hold


class Settlement:
    """What an admitted call came to, by unit.

    `certain` says that a provider counted; an estimate never exceeds what was reserved.
    """

    __slots__ = ("amount", "certain", "hold", "id")

    def __init__(
        self,
        id: str,  # noqa: A002 (the contract's name)
        amount: tuple[int, int, int],
        certain: bool,
        hold: Hold | None = None,
    ) -> None:
        self.id = id
        self.amount = amount
        self.certain = certain
        self.hold = hold


@dataclass(frozen=True)
class Standing:
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


UNLIMITED: Final = Tier((), bounded=False, priced=False, by_address=False)
