"""The written limits, compiled: integers, names made once, nothing left to look up per call.

Knows: the schema and the nouns of limits. Must not know: calls, accounts or stores.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from math import ceil
from types import MappingProxyType
from typing import Final

from extproc.domain import PICO_USD_PER_USD
from extproc.limits import SLOTS, US_PER_S, Meter, Rules, Scope, Tier, Unit
from extproc.policies.limit_headers import policy_of
from extproc.schema import Config
from extproc.schema import Tier as Written

MAX_TOLERANCE_US: Final = 10**15  # 31 years: a slower rate with a larger burst is no rate


def compile_tiers(config: Config) -> Mapping[str, Tier]:
    """Return what callers of each tier meet: the gateway's, their address's, tenant's, key's."""
    limits = config.limits
    common = (
        (Scope.GLOBAL, limits.whole),
        (Scope.IP, limits.per_ip),
        (Scope.TENANT, limits.per_tenant),
    )
    tiers = {}
    for name, written in config.tiers.items():
        every = [rules_of(scope, one) for scope, one in (*common, (Scope.KEY, written))]
        tiers[name] = tier_of(tuple(rules for rules in every if rules is not None))
    return MappingProxyType(tiers)


def tier_of(scopes: tuple[Rules, ...]) -> Tier:
    """Put the rules of several scopes together."""
    units = {meter.unit for rules in scopes for meter in rules.meters}
    return Tier(
        scopes,
        bounded=bool(units - {Unit.REQUESTS}),
        priced=Unit.PICO_USD in units,
        by_address=any(rules.scope is Scope.IP for rules in scopes),
        policy=policy_of(scopes),
    )


def rules_of(scope: Scope, written: Written | None) -> Rules | None:
    """Compile the limits of one scope; None where nothing is limited.

    An interval is rounded up to a whole microsecond, so a rate is never more than was written.
    """
    if written is None:
        return None
    prefix = scope.name.lower()
    interval_us, burst = 0, 0
    rate = written.requests_per_second
    if rate is not None:
        exact = US_PER_S / Decimal(str(rate))
        interval_us = int(exact.to_integral_value(ROUND_CEILING))
        burst = written.burst or max(1, ceil(rate))
    meters = []
    for slot, (name, unit, window, budget) in enumerate(SLOTS):
        limit = getattr(written, name)
        if limit is not None:
            whole = int(limit * PICO_USD_PER_USD) if unit is Unit.PICO_USD else int(limit)
            meters.append(Meter(name, f"{prefix}/{name}", slot, unit, window, budget, whole))
    concurrent = written.concurrent_requests or 0
    if not (interval_us or meters or concurrent):
        return None
    return Rules(
        scope,
        interval_us,
        min(interval_us * burst, MAX_TOLERANCE_US),
        burst,
        concurrent,
        tuple(meters),
        f"{prefix}/requests_per_second",
        sum(1 << meter.slot for meter in meters),
        b', "%b/requests_per_second";r=' % prefix.encode() if scope is not Scope.GLOBAL else b"",
        tuple([meter for meter in meters if meter.unit is not Unit.PICO_USD])
        if scope is not Scope.GLOBAL
        else (),
    )
