"""A gateway whose providers fail in every way, and one call for each way, dialect and kind.

Knows: the stack, the broken providers and how to make each fail. Must not know: what is asserted.
All calls of a way to fail are made at once, because a silent provider takes its time.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from .broken import Broken
from .config import SIMULATED
from .stack import Stack

CHAT: Final = "/v1/chat/completions"
PATHS: Final = {"openai": CHAT, "anthropic": "/v1/messages"}
PRICE: Final = {"input": 1, "output": 2}
FIRST_TOKEN_MS: Final = 600
BROKEN: Final = ("reset", "garbage", "limited", "limited-claude")
# By dialect: who answers, and who does what it is told to.
GOOD: Final = {"openai": "a", "anthropic": "claude"}
TOLD: Final = {"openai": "b", "anthropic": "grumpy"}
SIMS: Final = {**SIMULATED, "grumpy": "anthropic"}
# Of the first target: the behaviour of a simulated provider, or None for one that is broken so.
FAILURES: Final[Mapping[str, dict[str, Any] | None]] = {
    "refused": None,
    "reset": None,
    "stall": {"latency_ms": 60_000},
    "500": {"status": 500},
    "503": {"status": 503},
    "429": {"status": 429},
    "429-later": {"status": 429, "retry_after": 30},
    "garbage": None,
    "tls": None,
}


@dataclass(frozen=True)
class Case:
    """One call: how its first target fails, who speaks what, and whether it is a stream."""

    failure: str
    caller: str
    first: str
    second: str
    kind: str

    @property
    def name(self) -> str:
        """Return the model's name, which is the request's id too."""
        return f"{self.failure}-{self.caller}-{self.first}-{self.second}-{self.kind}"

    @property
    def provider(self) -> str:
        """Return who fails."""
        if FAILURES[self.failure] is not None:
            return TOLD[self.first]
        return f"{self.failure}-{self.first}"

    @property
    def body(self) -> dict[str, Any]:
        """Return the call in its caller's dialect."""
        said = [{"role": "user", "content": "hi"}]
        call = {"model": self.name, "messages": said, "stream": self.kind == "stream"}
        return call if self.caller == "openai" else {**call, "max_tokens": 50}


DIALECTS: Final = ("openai", "anthropic")
CASES: Final = [
    Case(*words)
    for words in itertools.product(FAILURES, DIALECTS, DIALECTS, DIALECTS, ("plain", "stream"))
]


def model(*targets: tuple[str, str], **more: Any) -> dict[str, Any]:
    """Return a model with priced targets."""
    named = [{"provider": name, "model": at, "usd_per_million": PRICE} for name, at in targets]
    return {"targets": named, **more}


def configure(config: dict[str, Any], broken: Mapping[str, Broken]) -> None:
    """Add a provider for each way to fail in each dialect, a model for each call, short limits."""
    providers, models = config["providers"], config["models"]
    ports = {name: one.port for name, one in broken.items()}
    dead = providers["dead"]["endpoint"]
    for dialect in DIALECTS:
        endpoints = {
            "refused": dead,
            "reset": f"http://127.0.0.1:{ports['reset']}/v1",
            "garbage": f"http://127.0.0.1:{ports['garbage']}/v1",
            "tls": f"https://127.0.0.1:{ports['garbage']}/v1",
        }
        for how, endpoint in endpoints.items():
            providers[f"{how}-{dialect}"] = {"dialect": dialect, "endpoint": endpoint}
    for name, dialect in (("limited", "openai"), ("limited-claude", "anthropic")):
        endpoint = f"http://127.0.0.1:{ports[name]}/v1"
        providers[name] = {"dialect": dialect, "endpoint": endpoint}
    for provider in providers.values():
        provider["max_retries"] = 0
    del config["breaker"]
    config["timeouts"] = {
        "first_token": f"{FIRST_TOKEN_MS}ms",
        "completion": "2s",
        "streaming": "4s",
        "embedding": "1s",
        "idle": "1s",
    }
    providers["keyless"] = providers["a"] | {"api_key": {"env": "LLM_EDGE_TEST_NO_SUCH_KEY"}}
    models["after-keyless"] = model(("keyless", "x"), ("a", "good"))
    for case in CASES:
        models[case.name] = model((case.provider, case.name), (GOOD[case.second], case.name))


async def call_all(stack: Stack, key: str) -> dict[str, httpx.Response]:
    """Make every call and return the answers by name, with the providers as each way needs them."""
    answers: dict[str, httpx.Response] = {}
    headers = {"authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=stack.base, headers=headers, limits=limits, timeout=30
    ) as client:

        async def make(case: Case) -> None:
            named = {"x-request-id": case.name}
            answers[case.name] = await client.post(
                PATHS[case.caller], json=case.body, headers=named
            )

        for failure, behaviour in FAILURES.items():
            for name in TOLD.values():
                stack.behave(name, **(behaviour or {}))
            cases = [case for case in CASES if case.failure == failure]
            await asyncio.gather(*(make(case) for case in cases))
    return answers
