"""What a call asks of its limits before it is sent: whose accounts, how much at most.

Knows: callers, calls, plans and prices. Must not know: accounts, stores or the wire.
Tokens are reserved by the prompt's estimate; money by the most the prompt can cost, one token a
byte, because a budget that a bad guess can overspend is none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from extproc.domain import Call, Principal, Target
from extproc.limits import MAX_AMOUNT, US_PER_MS, Ask, Rules, Scope, Tier

LEASE_GRACE_US: Final = (
    30_000_000  # a slow reader after the time limit, and the way of the log entry
)


MAX_PLANS: Final = 1024  # models by orders of their targets
_DEAREST: Final[dict[tuple[Target, ...], tuple[int, int, int]]] = {}
# Because an enum's member takes a look-up each time.
_KEY: Final = Scope.KEY
_TENANT: Final = Scope.TENANT
_IP: Final = Scope.IP


def subjects_of(tier: Tier, principal: Principal, address: str) -> tuple[tuple[str, Rules], ...]:
    """Name the account each of the tier's scopes has for this caller."""
    named = []
    for rules in tier.scopes:
        scope = rules.scope
        if scope is _KEY:
            name = "key:" + principal.key_id
        elif scope is _TENANT:
            name = "tenant:" + principal.tenant
        elif scope is _IP:
            name = "ip:" + address
        else:
            name = "global"
        named.append((name, rules))
    return tuple(named)


def ask_for(
    call_id: str,
    subjects: tuple[tuple[str, Rules], ...],
    tier: Tier,
    call: Call,
    attempts: tuple[Target, ...],
    *,
    prompt_tokens: int,
    usual_output: int,
    timeout_ms: int,
    may_keep_an_hour: Callable[[], bool] = lambda: False,
) -> Ask:
    """Return what the call reserves; `usual_output` stands for a bound the caller did not give.

    `may_keep_an_hour` says whether a provider may be asked to keep the prompt in its cache for so
    long: asked only where that is dearer, because it reads the body.
    """
    output = per_tokens = pico = per_pico = 0
    name, text_bytes = call.endpoint.name, call.text_bytes
    if name == "count_tokens":
        prompt_tokens = text_bytes = 0  # nothing is generated and nobody is billed
    elif not tier.bounded:
        prompt_tokens = 0
    elif name != "embeddings":
        output = call.max_output_tokens or usual_output
        per_tokens = call.choices
    if tier.priced:
        prices = _DEAREST.get(attempts)
        if prices is None:
            prices = _dearest(attempts)
            if len(_DEAREST) >= MAX_PLANS:
                _DEAREST.clear()
            _DEAREST[attempts] = prices
        given, made, hour = prices
        if hour > given and may_keep_an_hour():
            given = hour
        pico = min(text_bytes * given, MAX_AMOUNT)
        per_pico = min(per_tokens * made, MAX_AMOUNT)
    lease_us = timeout_ms * US_PER_MS + LEASE_GRACE_US
    fixed, per = (1, prompt_tokens, pico), (0, per_tokens, per_pico)
    dialect = call.endpoint.dialect
    return Ask(call_id, dialect, tier.policy, subjects, fixed, per, output, lease_us)


def _dearest(attempts: tuple[Target, ...]) -> tuple[int, int, int]:
    """Return the highest prices of input, output and keeping for an hour: any may be billed."""
    given = made = hour = 0
    for target in attempts:
        price = target.price
        if price is not None:
            given = max(given, price.input, price.cached_input, price.cache_write or 0)
            hour = max(hour, price.cache_write_1h or 0)
            made = max(made, price.output)
    return given, made, hour
