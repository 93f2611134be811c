"""In which order the allowed targets get a call: one strategy a function.

Knows: scores and draws. Must not know: who may call, why a target was refused, or Envoy.
Each returns every candidate once, the first choice first, with the score it went by: the smaller
the better, `UNKNOWN` where nothing is known. The same scores are shown by `llm-edge explain`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from math import inf, log
from operator import itemgetter
from typing import Final, TypeAlias

from extproc.domain import Target, Usage, UsageSource
from extproc.policies.cost import cost_pico_usd
from extproc.policies.filters import Ask
from extproc.policies.health import STALE_PLANS

UNKNOWN: Final = inf
LOAD: Final = 16  # calls in flight that make a target look twice as slow
Scored: TypeAlias = list[tuple[float, Target]]
Strategy: TypeAlias = Callable[[Sequence[Target], Ask], Scored]

_score: Final = itemgetter(0)
_DIGEST_BYTES: Final = 7  # 56 bits: more than a float can tell apart
_DIGEST_RANGE: Final = 2.0 ** (8 * _DIGEST_BYTES)


def priority(targets: Sequence[Target], _ask: Ask) -> Scored:
    """Take them as they are written."""
    return [(float(place), target) for place, target in enumerate(targets)]


def weighted(targets: Sequence[Target], ask: Ask) -> Scored:
    """Draw the first by its share, or let the key's hash draw it; then the heaviest first.

    The score is the share that the target does not have. Targets of weight 0 come last.
    """
    total = sum(target.weight for target in targets)
    if not total:
        return [(1.0, target) for target in targets]
    if ask.model.sticky:
        return _rendezvous(targets, ask)
    point = ask.draw * total
    chosen = targets[0]
    for target in targets:
        if target.weight == 0:
            continue
        chosen = target
        point -= target.weight
        if point < 0:
            break
    scored = [(1 - target.weight / total, target) for target in targets if target is not chosen]
    scored.sort(key=_score)
    return [(1 - chosen.weight / total, chosen), *scored]


def _rendezvous(targets: Sequence[Target], ask: Ask) -> Scored:
    """Order by weighted rendezvous hashing: exact shares, and one that goes moves only its own.

    Source: J. Schindelhauer and G. Schomaker, Weighted Distributed Hash Tables (SPAA 2005).
    """
    who = ask.principal
    person = f"{who.tenant}\0{who.key_id}\0{ask.model.name}\0"
    scored = []
    for target in targets:
        if target.weight == 0:
            scored.append((UNKNOWN, target))
            continue
        digest = blake2b((person + target.key).encode(), digest_size=_DIGEST_BYTES).digest()
        uniform = (int.from_bytes(digest, "big") + 0.5) / _DIGEST_RANGE
        scored.append((-log(uniform) / target.weight, target))
    scored.sort(key=_score)
    return scored


def fastest(targets: Sequence[Target], ask: Ask) -> Scored:
    """Take the better of two choices: the quickest by its record, and one drawn from the others.

    The score is the expected time to the end in milliseconds; calls in flight make it worse where
    the two are compared. Before that a target goes first once if nobody ever tried it or nobody
    has for a while, so that one that is new or has recovered is found: one plan in STALE_PLANS or
    so, however many targets there are. Plain power of two choices would give the quickest of three
    two calls in three at most.
    """
    scored = [(expected_ms(target, ask), target) for target in targets]
    scored.sort(key=_score)
    if len(scored) > 1:
        first = _unexplored(scored, ask)
        if first is None:
            other = 1 + int(ask.draw * (len(scored) - 1))
            first = other if _loaded(scored[other], ask) < _loaded(scored[0], ask) else 0
        if first:
            scored.insert(0, scored.pop(first))
    return scored


def _unexplored(scored: Scored, ask: Ask) -> int | None:
    """Return the place of a target that was never tried, else of the longest neglected one."""
    patience = STALE_PLANS * (len(scored) - 1)
    found = None
    for place, (_, target) in enumerate(scored):
        health = ask.health.of(target.key)
        if health is None or not health.tried:
            return place
        if place and health.passed_over >= patience and not health.in_flight:
            patience = health.passed_over + 1
            found = place
    return found


def _loaded(scored: tuple[float, Target], ask: Ask) -> tuple[float, int]:
    score, target = scored
    health = ask.health.of(target.key)
    in_flight = health.in_flight if health else 0
    # The second member decides where nothing is known of either.
    return score * (1 + in_flight / LOAD), in_flight


def expected_ms(target: Target, ask: Ask) -> float:
    """Return how long the answer should take by the target's record, `UNKNOWN` without one."""
    health = ask.health.of(target.key)
    if health is None:
        return UNKNOWN
    plain = streamed = None
    if health.answer_ms is not None:
        plain = health.answer_ms * max(ask.output_tokens, 1)
    if health.ttft_ms is not None:
        streamed = health.ttft_ms + (health.token_ms or 0.0) * ask.output_tokens
    # One kind's record stands in for the other's where that is all there is.
    ways = (streamed, plain) if ask.call.stream else (plain, streamed)
    return next((way for way in ways if way is not None), UNKNOWN)


def cheapest(targets: Sequence[Target], ask: Ask) -> Scored:
    """Order by expected cost in pico-USD; the cheapest share by weight, unpriced ones come last."""
    scored = [(expected_pico_usd(target, ask), target) for target in targets]
    scored.sort(key=_score)
    least = scored[0][0]
    equal = [target for score, target in scored if score == least]
    if len(equal) > 1:
        # Because the dearer targets' weights are no part of the equals' shares.
        scored[: len(equal)] = [(least, target) for _, target in weighted(equal, ask)]
    return scored


def expected_pico_usd(target: Target, ask: Ask) -> float:
    """Return what the call should cost there: its prompt, cached as of late, and its answer."""
    health = ask.health.of(target.key)
    cached = round(ask.prompt_tokens * health.cached_share) if health else 0
    usage = Usage(ask.prompt_tokens, ask.output_tokens, cached, UsageSource.ESTIMATED)
    cost = cost_pico_usd(usage, target.price)
    return UNKNOWN if cost is None else float(cost)


STRATEGIES: Final[Mapping[str, Strategy]] = {
    "priority": priority,
    "weighted": weighted,
    "fastest": fastest,
    "cheapest": cheapest,
    # "semantic" belongs here: it scores a target by the prompt's likeness to what the target is
    # good at, and needs an embedding in `Ask` that is made before planning.
}
NOT_YET: Final = frozenset({"semantic"})
