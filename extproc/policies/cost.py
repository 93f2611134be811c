"""What tokens cost.

Knows: usage and prices. Must not know: where either came from, currencies or rounding: whole
pico-USD in, whole pico-USD out, so a sum of a million calls is exact.
"""

from __future__ import annotations

from extproc.domain import Price, Usage


def cost_pico_usd(usage: Usage, price: Price | None) -> int | None:
    """Return the cost in pico-USD (1e-12 USD), None where no price is known.

    What was read from a prompt cache and what one was written with are charged at prices of their
    own, the rest of the input at the input price; a long prompt has the prices of its tier.
    """
    if price is None:
        return None
    if price.above is not None:
        price = price.of(usage.input)
    fresh = usage.input - usage.cached_input
    cost = (
        fresh * price.input + usage.cached_input * price.cached_input + usage.output * price.output
    )
    return cost + _writing(usage, price) if usage.cache_write else cost


def _writing(usage: Usage, price: Price) -> int:
    """Return by how much more than reading it, writing a cache costs."""
    short = price.input if price.cache_write is None else price.cache_write
    long = short if price.cache_write_1h is None else price.cache_write_1h
    return usage.cache_write * (short - price.input) + usage.cache_write_1h * (long - short)
