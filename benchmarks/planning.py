"""What choosing targets costs: `python -m benchmarks.planning`.

Knows: the planning functions. Must not know: transports. Prints the median microseconds of a plan,
its question and its notes included, by strategy and number of targets; exits 1 over the budget.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from types import MappingProxyType
from typing import Final

from extproc.dialects import openai
from extproc.domain import ENDPOINTS, Head, Model, Price, Principal, Target
from extproc.policies import routing
from extproc.policies.estimate import Estimator
from extproc.policies.health import Health
from extproc.policies.strategies import STRATEGIES
from extproc.snapshot import Snapshot

BUDGET_US: Final = 30.0
USUAL_TARGETS: Final = 4  # the budget is for a usual model; 16 is the most there can be
COUNTS: Final = (1, USUAL_TARGETS, 16)
PLANS: Final = 2_000
ROUNDS: Final = 5
BODY: Final = b'{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":100}'


def planner(strategy: str, count: int, *, sticky: bool = False) -> Callable[[], object]:
    """Return what plans one call of a model with so many targets, all limits written down."""
    targets = tuple(
        Target(
            f"provider{number}",
            "m",
            number + 1,
            Price(100 + number, 200, 50),
            context_window=128_000,
            lacks=frozenset({"images"}),
        )
        for number in range(count)
    )
    model = Model("m", strategy, targets, sticky=sticky)
    snapshot = Snapshot(
        models=MappingProxyType({"m": model}),
        max_request_bytes=1 << 20,
        timeout_ms=MappingProxyType(
            {"completion": 30_000, "streaming": 120_000, "embedding": 5_000}
        ),
        started_at=0,
        tiers={},
        trusted_hops=0,
    )
    head = Head("POST", "/v1/chat/completions", "", {}, ends=False)
    call = openai.read(ENDPOINTS["POST", "/v1/chat/completions"], BODY)
    principal = Principal("acme", "key", "free", models=frozenset({"m"}))
    estimator, health = Estimator(), Health()
    draw = random.Random(1).random
    for target in targets:
        health.planned((target,), 0.0)()
        health.at(target.key).answered(100.0, 10)

    def once() -> object:
        now = time.monotonic()
        ask = routing.ask_for(
            snapshot,
            head,
            principal,
            call,
            estimator=estimator,
            health=health,
            now=now,
            draw=draw(),
        )
        plan = routing.plan(snapshot, head, ask)
        health.planned(plan.attempts, now)()
        return plan

    return once


def cost_us(work: Callable[[], object]) -> float:
    """Return the median CPU microseconds of one piece of work over the rounds."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time_ns()
        for _ in range(PLANS):
            work()
        rounds.append((time.process_time_ns() - started) / PLANS / 1000)
    return statistics.median(rounds)


def main() -> int:
    """Print the table; return 1 where a usual plan is over the budget."""
    print(f"CPU microseconds a plan, median of {ROUNDS} rounds of {PLANS}")
    print(f"{'strategy':<16}" + "".join(f"{count:>4} targets" for count in COUNTS))
    over = False
    kinds = [(name, False) for name in STRATEGIES] + [("weighted", True)]
    for strategy, sticky in kinds:
        costs = [cost_us(planner(strategy, count, sticky=sticky)) for count in COUNTS]
        over = over or costs[COUNTS.index(USUAL_TARGETS)] > BUDGET_US
        name = f"{strategy}{' sticky' if sticky else ''}"
        print(f"{name:<16}" + "".join(f"{cost:>12.1f}" for cost in costs))
    print(f"budget for {USUAL_TARGETS} targets: {BUDGET_US:.0f} us: {'over' if over else 'kept'}")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
