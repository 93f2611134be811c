"""What a client may say, what a provider may know, and what a client may learn."""

from __future__ import annotations

import pytest

from extproc.bundle.edge import CALLERS
from extproc.bundle.provider import NOT_RETURNED, NOT_SENT

from .harness import Gateway
from .scripted import http_answer

pytestmark = pytest.mark.asyncio(loop_scope="module")
ENVOYS = (
    "x-envoy-max-retries",
    "x-envoy-retry-on",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-original-path",
    "x-envoy-internal",
    "x-envoy-force-trace",
    "x-envoy-decorator-operation",
    "x-envoy-attempt-count",
    "x-envoy-hedge-on-per-try-timeout",
)
OWN = ("x-llm-tier", "x-llm-tenant", "x-llm-", "x-llm-providers", "x-llm-timeout", "x-llm-model")


async def test_control_headers_of_a_client_never_reach_the_processor(gateway: Gateway) -> None:
    """From 127.0.0.1, which Envoy would call internal, none is believed."""
    async with gateway.client() as client:
        sent = dict.fromkeys((*ENVOYS, *OWN), "1") | {f"x-llm-{n}": n for n in CALLERS}
        await client.post("/v1/chat/completions", content=b'{"model":"m"}', headers=sent)
    head = gateway.processor.heads[0]
    assert {n: v for n, v in head.items() if n.startswith("x-llm-")} == {
        f"x-llm-{name}": name for name in CALLERS
    }
    assert not [name for name in head if name.startswith("x-envoy-")]


async def test_control_headers_in_capitals_and_twice_are_dropped_too(gateway: Gateway) -> None:
    """Header names have no case, and a header may be repeated."""
    await gateway.raw(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        b"X-LLM-Tier: a\r\nX-Llm-Tier: b\r\nX-Envoy-Max-Retries: 9\r\nx-envoy-max-retries: 9\r\n"
        b"content-length: 2\r\n\r\n{}"
    )
    names = set(gateway.processor.heads[0])
    assert not {"x-llm-tier", "x-envoy-max-retries"} & names


async def test_a_provider_gets_nothing_of_or_about_the_caller(gateway: Gateway) -> None:
    """Credentials, addresses, cookies and control headers stay; simulation headers pass.

    The one header more is the name of the model, which is in the body too.
    """
    sent = dict.fromkeys(NOT_SENT, "private") | {
        "x-llm-provider": "a",
        "x-forwarded-for": "10.1.2.3",
        "x-forwarded-host": "evil",
        "x-sim-status": "200",
        "x-request-id": "my-id-1",
        "user-agent": "sdk/1",
    }
    async with gateway.client() as client:
        await client.post("/v1/chat/completions", content=b'{"model":"m"}', headers=sent)
    headers = gateway.providers["a"].seen[0].headers
    assert "private" not in headers.values()
    assert set(headers) == {
        *("host", "accept", "user-agent", "content-length", "x-sim-status", "x-request-id"),
        "x-upstream-model",
    }
    assert headers["x-request-id"] == "my-id-1"


async def test_who_calls_is_the_address_of_the_connection(gateway: Gateway) -> None:
    """A forged X-Forwarded-For does not come before Envoy's own."""
    await gateway.chat(x_forwarded_for="8.8.8.8")
    head = gateway.processor.heads[0]
    forged, _, added = head["x-forwarded-for"].partition(",")
    assert forged == "8.8.8.8"  # whatever it says, the last entry is whom the call is counted by
    assert added  # of a loopback connection Envoy adds its own address
    assert "8.8.8.8" not in added


async def test_an_answer_leaks_nothing_of_the_operators_account(gateway: Gateway) -> None:
    """The provider's limits, cookies and plumbing are taken off; its timing stays."""
    leaks = {name.replace("-", "_"): "leak" for name in NOT_RETURNED} | {
        "x_ratelimit_remaining_requests": "leak",
        "anthropic_ratelimit_tokens_limit": "leak",
        "x_envoy_upstream_service_time": "leak",
        "x_llm_provider": "leak",
        "openai_processing_ms": "12",
    }
    gateway.providers["a"].answer = http_answer(200, b"{}", **leaks)
    answer = await gateway.chat(x_request_id="my-id-2")
    assert "leak" not in answer.headers.values()
    assert answer.headers["openai-processing-ms"] == "12"
    assert answer.headers["x-llm-provider"] == "a"
    assert answer.headers["x-request-id"] == "my-id-2"
    assert answer.headers["server"] == "llm-edge"
    assert not [name for name in answer.headers if name.startswith(("x-ratelimit", "x-envoy"))]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/healthz", 200),
        ("/v1/chat/completions/", 404),
        ("/v1/chat/completions", 404),
        ("/v1/nothing", 404),
        ("/v1/models/../nothing", 404),
        ("/V1/models", 404),
        ("/", 404),
        ("/v1/messages", 404),
        ("/v1/chat%2Fcompletions", 307),
        ("/v1/chat%5ccompletions", 307),
        ("/v1/models/a%2Fb", 307),
    ],
)
async def test_what_is_no_endpoint_never_reaches_the_processor(
    gateway: Gateway, target: str, status: int
) -> None:
    """GETs of paths that are not ours, are ours by another method, or are spelled otherwise."""
    raw = await gateway.raw(
        f"GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
    )
    assert raw.startswith(f"HTTP/1.1 {status} ".encode()), raw
    assert gateway.processor.heads == []


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/v1//models", "/v1/models"),
        ("/v1/chat/../models", "/v1/models"),
        ("/v1/models/org/name", "/v1/models/org/name"),
        ("/v1/%6Dodels", "/v1/models"),
        ("http://evil.example/v1/models", "/v1/models"),
    ],
)
async def test_the_processor_sees_one_spelling_of_a_path(
    gateway: Gateway, target: str, path: str
) -> None:
    """What routes is what the processor decides on."""
    await gateway.raw(f"GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    assert gateway.processor.heads[0][":path"] == path


async def test_health_and_not_found_are_answered_without_the_processor(gateway: Gateway) -> None:
    """In JSON, in the shape of the API the path belongs to."""
    async with gateway.client() as client:
        health = await client.get("/healthz")
        openai = await client.get("/v1/nothing")
        anthropic = await client.post("/v1/messages/batches")
    assert health.json() == {"status": "ok"}
    assert openai.json()["error"]["code"] == "not_found"
    assert anthropic.json()["type"] == "error"
    assert anthropic.json()["error"]["type"] == "not_found_error"
    for answer in (health, openai, anthropic):
        assert answer.headers["content-type"] == "application/json"
        assert not [name for name in answer.headers if name.startswith("x-llm-")]
    assert gateway.processor.heads == []
