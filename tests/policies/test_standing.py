"""How limits stand for a call: the same arithmetic as its admission, and nothing charged."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.limits import US_PER_S, Rules, Scope, Unit
from extproc.policies import quota
from extproc.policies.quota import Account
from extproc.policies.standing import look
from tests.ledgers import NOON, ask, rules

NOW_US = NOON * US_PER_S
WINDOWS = quota.windows_at(NOW_US)


def account(*used: int, tat_us: int = 0, active: int = 0) -> Account:
    """Return an account that has used so much of each slot in the current windows."""
    made = Account()
    made.tat_us, made.active = tat_us, active
    for slot, amount in enumerate(used):
        made.used[slot] = amount
        made.ids[slot] = WINDOWS[(1, 0, 1, 1, 2)[slot]]
    return made


def found(of: Account, of_rules: Rules, **more: Any) -> Any:
    """Look at one account for the usual call: 10 and 5 tokens, 30,000 pico-USD."""
    return look(ask("id", ("key:a", of_rules), **more), [(of, of_rules)], NOW_US, WINDOWS)


ROWS = [
    # limits, account, unit, limit, used, left, asked, resets in s, refuses
    pytest.param(
        {"requests_per_second": 2, "burst": 4},
        account(tat_us=NOW_US + 600_000),
        (Unit.REQUESTS, 4, 2, 2, 1, 0.6, False),
        id="a rate has its burst, less what is ahead of time",
    ),
    pytest.param(
        {"requests_per_second": 2, "burst": 1},
        account(tat_us=NOW_US + 1),
        (Unit.REQUESTS, 1, 1, 0, 1, 0.000001, True),
        id="a rate that is used up",
    ),
    pytest.param(
        {"requests_per_day": 3},
        account(3),
        (Unit.REQUESTS, 3, 3, 0, 1, 43_200, True),
        id="a day that is used up",
    ),
    pytest.param(
        {"tokens_per_minute": 20},
        account(0, 6),
        (Unit.TOKENS, 20, 6, 14, 15, 60, True),
        id="a rate of tokens refuses what does not fit",
    ),
    pytest.param(
        {"tokens_per_day": 20},
        account(0, 0, 6),
        (Unit.TOKENS, 20, 6, 14, 14, 43_200, False),
        id="a budget lowers the answer to what is left",
    ),
    pytest.param(
        {"tokens_per_day": 20},
        account(0, 0, 10),
        (Unit.TOKENS, 20, 10, 10, 15, 43_200, True),
        id="a budget without room for one token of output",
    ),
    pytest.param(
        {"tokens_per_day": 20},
        account(0, 0, 25),
        (Unit.TOKENS, 20, 25, 0, 15, 43_200, True),
        id="an account that a provider counted over its limit",
    ),
    pytest.param(
        {"usd_per_month": 1},
        account(0, 0, 0, 0, 10**12 - 30_000),
        (Unit.PICO_USD, 10**12, 10**12 - 30_000, 30_000, 30_000, 43_200, False),
        id="money to the last pico",
    ),
    pytest.param(
        {"concurrent_requests": 2},
        account(active=2),
        (None, 2, 2, 0, 1, None, True),
        id="every slot is taken",
    ),
    pytest.param(
        {"concurrent_requests": 2},
        account(active=1),
        (None, 2, 1, 1, 1, None, False),
        id="a slot is free",
    ),
]


@pytest.mark.parametrize(("limits", "of", "expected"), ROWS)
def test_how_a_limit_stands(limits: dict[str, Any], of: Account, expected: tuple[Any, ...]) -> None:
    """One limit, with its numbers and its verdict; the refusal is the one a caller would get."""
    seen = found(of, rules(**limits))
    (one,) = seen.standings
    resets_s = None if one.resets_us is None else one.resets_us / US_PER_S
    assert one.label == f"key/{next(iter(limits))}"
    assert (
        *(one.unit, one.limit, one.used, one.left, one.asked),
        *(resets_s, one.refuses),
    ) == expected
    assert (seen.refusal is not None) is one.refuses
    if seen.refusal is not None:
        assert one.label in seen.refusal.message


def test_a_counter_of_another_window_says_nothing() -> None:
    """Yesterday's requests are not today's."""
    old = account(3)
    old.ids[0] -= 1
    (one,) = found(old, rules(requests_per_day=3)).standings
    assert (one.used, one.left, one.refuses) == (0, 3, False)


AMOUNTS = st.integers(0, 40)
LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "requests_per_second": st.integers(1, 5),
        "requests_per_day": st.integers(1, 40),
        "tokens_per_minute": st.integers(1, 40),
        "tokens_per_day": st.integers(1, 40),
        "concurrent_requests": st.integers(1, 4),
    },
).filter(bool)
SUBJECTS = st.lists(
    st.tuples(
        st.sampled_from(Scope),
        LIMITS,
        st.builds(
            account,
            AMOUNTS,
            AMOUNTS,
            AMOUNTS,
            tat_us=st.integers(NOW_US - US_PER_S, NOW_US + 3 * US_PER_S),
            active=st.integers(0, 4),
        ),
    ),
    min_size=1,
    max_size=3,
)


@given(SUBJECTS, st.integers(0, 30), st.integers(0, 30), st.integers(0, 3))
def test_a_limit_refuses_where_an_admission_would_be_refused(
    subjects: Any, prompt: int, output: int, choices: int
) -> None:
    """Some limit says so exactly when the call would be; the accounts stay as they are."""
    held = [(of, rules(scope, **limits)) for scope, limits, of in subjects]
    call = ask("id", fixed=(1, prompt, 0), per_output=(0, choices, 0), output=output)
    before = repr(held)
    seen = look(call, held, NOW_US, WINDOWS)
    assert repr(held) == before
    bound, refusal = quota.decide(call, held, NOW_US, WINDOWS)
    full = any(r.concurrent and of.active >= r.concurrent for of, r in held)
    assert any(one.refuses for one in seen.standings) == (refusal is not None or full)
    assert (seen.refusal is not None) == (refusal is not None or full)
    assert seen.output == bound
    for one in seen.standings:
        assert one.left == max(one.limit - one.used, 0)
