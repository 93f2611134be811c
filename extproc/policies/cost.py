"""What tokens cost.

Knows: usage and prices. Must not know: where either came from, currencies or rounding: whole
pico-USD in, whole pico-USD out, so a sum of a million calls is exact.
"""

from __future__ import annotations

from extproc.domain import Price, Usage


def cost_pico_usd(usage: Usage, price: Price | None) -> int | None:
    """Return the cost in pico-USD (1e-12 USD), None where no price is known.

    The cached part of the input is charged at its own price, the rest at the input price; a long
    prompt has the prices of its tier.
    """
    if price is None:
        return None
    if price.above is not None:
        price = price.of(usage.input)
    fresh = usage.input - usage.cached_input
    return (
        fresh * price.input + usage.cached_input * price.cached_input + usage.output * price.output
    )
