"""The configuration that the end-to-end tests start from. Must not know: how anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .ports import free_port, held_port

SIMULATED = {"a": "openai", "b": "openai", "c": "openai", "claude": "anthropic"}


def default_config(
    directory: Path,
    sims: Mapping[str, str],
    port: int,
    admin_port: int,
    dialects: Mapping[str, str] = SIMULATED,
) -> dict[str, Any]:
    """Return a configuration with providers a, b, c, claude and one dead one.

    `watched-a` and `watched-claude` are the same once more, with `stall_events`.
    `sims` are the simulated providers' URLs, `dialects` what each of them speaks.
    """
    price = {"input": 0.15, "output": 0.60, "cached_input": 0.075}

    def target(provider: str, model: str) -> dict[str, Any]:
        return {"provider": provider, "model": model, "usd_per_million": price}

    providers: dict[str, Any] = {
        name: {"dialect": dialects[name], "endpoint": f"{url}/v1", "max_retries": 0}
        for name, url in sims.items()
    }
    for name in ("a", "claude"):
        providers[f"watched-{name}"] = {**providers[name], "stall_events": True}
    providers["dead"] = {"dialect": "openai", "endpoint": f"http://127.0.0.1:{free_port()}/v1"}
    # Nobody listens here but in the test of garbage.
    providers["garbled"] = {
        "dialect": "anthropic",
        "endpoint": f"http://127.0.0.1:{held_port()}/v1",
    }
    return {
        "server": {"port": port, "drain_seconds": 20},
        "admin": {"port": admin_port},
        "state": {"dir": str(directory / "state")},
        # Because the tests share the providers: one's failures must not be the next one's plan.
        "breaker": {"failures": 1000},
        # Because they ask the same again and again, and what they are about happens upstream.
        "cache": {"enabled": False},
        "providers": providers,
        "models": {
            "gpt-4o-mini": {"targets": [target("a", "gpt-4o-mini")]},
            "renamed": {"targets": [target("a", "upstream-name")]},
            "text-embedding-3-small": {"targets": [target("a", "text-embedding-3-small")]},
            "failover": {"targets": [target("b", "first"), target("a", "second-model")]},
            "triple": {
                "targets": [target("dead", "one"), target("b", "two-two"), target("c", "x")]
            },
            "doomed": {"targets": [target("dead", "one")]},
            "claude": {"targets": [target("claude", "claude")]},
            "watched": {"targets": [target("watched-a", "watched-model")]},
            "watched-claude": {"targets": [target("watched-claude", "claude")]},
            "claude-renamed": {"targets": [target("claude", "upstream-claude")]},
            "to-claude": {"targets": [target("b", "b"), target("claude", "c")]},
            "from-claude": {"targets": [target("claude", "c"), target("b", "b")]},
            "garbled": {"targets": [target("garbled", "x"), target("a", "y")]},
            "strict-claude": {"strict": True, "targets": [target("claude", "c")]},
            "strict-either": {"strict": True, "targets": [target("claude", "c"), target("a", "a")]},
            "unpriced": {"targets": [{"provider": "a", "model": "unpriced"}]},
        },
    }
