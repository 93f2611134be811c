"""A planned call's place in the limits: what it asks of them, and what it is granted.

Knows: the limits' policies, the ledger's port. Must not know: what else is decided on a call,
protobuf, transports or where accounts are kept. Apart from `gateway`, because this is compiled and
its classes cannot be.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Final

from extproc.dialects import anthropic
from extproc.gateway import Gateway, Identified, Planned
from extproc.limits import US_PER_MS, Ask, Grant, Rules, Tier
from extproc.policies.client_ip import client_address
from extproc.policies.estimate import Estimator
from extproc.policies.reserve import LEASE_GRACE_US, ask_for, subjects_of

NO_GRANT: Final = Grant(0, ())
_NOTHING: Final = (0, 0, 0)
ONE_REQUEST: Final = (1, 0, 0)


def reservation(estimator: Estimator, planned: Planned) -> Ask | None:
    """Return what a planned call asks of its limits, None where nothing limits the caller."""
    identified, call = planned.identified, planned.call
    snapshot = identified.snapshot
    tier = snapshot.tiers[identified.principal.tier]
    if not tier.scopes:
        return None
    return ask_for(
        planned.id,
        _subjects(identified, tier),
        tier,
        call,
        planned.plan.attempts,
        prompt_tokens=estimator.reserve_input(call.model, call.text_bytes),
        usual_output=snapshot.models[call.model].max_output_tokens,
        timeout_ms=planned.plan.timeout_ms,
        may_keep_an_hour=lambda: anthropic.may_keep_an_hour(planned.body),
    )


async def reserve(gateway: Gateway, planned: Planned, *, waited: bool = False) -> Grant:
    """Reserve the most a call can take. Raises Denied.

    `waited`: `reserve_request` has counted it against the rates, which nothing gives back.
    """
    ask = reservation(gateway.estimator, planned)
    if ask is None:
        return NO_GRANT
    if waited:
        ask = ask.of(tuple([(name, _without_rate(rules)) for name, rules in ask.subjects]))
    return await gateway.ledger.admit(ask)


async def reserve_request(gateway: Gateway, planned: Planned, id_: str) -> Grant:
    """Reserve a request and nothing else: what an answer takes that is known. Raises Denied."""
    identified = planned.identified
    tier = identified.snapshot.tiers[identified.principal.tier]
    if not tier.scopes:
        return NO_GRANT
    dialect = identified.endpoint.dialect
    subjects = _subjects(identified, tier)
    lease_us = planned.plan.timeout_ms * US_PER_MS + LEASE_GRACE_US
    ask = Ask(id_, dialect, tier.policy, subjects, ONE_REQUEST, _NOTHING, 0, lease_us)
    return await gateway.ledger.admit(ask)


def _subjects(identified: Identified, tier: Tier) -> tuple[tuple[str, Rules], ...]:
    address = ""
    if tier.by_address:
        address = client_address(identified.head.headers, identified.snapshot.trusted_hops)
    return subjects_of(tier, identified.principal, address)


@lru_cache(maxsize=256)  # one for each scope of each tier
def _without_rate(rules: Rules) -> Rules:
    return replace(rules, interval_us=0)  # the tolerance says how long Redis keeps the account
