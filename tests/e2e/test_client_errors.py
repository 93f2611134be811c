"""The official clients, sync and async: every refusal and failure is the same exception in both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import anthropic
import httpx
import openai
import pytest
from anthropic import Anthropic, AsyncAnthropic
from openai import AsyncOpenAI, OpenAI

from .failing import CHAT, model
from .stack import Stack, start_stack, wait_for

SAID: Any = [{"role": "user", "content": "Say something short."}]
WELL = {"openai": "gpt-4o-mini", "anthropic": "claude"}
FAILED = (openai.APIStatusError, anthropic.APIStatusError)


@dataclass(frozen=True)
class Wrong:
    """What is wrong with a call, and what is raised: OpenAI's class and code, Anthropic's and type.

    `key` names who calls. A code of None: the provider says which.
    """

    status: int
    chat: type[openai.APIStatusError]
    code: str | None
    claude: type[anthropic.APIStatusError]
    kind: str
    key: str = "good"
    model: str | None = None
    body: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


def _provider(
    status: int,
    chat: type[openai.APIStatusError],
    claude: type[anthropic.APIStatusError],
    kind: str,
) -> Wrong:
    """Return a provider's own error, which is passed on."""
    return Wrong(status, chat, None, claude, kind, headers={"x-sim-status": str(status)})


BAD, DENIED = openai.BadRequestError, openai.PermissionDeniedError
UNKNOWN, LOST = openai.AuthenticationError, openai.NotFoundError
MANY, BROKEN = openai.RateLimitError, openai.InternalServerError
WRONG = {
    "400 a value out of range": Wrong(
        *(400, BAD, "invalid_request_error", anthropic.BadRequestError, "invalid_request_error"),
        body={"temperature": 9},
    ),
    "400 a provider's": _provider(400, BAD, anthropic.BadRequestError, "invalid_request_error"),
    "401 an unknown key": Wrong(
        *(401, UNKNOWN, "invalid_api_key", anthropic.AuthenticationError, "authentication_error"),
        key="unknown",
    ),
    "401 a provider's": _provider(
        401, UNKNOWN, anthropic.AuthenticationError, "authentication_error"
    ),
    "403 a model the key may not use": Wrong(
        *(403, DENIED, "permission_denied", anthropic.PermissionDeniedError, "permission_error"),
        key="narrow",
    ),
    "403 a provider's": _provider(403, DENIED, anthropic.PermissionDeniedError, "permission_error"),
    "404 an unknown model": Wrong(
        *(404, LOST, "model_not_found", anthropic.NotFoundError, "not_found_error"),
        model="no-such",
    ),
    "404 a provider's": _provider(404, LOST, anthropic.NotFoundError, "not_found_error"),
    "429 the requests of a day": Wrong(
        *(429, MANY, "rate_limit_exceeded", anthropic.RateLimitError, "rate_limit_error"),
        key="spent",
    ),
    "429 a budget": Wrong(
        *(429, MANY, "insufficient_quota", anthropic.RateLimitError, "rate_limit_error"),
        key="poor",
    ),
    "429 a provider's": _provider(429, MANY, anthropic.RateLimitError, "rate_limit_error"),
    "500 a provider's": _provider(500, BROKEN, anthropic.InternalServerError, "api_error"),
    "502 nobody listens": Wrong(
        *(502, BROKEN, "upstream_error", anthropic.InternalServerError, "api_error"),
        model="doomed",
    ),
    "503 a provider's": _provider(503, BROKEN, anthropic.ServiceUnavailableError, "api_error"),
    "503 nobody may be asked": Wrong(
        *(503, BROKEN, "no_healthy_provider"),
        *(anthropic.ServiceUnavailableError, "overloaded_error"),
        model="cooling",
    ),
    "504 no answer in time": Wrong(
        *(504, BROKEN, "upstream_timeout", anthropic.GatewayTimeoutError, "api_error"),
        headers={"x-sim-latency-ms": "5000", "x-llm-timeout-ms": "100"},
    ),
    "529 a provider's": _provider(529, BROKEN, anthropic.OverloadedError, "overloaded_error"),
}


def configure(config: dict[str, Any]) -> None:
    """Add a tier for each limit, and a model that is left alone once it was asked."""
    nothing: dict[str, Any] = dict.fromkeys(("requests_per_second", "burst", "concurrent_requests"))
    config["tiers"] = {
        "enterprise": nothing,
        "daily": {"requests_per_day": 1},
        "poor": {"usd_per_month": 0.000001},
    }
    config["models"]["cooling"] = model(("b", "cooling"))


@dataclass(frozen=True)
class Gateway:
    """A running stack and a key for each caller."""

    stack: Stack
    keys: dict[str, str] = field(repr=False)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Start a gateway that has something to refuse everybody for."""
    stack = start_stack(tmp_path_factory.mktemp("errors"), change=configure)
    try:
        keys = {
            "good": stack.create_key("good"),
            "unknown": "sk_" + "x" * 43,
            "narrow": stack.create_key("narrow", "--models", "renamed"),
            "spent": stack.create_key("spent", tier="daily"),
            "poor": stack.create_key("poor", tier="poor"),
        }

        def ask(key: str, name: str, **headers: str) -> int:
            headers["authorization"] = f"Bearer {keys[key]}"
            body = {"model": name, "messages": SAID}
            return httpx.post(f"{stack.base}{CHAT}", json=body, headers=headers).status_code

        limited = {"x-sim-status": "429", "x-sim-retry-after": "600"}
        assert ask("spent", "gpt-4o-mini") == 200
        assert ask("good", "cooling", **limited) == 429
        wait_for("the provider to be left alone", lambda: ask("good", "cooling") == 503)
        yield Gateway(stack, keys)
    finally:
        stack.stop()


@pytest.fixture
async def clients(gateway: Gateway) -> AsyncIterator[dict[str, Any]]:
    """Return every client by dialect and kind, without its own retries."""
    base = gateway.stack.base
    chat: dict[str, Any] = {"base_url": f"{base}/v1", "api_key": "none", "max_retries": 0}
    claude: dict[str, Any] = {"base_url": base, "api_key": "none", "max_retries": 0}
    with OpenAI(**chat) as one, Anthropic(**claude) as two:
        async with AsyncOpenAI(**chat) as three, AsyncAnthropic(**claude) as four:
            yield {"openai": (one, three), "anthropic": (two, four)}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
async def test_async_clients_raise_what_sync_ones_do(
    gateway: Gateway, clients: dict[str, Any], wrong: Wrong, dialect: str, stream: bool
) -> None:
    """The very class, with the same status, code and message, and an id to ask about."""
    fields: dict[str, Any] = {
        "model": wrong.model or WELL[dialect],
        "messages": SAID,
        "stream": stream,
        "extra_headers": wrong.headers,
        "extra_body": wrong.body,
    }
    sync, later = (
        client.with_options(api_key=gateway.keys[wrong.key]) for client in clients[dialect]
    )

    def make(client: Any) -> Any:
        if dialect == "openai":
            return client.chat.completions.create(**fields)
        return client.messages.create(max_tokens=50, **fields)

    with pytest.raises(FAILED) as at_once:
        make(sync)
    with pytest.raises(FAILED) as awaited:
        await make(later)
    raised: list[Any] = [at_once.value, awaited.value]
    expected = wrong.chat if dialect == "openai" else wrong.claude
    assert [type(error) for error in raised] == [expected] * 2
    for error in raised:
        assert (error.status_code, error.response.status_code) == (wrong.status, wrong.status)
        assert error.request_id == error.response.headers["x-request-id"]
        assert error.response.headers["content-type"] == "application/json"
        if dialect == "anthropic":
            assert (error.body["type"], error.body["error"]["type"]) == ("error", wrong.kind)
        elif wrong.code is not None:
            assert (error.code, error.body["code"]) == (wrong.code, wrong.code)
    one, other = ((error.body.get("error", error.body)) for error in raised)
    assert one["message"]
    assert one == other
