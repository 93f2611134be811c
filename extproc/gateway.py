"""What every call is handled with: the parts of a gateway, a caller, a plan, reservations.

Knows: ports, the snapshot, the limits' policies. Must not know: what is decided on a call,
protobuf, transports or where state is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import msgspec

from extproc.answers import Complete, Entry, Inputs, Told
from extproc.dialects import anthropic
from extproc.domain import Call, Endpoint, Head, Plan, Principal, Reply
from extproc.limits import US_PER_MS, Ask, Grant, Rules, Tier
from extproc.policies.client_ip import client_address
from extproc.policies.estimate import Estimator
from extproc.policies.health import Health
from extproc.policies.reserve import LEASE_GRACE_US, ask_for, subjects_of
from extproc.ports import Coalescing, Identify, Ledger, Observer, ResponseCache, Tracer
from extproc.snapshot import Snapshot

NO_GRANT: Final = Grant(0, ())
_NOTHING: Final = (0, 0, 0)
ONE_REQUEST: Final = (1, 0, 0)


@dataclass(frozen=True, slots=True)
class Caching:
    """Where answers are kept, and who waits for one."""

    answers: ResponseCache
    flights: Coalescing


@dataclass(slots=True)
class Gateway:
    """What every call needs; `snapshot` is replaced whole on reload.

    `clock` is unix seconds, `steady` seconds that never jump, `new_id` gives unguessable ids,
    `draw` is uniform in [0, 1).
    """

    snapshot: Snapshot
    identity: Identify
    observer: Observer
    ledger: Ledger
    estimator: Estimator
    health: Health
    clock: Callable[[], float]
    steady: Callable[[], float]
    new_id: Callable[[], str]
    draw: Callable[[], float]
    tracer: Tracer | None = None  # None: nobody asked for spans
    caching: Caching | None = None  # None: no answer is kept


class Identified(msgspec.Struct, frozen=True, gc=False):
    """A caller at an endpoint, before the body is read."""

    head: Head
    endpoint: Endpoint
    principal: Principal
    request_id: str
    snapshot: Snapshot


class Planned(msgspec.Struct, frozen=True, gc=False):
    """A call that may be sent, its body as it came; `id` is the processor's own."""

    id: str
    identified: Identified
    call: Call
    plan: Plan
    body: bytes


class Miss(msgspec.Struct, frozen=True, gc=False):
    """A call that goes upstream.

    `status` is the header of its answer, empty where there is none to be. `digest` is empty where
    the answer is not kept. `leads`: others may wait for it, under `key`. `waited_ms` is how long
    the call waited for another's answer, None where it did not. `inputs` are those of a batch of
    embeddings. `part` is sent in place of a batch of which the rest is known, and its answer is
    told by `complete`.
    """

    status: bytes = b""
    digest: bytes = b""
    ttl_ms: int = 0
    key: bytes = b""
    leads: bool = False
    waited_ms: int | None = None
    inputs: Inputs | None = None
    part: Planned | None = None
    complete: Complete | None = None


NOT_ASKED: Final = Miss()


class Hit(msgspec.Struct, frozen=True, gc=False):
    """Tell the client a kept answer; `reply` is what it is told in."""

    id: str
    principal: Principal
    call: Call
    entry: Entry
    told: Told
    reply: Reply


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
        subjects = tuple([(name, _without_rate(rules)) for name, rules in ask.subjects])
        ask = msgspec.structs.replace(ask, subjects=subjects)
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
