"""Say what would become of a call, and why, without making it: nothing is called or charged.

Knows: the same reading, planning and pricing that `pipeline.admit` uses, and how to show it. Must
not know: transports, or how it is asked for. It changes nothing: no probe is claimed, no load
counted, no account made or charged.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from math import isfinite
from typing import Any, Final

from extproc.cache import lookup
from extproc.cache.key import key_of
from extproc.domain import PICO_USD_PER_USD, Head, KeyRecord, Principal, Target
from extproc.errors import Denied
from extproc.gateway import Gateway, Identified, Planned
from extproc.limits import US_PER_S, Standing, Unit
from extproc.pipeline import endpoint_of, read, strictly
from extproc.policies import quota, routing
from extproc.policies.auth import ANONYMOUS
from extproc.policies.filters import Ask
from extproc.policies.strategies import expected_pico_usd
from extproc.reserving import reservation

CALL_ID: Final = "explained"
_UNITS: Final[Mapping[Unit | None, str]] = {
    Unit.REQUESTS: "requests",
    Unit.TOKENS: "tokens",
    Unit.PICO_USD: "usd",
    None: "calls under way",
}


def principal_of(record: KeyRecord | None, anonymous_tier: str | None) -> Principal:
    """Return whose call it is; None is a caller without a key. Raises LookupError."""
    if record is not None:
        return Principal(record.tenant, record.key_id, record.tier, record.models, record.endpoints)
    if anonymous_tier is None:
        raise LookupError("nobody is let in without a key")
    return Principal(ANONYMOUS, ANONYMOUS, anonymous_tier)


async def explain(
    gateway: Gateway, principal: Principal, head: Head, body: bytes
) -> dict[str, Any]:
    """Return, as plain data, who calls, what was considered with verdicts and scores, the plan,
    what the cache may do for the call, and how each limit stands.

    Where the call would be refused, `refusal` says how and what was found until then is there.
    Suspends only for a remote store.
    """
    told: dict[str, Any] = {
        "identity": {"tenant": principal.tenant, "key": principal.key_id, "tier": principal.tier}
    }
    try:
        await _explain(gateway, principal, head, body, told)
    except Denied as denied:
        told["refusal"] = {
            "status": denied.status,
            "code": denied.code,
            "message": denied.message,
            "param": denied.param,
            "retry_after_s": denied.retry_after_s,
        }
    return told


async def _explain(
    gateway: Gateway, principal: Principal, head: Head, body: bytes, told: dict[str, Any]
) -> None:
    snapshot = gateway.snapshot
    who = Identified(head, endpoint_of(head, principal), principal, CALL_ID, snapshot)
    call = read(who, body)
    told["call"] = {
        "endpoint": call.endpoint.name,
        "model": call.model,
        "stream": call.stream,
        "needs": sorted(call.needs),
    }
    ask = routing.ask_for(
        snapshot,
        head,
        principal,
        call,
        estimator=gateway.estimator,
        health=gateway.health,
        now=gateway.steady(),
        draw=gateway.draw(),
    )
    told["estimate"] = {"prompt_tokens": ask.prompt_tokens, "output_tokens": ask.output_tokens}
    decision = routing.decide(snapshot, ask)
    told["strategy"] = decision.strategy
    scores = {target.key: score for score, target in decision.ranked}
    told["candidates"] = [
        _candidate(target, reason, scores, one.ask)
        for one in decision.considered
        for target, reason in one.verdicts
    ]
    plan = strictly(snapshot, call, routing.carry_out(snapshot, head, call, decision), body)
    told["plan"] = {
        "attempts": [{"provider": one.provider, "model": one.model} for one in plan.attempts],
        "timeout_ms": plan.timeout_ms,
        "first_byte_ms": plan.first_byte_ms,
    }
    told["expected_cost_usd"] = _usd(expected_pico_usd(plan.attempts[0], ask))
    planned = Planned(CALL_ID, who, call, plan, body)
    told["cache"] = _cache(planned)
    asked = reservation(gateway.estimator, planned)
    if asked is None:
        told["limits"] = []
        return
    look = await gateway.ledger.look(asked)
    requests, tokens, pico = quota.amounts(asked, look.output)
    told["reserves"] = {
        "requests": requests,
        "tokens": tokens,
        "usd": _usd(pico),
        "max_output_tokens": look.output,
    }
    told["limits"] = [_limit(one) for one in look.standings]
    if look.refusal is not None:
        raise look.refusal


def _cache(planned: Planned) -> dict[str, Any]:
    """Tell what the cache may do for a call, not whether it does: looking would count as a use.

    `key` is the digest that `Cache-Status` shows where `cache.debug_key` is on; of a batch of
    embeddings it is of the call as it came, not of each input.
    """
    who, call = planned.identified, planned.call
    asked = lookup.ask(who.snapshot.cache, who.head, who.principal, call, planned.body)
    known = asked.key is not None
    return {
        "key": key_of(asked.key, planned.plan.attempts[0].model).hex() if asked.key else None,
        "reason": None if asked.reason is None else asked.reason.value,
        "may_look_up": asked.may_look_up,
        "may_store": asked.may_store,
        "only_if_cached": asked.control.only_if_cached,
        "max_age_s": asked.control.max_age_s,
        "ttl_s": asked.ttl_ms / 1000 if known else None,
    }


def _limit(one: Standing) -> dict[str, Any]:
    money = one.unit is Unit.PICO_USD
    amounts = {name: getattr(one, name) for name in ("limit", "used", "left", "asked")}
    return {
        "name": one.label,
        "unit": _UNITS[one.unit],
        **{name: _usd(value) if money else value for name, value in amounts.items()},
        "resets_s": None if one.resets_us is None else one.resets_us / US_PER_S,
        "refuses": one.refuses,
    }


def _candidate(target: Target, reason: str, scores: dict[str, float], ask: Ask) -> dict[str, Any]:
    score = scores.get(target.key)
    health = ask.health.of(target.key)
    return {
        "for_model": ask.model.name,
        "provider": target.provider,
        "model": target.model,
        "verdict": reason or "allowed",
        # Infinite where the strategy knows nothing of it, which JSON cannot say.
        "score": score if score is not None and isfinite(score) else None,
        "breaker": health.breaker.state if health else "closed",
        "in_flight": health.in_flight if health else 0,
        "expected_cost_usd": _usd(expected_pico_usd(target, ask)),
    }


def _usd(pico_usd: float) -> str | None:
    """Return USD as text, because a JSON number is read as a double; None for what is not known."""
    return f"{Decimal(round(pico_usd)) / PICO_USD_PER_USD:f}" if isfinite(pico_usd) else None
