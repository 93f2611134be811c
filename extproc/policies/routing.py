"""Which targets get a call, in which order, and for how long: filter, score, pick.

Knows: a model's targets, what the caller asked for and how targets have been doing. Must not know:
Envoy, clocks, chance. `decide` is all there is to it; `plan` and `explain` read the same decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Final

from extproc.domain import Call, Head, Model, Plan, Principal, Target
from extproc.errors import Denied
from extproc.policies.estimate import Estimator
from extproc.policies.filters import PASSING, Ask, retry_at, verdict
from extproc.policies.health import Health
from extproc.policies.strategies import NOT_YET, STRATEGIES, Scored
from extproc.snapshot import Snapshot

MAX_TIMEOUT_DIGITS: Final = 9  # eleven days
MAX_ATTEMPTS: Final = 8  # Envoy tries at most this often; beyond it a client has given up
# Refusals that say what the call asks too much of, and how that is told.
_TOO_MUCH: Final[Mapping[str, str]] = {
    "lacks_tools": "tools",
    "lacks_images": "images",
    "lacks_json_schema": "a JSON schema",
}


class Considered:
    """One model's targets, each with the reason it was refused for, `ALLOWED` where it was not."""

    __slots__ = ("ask", "verdicts")

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.verdicts = [(target, verdict(target, ask)) for target in ask.model.targets]

    def kept(self) -> list[Target]:
        """Return the targets that are allowed."""
        return [target for target, reason in self.verdicts if not reason]


class Decision:
    """What was considered, and the allowed targets with their scores, first choice first."""

    __slots__ = ("considered", "ranked", "strategy")

    def __init__(self, considered: list[Considered], ranked: Scored, strategy: str) -> None:
        self.considered = considered
        self.ranked = ranked
        self.strategy = strategy


def ask_for(
    snapshot: Snapshot,
    head: Head,
    principal: Principal,
    call: Call,
    *,
    estimator: Estimator,
    health: Health,
    now: float,
    draw: float,
) -> Ask:
    """Gather what a plan is made for; `draw` is uniform in [0, 1), `now` a clock that never jumps.

    Raises Denied: unknown or forbidden model, a strategy or pinned provider that cannot be.
    """
    model = snapshot.models.get(call.model)
    if model is None:
        raise Denied("model_not_found", f"The model `{call.model}` does not exist.", param="model")
    if not principal.may_use_model(call.model):
        message = f"This key may not use the model `{call.model}`."
        raise Denied("permission_denied", message, param="model")
    headers = head.headers
    pinned = headers.get("x-llm-provider")
    if pinned is not None and not any(target.provider == pinned for target in model.targets):
        message = "No target of this model is at the provider named in x-llm-provider."
        raise Denied("invalid_request_error", message, param="x-llm-provider")
    return Ask(
        call=call,
        principal=principal,
        model=model,
        strategy=_strategy(headers, model),
        pinned=pinned,
        prompt_tokens=estimator.estimate_input(call.model, call.text_bytes),
        output_tokens=estimator.expect_output(call.model, call.max_output_tokens) * call.choices,
        health=health,
        now=now,
        draw=draw,
    )


def decide(snapshot: Snapshot, ask: Ask) -> Decision:
    """Judge every target, rank those that are allowed; nothing is ranked where none is."""
    here = Considered(ask)
    considered = [here]
    kept = here.kept()
    if not kept and ask.model.fallback and any(r == "context_window" for _, r in here.verdicts):
        for name in ask.model.fallback:
            there = Considered(ask.of(snapshot.models[name]))
            considered.append(there)
            kept = there.kept()
            if kept:
                ask = there.ask
                break
    ranked = STRATEGIES[ask.strategy](kept, ask) if kept else []
    return Decision(considered, ranked, ask.strategy)


def plan(snapshot: Snapshot, head: Head, ask: Ask) -> Plan:
    """Choose the attempts and their time limits.

    Raises Denied: nothing that can take this call exists, or none of it is well.
    """
    return carry_out(snapshot, head, ask.call, decide(snapshot, ask))


def carry_out(snapshot: Snapshot, head: Head, call: Call, decision: Decision) -> Plan:
    """Turn a decision into the plan for Envoy. Raises Denied as `plan` does."""
    timeout_ms = _timeout_ms(snapshot, head.headers, call)
    if not decision.ranked:
        raise refusal(decision)
    attempts = attempts_of([target for _, target in decision.ranked])
    return Plan(attempts, timeout_ms, _first_byte_ms(snapshot, attempts, call, timeout_ms))


def later(plan: Plan, waited_ms: int) -> Plan:
    """Return the plan with what is left of its time, which is some."""
    timeout_ms = max(1, plan.timeout_ms - waited_ms)
    first_byte_ms = plan.first_byte_ms
    if first_byte_ms is not None and first_byte_ms >= timeout_ms:
        first_byte_ms = None
    return Plan(plan.attempts, timeout_ms, first_byte_ms)


def pinned(plan: Plan) -> Plan:
    """Return the plan with its first target alone, as often as that one may be asked."""
    first = plan.attempts[0]
    if all(target == first for target in plan.attempts):
        return plan
    return Plan(attempts_of([first]), plan.timeout_ms)


def refusal(decision: Decision) -> Denied:
    """Return why a decision without any allowed target is refused."""
    judged = [(one.ask, *pair) for one in decision.considered for pair in one.verdicts]
    waits = [retry_at(target, ask) - ask.now for ask, target, reason in judged if reason in PASSING]
    if waits:
        message = "No provider of this model can take the call now."
        return Denied("no_healthy_provider", message, retry_after_s=max(1, ceil(min(waits))))
    reasons = {reason for _, _, reason in judged}
    if "context_window" in reasons:
        message = "The prompt is too long for every target of this model."
        return Denied("invalid_request_error", message, param="messages")
    if "lacks_endpoint" in reasons:
        endpoint = decision.considered[0].ask.call.endpoint.name
        message = f"No provider of this model can answer {endpoint}."
        return Denied("invalid_request_error", message, param="model")
    wanted = " and ".join(sorted(_TOO_MUCH[reason] for reason in reasons & _TOO_MUCH.keys()))
    return Denied("invalid_request_error", f"No target of this model supports {wanted}.")


def attempts_of(targets: Sequence[Target]) -> tuple[Target, ...]:
    """Visit every target once; a lone one as often as its provider's `max_retries` allows."""
    if len(targets) == 1:
        return (targets[0],) * min(1 + targets[0].max_retries, MAX_ATTEMPTS)
    return tuple(targets[:MAX_ATTEMPTS])


def _strategy(headers: Mapping[str, str], model: Model) -> str:
    asked = headers.get("x-llm-strategy")
    if asked is None:
        return model.strategy
    if asked in STRATEGIES:
        if asked == "cheapest" and any(target.price is None for target in model.targets):
            message = "x-llm-strategy: this model has a target without a price."
            raise Denied("invalid_request_error", message, param="x-llm-strategy")
        return asked
    if asked in NOT_YET:
        message = f"x-llm-strategy: {asked} is not available yet."
    else:
        message = f"x-llm-strategy must be one of: {', '.join(STRATEGIES)}."
    raise Denied("invalid_request_error", message, param="x-llm-strategy")


def _timeout_ms(snapshot: Snapshot, headers: Mapping[str, str], call: Call) -> int:
    kind = "streaming" if call.stream else call.endpoint.timeout_kind
    limit = snapshot.timeout_ms[kind]
    asked = headers.get("x-llm-timeout-ms")
    if asked is None:
        return limit
    if not (
        asked.isascii() and asked.isdigit() and len(asked) <= MAX_TIMEOUT_DIGITS and int(asked) > 0
    ):
        message = "x-llm-timeout-ms must be a whole number of milliseconds above 0."
        raise Denied("invalid_request_error", message, param="x-llm-timeout-ms")
    return min(limit, int(asked))


def _first_byte_ms(
    snapshot: Snapshot, attempts: tuple[Target, ...], call: Call, timeout_ms: int
) -> int | None:
    """Bound the wait for an answer's first byte where another attempt could do better.

    A plain answer's first byte is its last token: asking the same target again only takes longer.
    """
    limit = snapshot.first_token_ms
    if limit >= timeout_ms or len(attempts) == 1:
        return None
    if not call.stream and attempts[0] is attempts[-1]:
        return None
    return limit
