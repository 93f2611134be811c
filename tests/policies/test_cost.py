"""Cost is whole pico-USD, exactly."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.domain import Price, Usage, UsageSource
from extproc.policies.cost import cost_pico_usd

GPT_4O_MINI = Price(input=150_000, output=600_000, cached_input=75_000)
counts = st.integers(0, 10**9)
prices = st.integers(0, 10**12)


def usage(fresh: int, cached: int, output: int) -> Usage:
    return Usage(fresh + cached, output, cached, UsageSource.PROVIDER)


@pytest.mark.parametrize(
    ("used", "price", "expected"),
    [
        pytest.param(usage(1, 2, 3), None, None, id="without a price the cost is not known"),
        pytest.param(usage(0, 0, 0), GPT_4O_MINI, 0, id="nothing used costs nothing"),
        pytest.param(usage(1_000_000, 0, 0), GPT_4O_MINI, 150_000_000_000, id="input price"),
        pytest.param(usage(0, 1_000_000, 0), GPT_4O_MINI, 75_000_000_000, id="cached price"),
        pytest.param(usage(0, 0, 1_000_000), GPT_4O_MINI, 600_000_000_000, id="output price"),
        pytest.param(usage(7, 3, 2), GPT_4O_MINI, 2_475_000, id="the three parts add up"),
    ],
)
def test_cost(used: Usage, price: Price | None, expected: int | None) -> None:
    """Each part of the usage is charged at its own price."""
    assert cost_pico_usd(used, price) == expected


@given(counts, counts, counts, st.builds(Price, prices, prices, prices))
def test_cost_is_exact(fresh: int, cached: int, output: int, price: Price) -> None:
    """No rounding happens at any size."""
    cost = cost_pico_usd(usage(fresh, cached, output), price)
    assert isinstance(cost, int)
    parts = ((fresh, price.input), (cached, price.cached_input), (output, price.output))
    assert Fraction(cost) == sum(Fraction(count) * each for count, each in parts)
