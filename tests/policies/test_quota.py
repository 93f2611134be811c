"""The arithmetic of limits: windows in UTC, the rate, what idle means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.limits import DAY_US, SLOTS, US_PER_S, Settlement, Window
from extproc.policies import quota
from extproc.policies.quota import Account
from tests.ledgers import NOON, ask, rules

NOW = NOON * US_PER_S
WINDOWS = quota.windows_at(NOW)


@given(st.integers(1_000_000_000, 7_000_000_000).map(lambda s: datetime.fromtimestamp(s, UTC)))
def test_windows_are_those_of_the_calendar(moment: datetime) -> None:
    """Minutes, days and months begin and end where UTC's do."""
    now_us = round(moment.timestamp()) * US_PER_S
    minute, day, month = quota.windows_at(now_us)
    moment = datetime.fromtimestamp(now_us // US_PER_S, UTC)
    assert divmod(month, 12) == (moment.year, moment.month - 1)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    ends = [
        (Window.MINUTE, minute, moment.replace(second=0) + timedelta(minutes=1)),
        (Window.DAY, day, midnight + timedelta(days=1)),
        (Window.MONTH, month, (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)),
    ]
    for window, number, end in ends:
        assert quota.window_end_us(window, number) == round(end.timestamp()) * US_PER_S


@given(
    st.floats(0.01, 1_000_000),
    st.integers(1, 50),
    st.lists(st.integers(0, 3_000_000), min_size=1, max_size=200),
)
def test_a_rate_never_lets_more_through_than_its_burst_and_time(
    rate: float, burst: int, gaps: list[int]
) -> None:
    """In any stretch of time: at most the burst, and one for each interval that passed."""
    key = rules(requests_per_second=rate, burst=burst)
    account, now = Account(), NOW
    admitted: list[int] = []
    for gap in gaps:
        now += gap
        _, refusal = quota.decide(ask("x"), [(account, key)], now, WINDOWS)
        if refusal is None:
            _, refusal = quota.decide(ask("x", output=0), [(account, key)], now, WINDOWS)
            quota.charge([(account, key)], (1, 0, 0), now, WINDOWS)
            admitted.append(now)
        else:
            assert refusal.wait_us is not None
            at = now + refusal.wait_us
            assert quota.decide(ask("x"), [(account, key)], at, WINDOWS)[1] is None
            assert quota.decide(ask("x"), [(account, key)], at - 1, WINDOWS)[1] is not None
    for first, since in enumerate(admitted):
        for last, until in enumerate(admitted[first:], first):
            assert last - first + 1 <= burst + (until - since) // key.interval_us


def test_a_clock_set_back_locks_nobody_out_for_longer_than_a_burst() -> None:
    key = rules(requests_per_second=10, burst=5)
    account = Account()
    quota.charge([(account, key)], (1, 0, 0), NOW, WINDOWS)
    before = NOW - DAY_US
    _, refusal = quota.decide(ask("x"), [(account, key)], before, WINDOWS)
    assert refusal is not None
    assert refusal.wait_us == key.interval_us


@pytest.mark.parametrize(
    ("change", "idle"),
    [
        pytest.param({}, True, id="nothing was ever used"),
        pytest.param({"active": 1}, False, id="a call is running"),
        pytest.param({"handed": 1}, False, id="a slot is promised"),
        pytest.param({"tat_us": NOW + 1}, False, id="the rate remembers"),
        pytest.param({"tat_us": NOW}, True, id="the rate has forgotten"),
        pytest.param({"used": [0, 0, 5, 0, 0]}, True, id="an earlier window counts nothing"),
    ],
)
def test_idle_is_what_gives_nobody_anything(change: dict[str, object], idle: bool) -> None:
    account = Account()
    for name, value in change.items():
        setattr(account, name, value)
    assert quota.is_idle(account, NOW, WINDOWS) is idle


@pytest.mark.parametrize("slot", range(len(SLOTS)))
def test_a_counter_of_the_current_window_is_not_idle(slot: int) -> None:
    account = Account()
    account.used[slot] = 1
    account.ids[slot] = WINDOWS[SLOTS[slot][2]]
    assert not quota.is_idle(account, NOW, WINDOWS)


def test_an_estimate_is_cut_to_the_reservation() -> None:
    reserved = (1, 15, 30)
    sure = Settlement("x", (1, 99, 99), certain=True)
    assert quota.difference(reserved, sure) == (0, 84, 69)
    guess = Settlement("x", (1, 99, 99), certain=False)
    assert quota.difference(reserved, guess) == (0, 0, 0)
