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
from extproc.limits import US_PER_MS, Ask, Grant, Rules, Subject, Tier
from extproc.policies.client_ip import ADDRESSES, client_address
from extproc.policies.estimate import Estimator
from extproc.policies.reserve import LEASE_GRACE_US, ask_for, subjects_of

NO_GRANT: Final = Grant(0, ())
_NOTHING: Final = (0, 0, 0)
ONE_REQUEST: Final = (1, 0, 0)
MAX_CALLERS: Final = 4096
MAX_WRITTEN: Final = 256  # of the addresses, which a client makes as long as it likes


class _Caller:
    """The accounts of a caller's last call, and what they were named by."""

    __slots__ = ("hops", "subjects", "tenant", "tier", "written")

    def __init__(
        self, tenant: str, tier: Tier, written: str, hops: int, subjects: tuple[Subject, ...]
    ) -> None:
        self.tenant = tenant
        self.tier = tier
        self.written = written
        self.hops = hops
        self.subjects = subjects


# By the caller's id, because naming the accounts anew takes twice as long as a look here.
_CALLERS: Final[dict[str, _Caller]] = {}


def reservation(estimator: Estimator, planned: Planned) -> Ask | None:
    """Return what a planned call asks of its limits, None where nothing limits the caller."""
    identified, call, plan = planned.identified, planned.call, planned.plan
    snapshot, model = identified.snapshot, call.model
    tier = snapshot.tiers[identified.principal.tier]
    if not tier.scopes:
        return None
    return ask_for(
        planned.id,
        _subjects(identified, tier),
        tier,
        call,
        plan.attempts,
        prompt_tokens=estimator.reserve_input(model, call.text_bytes),
        usual_output=snapshot.models[model].max_output_tokens,
        timeout_ms=plan.timeout_ms,
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


def _subjects(identified: Identified, tier: Tier) -> tuple[Subject, ...]:
    principal = identified.principal
    key_id, tenant = principal.key_id, principal.tenant
    written, hops = "", 0
    if tier.by_address:
        headers = identified.head.headers
        written, hops = headers.get(ADDRESSES, ""), identified.snapshot.trusted_hops
    known = _CALLERS.get(key_id)
    if (
        known is not None
        and known.tier is tier
        and known.tenant == tenant  # a token's id is its issuer's: two tenants may have the same
        and known.written == written
        and known.hops == hops
    ):
        return known.subjects
    address = client_address({ADDRESSES: written}, hops) if tier.by_address else ""
    subjects = subjects_of(tier, principal, address)
    if len(written) <= MAX_WRITTEN:
        if len(_CALLERS) >= MAX_CALLERS:
            _CALLERS.clear()
        _CALLERS[key_id] = _Caller(tenant, tier, written, hops, subjects)
    return subjects


@lru_cache(maxsize=256)  # one for each scope of each tier
def _without_rate(rules: Rules) -> Rules:
    return replace(rules, interval_us=0)  # the tolerance says how long Redis keeps the account
