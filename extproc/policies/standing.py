"""How every limit of a call stands, and what would become of it: admission without the charge.

Knows: the arithmetic of `quota`, by which calls are admitted. Must not know: stores, or who asks.
"""

from __future__ import annotations

from collections.abc import Iterator

from extproc.limits import Ask, Meter, Rules, Standing, Unit
from extproc.policies import quota
from extproc.policies.quota import Account, Held, Windows
from extproc.policies.refuse import concurrency_label, refuse, refuse_concurrency
from extproc.ports import Look


def look(ask: Ask, held: list[Held], now_us: int, windows: Windows) -> Look:
    """Return what a call finds; the accounts are left as they are.

    Of several limits that refuse, `refusal` is of the one that a caller would be told.
    """
    output, refusal = quota.decide(ask, held, now_us, windows)
    denied = None
    if refusal is not None:
        denied = refuse(refusal, ())
    else:
        full = next((rules for account, rules in held if _is_full(account, rules)), None)
        if full is not None:
            denied = refuse_concurrency(full, ())
    standings = tuple(
        standing
        for account, rules in held
        for standing in _standings(ask, output, account, rules, now_us, windows)
    )
    return Look(output, standings, denied)


def _standings(  # noqa: PLR0917 (one call's facts)
    ask: Ask, output: int, account: Account, rules: Rules, now_us: int, windows: Windows
) -> Iterator[Standing]:
    if rules.interval_us:
        yield _rate(account, rules, now_us)
    for meter in rules.meters:
        yield _meter(ask, output, account, meter, now_us, windows)
    if rules.concurrent:
        under_way = account.active + account.handed
        left = max(rules.concurrent - under_way, 0)
        label = concurrency_label(rules.scope)
        full = _is_full(account, rules)
        yield Standing(label, None, rules.concurrent, under_way, left, 1, None, full)


def _rate(account: Account, rules: Rules, now_us: int) -> Standing:
    ahead_us = quota.arrival_us(account, rules, now_us) - now_us
    left = (rules.tolerance_us - ahead_us) // rules.interval_us
    return Standing(
        rules.rate_label,
        Unit.REQUESTS,
        rules.burst,
        rules.burst - left,
        left,
        1,
        ahead_us,
        ahead_us > 0 and left < 1,
    )


def _meter(  # noqa: PLR0917 (as above)
    ask: Ask, output: int, account: Account, meter: Meter, now_us: int, windows: Windows
) -> Standing:
    used = quota.used_of(account, meter, windows)
    left = meter.limit - used
    fixed, per = ask.fixed[meter.unit], ask.per_output[meter.unit]
    asked = fixed + per * output
    # A budget gives what is left of it, if that is one token of output at least.
    refuses = asked > left and not (meter.budget and per and left - fixed >= per)
    end_us = quota.window_end_us(meter.window, windows[meter.window])
    return Standing(
        meter.label, meter.unit, meter.limit, used, max(left, 0), asked, end_us - now_us, refuses
    )


def _is_full(account: Account, rules: Rules) -> bool:
    return rules.concurrent > 0 and account.active + account.handed >= rules.concurrent
