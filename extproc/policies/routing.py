"""Which targets get a call, in which order: a pure function.

Knows: a model's targets and what the caller asked for. Must not know: Envoy, clocks, randomness.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from extproc.domain import Call, Head, Model, Plan, Principal, Target
from extproc.errors import Denied
from extproc.snapshot import Snapshot

MAX_TIMEOUT_DIGITS: Final = 9  # eleven days
MAX_ATTEMPTS: Final = 8  # Envoy tries at most this often; beyond it a client has given up
STRATEGIES: Final = ("priority", "weighted")


def plan(snapshot: Snapshot, head: Head, principal: Principal, call: Call, draw: float) -> Plan:
    """Choose the attempts and their common time limit; `draw` is uniform in [0, 1).

    Raises Denied: unknown or forbidden model, a pinned provider that does not serve it.
    """
    model = snapshot.models.get(call.model)
    if model is None:
        raise Denied("model_not_found", f"The model `{call.model}` does not exist.", param="model")
    if not principal.may_use_model(call.model):
        message = f"This key may not use the model `{call.model}`."
        raise Denied("permission_denied", message, param="model")
    strategy = _strategy(head.headers, model)
    targets = model.targets
    pinned = head.headers.get("x-llm-provider")
    if pinned is not None:
        targets = tuple(target for target in targets if target.provider == pinned)
        if not targets:
            message = "No target of this model is at the provider named in x-llm-provider."
            raise Denied("invalid_request_error", message, param="x-llm-provider")
    targets = tuple(target for target in targets if target.dialect in call.endpoint.upstreams)
    if not targets:
        message = f"No provider of this model can answer {call.endpoint.name}."
        raise Denied("invalid_request_error", message, param="model")
    # Because the shares of a pinned provider's targets are those among themselves.
    targets = _ordered(targets, strategy, draw)
    return Plan(attempts_of(targets), _timeout_ms(snapshot, head.headers, call))


def attempts_of(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """Visit every target once; a lone one as often as its provider's `max_retries` allows."""
    if len(targets) == 1:
        return targets * min(1 + targets[0].max_retries, MAX_ATTEMPTS)
    return targets[:MAX_ATTEMPTS]


def _strategy(headers: Mapping[str, str], model: Model) -> str:
    asked = headers.get("x-llm-strategy")
    if asked is None:
        return model.strategy
    if asked not in STRATEGIES:
        message = f"x-llm-strategy must be one of: {', '.join(STRATEGIES)}."
        raise Denied("invalid_request_error", message, param="x-llm-strategy")
    return asked


def _ordered(targets: tuple[Target, ...], strategy: str, draw: float) -> tuple[Target, ...]:
    if strategy == "priority" or len(targets) == 1:
        return targets
    point = draw * sum(target.weight for target in targets)
    chosen = targets[0]
    for target in targets:
        if target.weight == 0:
            continue
        chosen = target
        point -= target.weight
        if point < 0:
            break
    rest = sorted((t for t in targets if t is not chosen), key=lambda t: -t.weight)
    return (chosen, *rest)


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
