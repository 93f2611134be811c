"""Plans for tests: what a call is asked with, and the plan it gets.

Knows: the planning functions. Must not know: what a test asserts.
"""

from __future__ import annotations

from typing import Any

from extproc.domain import Call, Head, Model, Plan, Principal
from extproc.policies import routing
from extproc.policies.estimate import Estimator
from extproc.policies.filters import Ask
from extproc.policies.health import Health
from extproc.snapshot import Snapshot
from tests.calls import ALICE, NOW, call, head, snapshot


def ask(model: Model, one: Call | None = None, **more: Any) -> Ask:
    """Ask for a call of a model by its own strategy."""
    values: dict[str, Any] = {
        "call": one or call(model.name),
        "principal": ALICE,
        "model": model,
        "strategy": model.strategy,
        "pinned": None,
        "prompt_tokens": 100,
        "output_tokens": 100,
        "health": Health(),
        "now": NOW,
        "draw": 0.0,
    }
    return Ask(**{**values, **more})


def asked(
    models: Snapshot, top: Head, one: Call | None = None, who: Principal = ALICE, **more: Any
) -> Ask:
    """Gather what the plan of a call is made for."""
    values: dict[str, Any] = {
        "estimator": Estimator(),
        "health": Health(),
        "now": NOW,
        "draw": 0.0,
    }
    return routing.ask_for(models, top, who, one or call(), **{**values, **more})


def make(
    models: Snapshot, top: Head, one: Call | None = None, who: Principal = ALICE, **more: Any
) -> Plan:
    """Plan a call from its headers on."""
    return routing.plan(models, top, asked(models, top, one, who, **more))


def providers(model: Model, **more: Any) -> list[str]:
    """Return the providers of a model's plan, in order."""
    attempts = routing.plan(snapshot(model), head(), ask(model, **more)).attempts
    return [target.provider for target in attempts]
