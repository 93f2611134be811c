"""How the targets have been doing of late: breakers, cooling, latency, load.

Knows: what calls came to, per provider and model. Must not know: how a plan is made, Envoy, who
called, or clocks (`now` is seconds of a clock that never jumps). State is bounded by the
configuration's targets; nothing of it outlives the process, because the first calls restore it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Final

from extproc.domain import Target
from extproc.policies.breaker import Breaker, Rules, State

WEIGHT: Final = 0.3  # of a new observation: three or four outweigh all before
# An observation of a target nobody has asked for so many plans says more than what was before it.
STALE_PLANS: Final = 8
FALLBACK_PROBE_S: Final = 1.0  # a probe that is only an alternative is rarely made: a short claim
RETRIED: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
# Envoy's reasons that are the provider's doing. Others (the caller left, its own time limit was
# over) say nothing about it, or one tenant could take a provider from all.
BLAMED: Final = frozenset(
    {
        *("upstream_connection_failure", "upstream_connection_termination"),
        *("upstream_remote_reset", "upstream_request_timeout", "upstream_protocol_error"),
        *("no_healthy_upstream", "dns_resolution_failure"),
    }
)
STATE_NUMBER: Final[Mapping[State, int]] = {"closed": 0, "half-open": 1, "open": 2}


def is_failure(status: int, flags: Iterable[str]) -> bool:
    """Say whether an attempt ended by the provider's fault: 408, 429, 5xx, or no answer at all."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in RETRIED:
        return True
    return not BLAMED.isdisjoint(flags)


class TargetHealth:
    """One target's recent past. Times in milliseconds; None where nothing is known.

    `ttft_ms` and `token_ms` are of streams: to the first token, and per token after it.
    `answer_ms` is of plain answers, per token. `passed_over` counts plans that had it as an
    alternative since one had it first, `tried` says that one ever had; `fresh` means that the next
    observation stands alone. `cached_share` is the part of prompts that came from a cache.
    """

    __slots__ = (
        *("answer_ms", "breaker", "cached_share", "cool_until", "fresh", "in_flight"),
        *("passed_over", "token_ms", "tried", "ttft_ms"),
    )

    def __init__(self, rules: Rules) -> None:
        self.breaker = Breaker(rules)
        self.cool_until = 0.0
        self.in_flight = 0
        self.passed_over = STALE_PLANS
        self.fresh = True
        self.tried = False
        self.ttft_ms: float | None = None
        self.token_ms: float | None = None
        self.answer_ms: float | None = None
        self.cached_share = 0.0

    def __repr__(self) -> str:
        return (
            f"TargetHealth({self.breaker.state}, in_flight={self.in_flight}, "
            f"ttft_ms={self.ttft_ms}, token_ms={self.token_ms}, answer_ms={self.answer_ms})"
        )

    def chosen(self) -> None:
        """Count a call that goes here first."""
        if self.passed_over >= STALE_PLANS:
            self.fresh = True
        self.passed_over = 0
        self.tried = True
        self.in_flight += 1

    def arrived(self) -> None:
        """Count a call that ended, however it ended."""
        self.in_flight -= 1

    def streamed(self, ttft_ms: float, rest_ms: float, output: int) -> None:
        """Take in a whole stream: to its first token, from there to its end, and its tokens."""
        self.ttft_ms = self._mean(self.ttft_ms, ttft_ms)
        if output > 1:
            self.token_ms = self._mean(self.token_ms, rest_ms / (output - 1))
        self.fresh = False

    def answered(self, duration_ms: float, output: int) -> None:
        """Take in a whole plain answer, by its tokens: a long one is no sign of a slow target."""
        self.answer_ms = self._mean(self.answer_ms, duration_ms / max(output, 1))
        self.fresh = False

    def cached(self, share: float) -> None:
        """Take in which part of a prompt was served from the provider's cache."""
        self.cached_share += (share - self.cached_share) * WEIGHT

    def _mean(self, old: float | None, new: float) -> float:
        if old is None or self.fresh:
            return new
        return old + (new - old) * WEIGHT


class Health:
    """The health of every target that was ever planned, by `Target.key`."""

    def __init__(self, rules: Rules | None = None) -> None:
        self._rules = rules or Rules()
        self._targets: dict[str, TargetHealth] = {}
        self.of: Callable[[str], TargetHealth | None] = self._targets.get

    def __repr__(self) -> str:
        return f"Health({self._targets!r})"

    def at(self, key: str) -> TargetHealth:
        """Return a target's health, kept from now on."""
        found = self._targets.get(key)
        if found is None:
            found = self._targets[key] = TargetHealth(self._rules)
        return found

    def planned(self, attempts: tuple[Target, ...], now: float) -> Callable[[], None]:
        """Note a plan: its load, its claims on probes. Call what is returned once it ended."""
        first = self.at(attempts[0].key)
        for target in attempts[1:]:
            other = self.at(target.key)
            if other is not first:
                other.passed_over += 1
                other.breaker.claim(now, FALLBACK_PROBE_S)
        first.chosen()
        first.breaker.claim(now)
        return first.arrived

    def failed(self, key: str, now: float, cool_s: float) -> None:
        """Note an attempt that ended by the provider's fault, and what it asked for.

        A target that was never planned is none of ours: nothing is kept of it.
        """
        target = self._targets.get(key)
        if target is None:
            return
        target.breaker.failed(now)
        if cool_s > 0:
            target.cool_until = max(target.cool_until, now + cool_s)

    def states(self) -> dict[str, State]:
        """Return the state of every breaker by `Target.key`; a copy, for any thread."""
        return {key: target.breaker.state for key, target in self._targets.copy().items()}

    def worst(self, provider: str) -> int:
        """Return the state of a provider's worst breaker: 0 closed, 1 half-open, 2 open."""
        prefix = f"{provider}/"
        return max(
            (STATE_NUMBER[s] for key, s in self.states().items() if key.startswith(prefix)),
            default=0,
        )
