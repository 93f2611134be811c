"""How long a wrong key takes must not tell how much of it is right (method: dudect, Welch's t).

Wrong keys that share nothing with a good key and wrong keys that share almost all of it are refused
in random order; outliers are cropped, because an interrupt is no secret. A leak shows in every
round, noise does not, and a comparison that leaks on purpose proves that the measurement sees one.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Sequence
from statistics import fmean, variance
from time import perf_counter_ns

import pytest

from extproc.errors import Denied
from extproc.policies.auth import KeyDirectory, authenticate_key
from extproc.policies.keys import KeyRequest, make

CALLS = 12_000  # of each class and round: a difference of some 10 ns is seen
KEPT = 0.8  # the fastest share of all times
THRESHOLD = 4.5  # dudect's: chance passes it once in a hundred thousand rounds
ROUNDS = 3
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
MADE = [
    make(KeyRequest("ci", "free"), "acme", now=0.0, token=random.Random(n).randbytes(32))
    for n in range(50)
]
DIRECTORY = KeyDirectory.of([record for record, _ in MADE], 1)
GOOD = MADE[0][1]


def wrong(matching: int, chance: random.Random) -> str:
    """Return a key whose first characters are those of a good one, and the next one is not."""
    start = 3 + matching
    other = chance.choice(LETTERS.replace(GOOD[start], ""))
    rest = "".join(chance.choices(LETTERS, k=len(GOOD) - start - 1))
    return GOOD[:start] + other + rest


def refuse(key: str) -> None:
    """Refuse a key as the gateway does."""
    try:
        authenticate_key(key, DIRECTORY, 0.0)
    except Denied:
        return
    raise AssertionError(key)


def leak(key: str) -> None:
    """Refuse a key as nobody should: character by character, up to the first that differs."""
    for mine, theirs in zip(GOOD, key, strict=True):
        if mine != theirs:
            break
    refuse(key)


def t_value(act: Callable[[str], None], few: int, many: int, seed: int) -> float:
    """Return Welch's t for the times of keys that match in few and in many characters."""
    chance = random.Random(seed)
    # Made by turns, because neighbours in memory are read a little faster.
    keys = [(n, wrong(n, chance)) for _ in range(CALLS) for n in (few, many)]
    chance.shuffle(keys)
    texts = [key for _, key in keys]
    for key in texts[:500]:
        act(key)
    times = [0] * len(texts)
    gc.collect()
    gc.disable()
    try:
        # Nothing in here knows the class of a key: what does is measured as a nanosecond or two.
        for n, key in enumerate(texts):
            started = perf_counter_ns()
            act(key)
            times[n] = perf_counter_ns() - started
    finally:
        gc.enable()
    limit = sorted(times)[int(len(times) * KEPT)]
    kept = [(n, t) for (n, _), t in zip(keys, times, strict=True) if t <= limit]
    return welch(*([t for n, t in kept if n == matching] for matching in (few, many)))


def welch(one: Sequence[int], two: Sequence[int]) -> float:
    """Return the difference of two means in units of its standard error."""
    error = math.sqrt(variance(one) / len(one) + variance(two) / len(two))
    return (fmean(two) - fmean(one)) / error


@pytest.mark.parametrize("many", [1, 21, 42])
def test_time_does_not_tell_how_much_of_a_key_matches(many: int) -> None:
    """Find a round in which keys that match in many characters take as long as those in none."""
    seen = []
    for seed in range(ROUNDS):
        seen.append(t_value(refuse, 0, many, seed))
        if abs(seen[-1]) < THRESHOLD:
            return
    raise AssertionError(f"t = {seen}")


def test_a_comparison_that_leaks_is_seen() -> None:
    """See in every round what an early end of a comparison gives away."""
    for seed in range(ROUNDS):
        assert t_value(leak, 0, 42, seed) > 2 * THRESHOLD
