"""Cost is whole pico-USD, exactly."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.domain import Price, Usage, UsageSource
from extproc.policies.cost import cost_pico_usd

GPT_4O_MINI = Price(input=150_000, output=600_000, cached_input=75_000)
CLAUDE = Price(1000, 5000, 100, 0, None, 1250, 2000)
WRITTEN = Usage(100, 0, 10, UsageSource.PROVIDER, 50, 20)  # 40 fresh, 10 read, 30 and 20 written
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
        pytest.param(
            WRITTEN,
            CLAUDE,
            40 * 1000 + 10 * 100 + 30 * 1250 + 20 * 2000,
            id="what a cache was written with has a price by how long it is kept",
        ),
        pytest.param(
            WRITTEN,
            Price(1000, 5000, 100, cache_write=1250),
            40 * 1000 + 10 * 100 + 50 * 1250,
            id="one price of writing is that of an hour too",
        ),
        pytest.param(
            WRITTEN, Price(1000, 5000, 100), 90 * 1000 + 10 * 100, id="without one it is input"
        ),
        pytest.param(
            WRITTEN,
            Price(1000, 5000, 100, cache_write=0, cache_write_1h=0),
            40 * 1000 + 10 * 100,
            id="writing for nothing",
        ),
        pytest.param(
            WRITTEN,
            Price(1, 1, 1, 99, Price(1000, 5000, 100, cache_write=1250, cache_write_1h=2000)),
            40 * 1000 + 10 * 100 + 30 * 1250 + 20 * 2000,
            id="a long prompt has its tier's price of writing",
        ),
    ],
)
def test_cost(used: Usage, price: Price | None, expected: int | None) -> None:
    """Each part of the usage is charged at its own price."""
    assert cost_pico_usd(used, price) == expected


@given(
    st.tuples(*[counts] * 5),
    st.builds(Price, prices, prices, prices, st.just(0), st.none(), prices, st.none() | prices),
)
def test_cost_is_exact(used: tuple[int, ...], price: Price) -> None:
    """No rounding happens at any size, and every token has one price."""
    fresh, cached, short, long, output = used
    total = fresh + cached + short + long
    cost = cost_pico_usd(
        Usage(total, output, cached, UsageSource.PROVIDER, short + long, long), price
    )
    assert isinstance(cost, int)
    hour = price.cache_write if price.cache_write_1h is None else price.cache_write_1h
    parts = (
        (fresh, price.input),
        (cached, price.cached_input),
        (short, price.cache_write),
        (long, hour),
        (output, price.output),
    )
    assert Fraction(cost) == sum(Fraction(count) * Fraction(each) for count, each in parts)
