"""Which targets may get a call: one question a function, asked in the order of one list.

Knows: what was asked for and what a target is. Must not know: which of the allowed ones is best.
A filter answers with the reason for which it refuses, or with nothing; the same answers are shown
by `llm-edge explain`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from extproc.domain import Call, Model, Principal, Target
from extproc.policies.health import Health

# A prompt is judged too long by an estimate: what is only a little over may still fit.
PROMPT_MARGIN: Final = 1.25
ALLOWED: Final = ""
IMAGES: Final = "images"


class Ask:
    """What one plan is made for. Token counts are estimates; `now` is a clock that never jumps.

    `draw` is uniform in [0, 1). A plain class, because a compiled one is built and read as C.
    """

    __slots__ = (
        *("call", "draw", "health", "model", "now", "output_tokens", "pinned", "principal"),
        *("prompt_tokens", "strategy"),
    )

    def __init__(  # noqa: PLR0917 (its fields, and asked for by name)
        self,
        call: Call,
        principal: Principal,
        model: Model,
        strategy: str,
        pinned: str | None,
        prompt_tokens: int,
        output_tokens: int,
        health: Health,
        now: float,
        draw: float,
    ) -> None:
        self.call = call
        self.principal = principal
        self.model = model
        self.strategy = strategy
        self.pinned = pinned
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.health = health
        self.now = now
        self.draw = draw

    def of(self, model: Model) -> Ask:
        """Return the same of another model."""
        return Ask(
            self.call,
            self.principal,
            model,
            self.strategy,
            self.pinned,
            self.prompt_tokens,
            self.output_tokens,
            self.health,
            self.now,
            self.draw,
        )


Filter: TypeAlias = Callable[[Target, Ask], str]


def allowed(_target: Target, ask: Ask) -> str:
    """Refuse what the key may not use; a fallback model is a model like any other."""
    return ALLOWED if ask.principal.may_use_model(ask.model.name) else "forbidden"


def pinned(target: Target, ask: Ask) -> str:
    """Refuse every provider but the one the caller named."""
    return ALLOWED if ask.pinned is None or target.provider == ask.pinned else "not_pinned"


def capable(target: Target, ask: Ask) -> str:
    """Refuse a target that is written down as lacking something the call needs."""
    if target.dialect not in ask.call.endpoint.upstreams:
        return "lacks_endpoint"
    lacks = target.lacks
    if not lacks:
        return ALLOWED
    if f"/{ask.call.endpoint.name}" in lacks:
        return "lacks_endpoint"
    if lacks.isdisjoint(ask.call.needs):
        return ALLOWED
    return f"lacks_{min(lacks & ask.call.needs)}"


def fits(target: Target, ask: Ask) -> str:
    """Refuse a context window that prompt and answer together overflow."""
    window = target.context_window
    if window is None or IMAGES in ask.call.needs:  # an image's bytes say nothing of its tokens
        return ALLOWED
    answer = ask.call.max_output_tokens or 0
    return ALLOWED if ask.prompt_tokens / PROMPT_MARGIN + answer <= window else "context_window"


def closed(target: Target, ask: Ask) -> str:
    """Refuse a target whose breaker is open, or whose probe is under way."""
    health = ask.health.of(target.key)
    return ALLOWED if health is None or health.breaker.admits(ask.now) else "breaker_open"


def warm(target: Target, ask: Ask) -> str:
    """Refuse a target that asked to be left alone until later."""
    health = ask.health.of(target.key)
    return ALLOWED if health is None or ask.now >= health.cool_until else "cooling"


FILTERS: Final[tuple[Filter, ...]] = (
    allowed,  # first, because what is not the caller's business is not told either
    pinned,
    capable,
    fits,  # the last of what is true of the call; a context fallback asks those before it
    closed,
    warm,
)
PASSING: Final = frozenset({"breaker_open", "cooling"})  # refusals that time alone lifts


def verdict(target: Target, ask: Ask) -> str:
    """Return why a target may not get the call, `ALLOWED` where it may."""
    for refuses in FILTERS:
        reason = refuses(target, ask)
        if reason:
            return reason
    return ALLOWED


def retry_at(target: Target, ask: Ask) -> float:
    """Return when a target that is refused for now will be asked again, on the clock of `now`."""
    health = ask.health.at(target.key)
    return max(health.cool_until, health.breaker.retry_at())
