"""Errors Envoy answers itself, and answers it must not touch."""

from __future__ import annotations

import asyncio

import pytest

from extproc.errors import KINDS

from .harness import CHAT, Gateway, until
from .scripted import Request, deny, plan

pytestmark = pytest.mark.asyncio(loop_scope="module")
LARGEST = 10 * 1024 * 1024


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 429, 500, 502, 503, 504])
async def test_the_processors_answers_leave_as_they_came(gateway: Gateway, status: int) -> None:
    """Also those whose status Envoy has an answer of its own for."""
    body = b'{ "mine": "%CODE% \xc3\xa9" }\n'
    gateway.processor.denies = lambda _head: deny(
        status, body, content_type="application/json", retry_after="9", x_mine="1"
    )
    answer = await gateway.chat()
    assert (answer.status_code, answer.content) == (status, body)
    assert answer.headers["content-type"] == "application/json"
    assert (answer.headers["retry-after"], answer.headers["x-mine"]) == ("9", "1")
    assert answer.headers["x-request-id"]
    assert not [name for name in answer.headers if name.startswith("x-llm-")]


async def test_a_denied_call_is_not_logged(gateway: Gateway) -> None:
    """Only planned calls are entries: the one after the denied one is the first."""
    gateway.processor.denies = lambda head: (
        deny(401, b"{}") if head.get("x-request-id") == "denied" else None
    )
    assert (await gateway.chat(x_request_id="denied")).status_code == 401
    assert (await gateway.chat(x_request_id="planned")).status_code == 200
    await gateway.entry("planned")
    assert "denied" not in [entry.request.request_id for entry in gateway.processor.entries]


async def close(_request: Request, writer: asyncio.StreamWriter) -> None:
    """Break off before an answer."""
    writer.close()


async def garbage(_request: Request, writer: asyncio.StreamWriter) -> None:
    """Answer no HTTP."""
    writer.write(b"this is not HTTP\r\n\r\n")


@pytest.mark.parametrize(
    ("provider", "answer", "code"),
    [
        ("dead", None, "upstream_error"),
        ("nowhere", None, "upstream_error"),
        ("a", close, "upstream_error"),
        ("a", garbage, "upstream_error"),
        ("unknown", None, "no_healthy_provider"),
    ],
    ids=["refused", "unresolved", "breaks off", "speaks no HTTP", "is no cluster"],
)
async def test_a_failing_provider_is_told_in_the_callers_shape(
    gateway: Gateway, provider: str, answer: object, code: str
) -> None:
    """In JSON, with the table's status, and without the name of a provider that did not answer."""
    if answer is not None:
        gateway.providers["a"].answer = answer  # type: ignore[assignment]
    gateway.processor.plans = lambda seen: plan((provider, "m"), body=seen)
    reply = await gateway.chat()
    assert reply.status_code == KINDS[code].status
    assert reply.json()["error"]["code"] == code
    assert reply.headers["content-type"] == "application/json"
    assert ("retry-after" in reply.headers) == (code == "no_healthy_provider")
    assert not [name for name in reply.headers if name.startswith("x-llm-")]


async def test_a_body_over_the_limit_is_a_413_in_json(gateway: Gateway) -> None:
    """The limit itself passes; far above it Envoy answers, before the processor saw the body."""
    assert (await gateway.chat(b"x" * LARGEST)).status_code == 200
    answer = await gateway.chat(b"x" * (LARGEST + 2 * 65_536))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    await until("both heads", lambda: len(gateway.processor.heads) == 2)
    assert gateway.processor.bodies == [LARGEST]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx_y: 1\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (
            b"GET /v1/models HTTP/1.1\r\nhost: x\r\n"
            + b"".join(b"h%d: 1\r\n" % n for n in range(120))
            + b"\r\n",
            431,
        ),
        (
            (
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            400,
        ),
        (b"GET /v1/models HTTP/1.0\r\n\r\n", 426),
        (
            (
                b"GET /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
                b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
            ),
            403,
        ),
    ],
    ids=[
        *("no host", "no HTTP", "underscore", "long header", "many headers"),
        *("two lengths", "HTTP/1.0", "websocket"),
    ],
)
async def test_an_unreadable_request_is_refused_in_json(
    gateway: Gateway, request_bytes: bytes, status: int
) -> None:
    """And never reaches the processor."""
    raw = await gateway.raw(request_bytes)
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/json" in head
    assert b'"code":"invalid_request_error"' in body
    assert gateway.processor.heads == []


async def test_envoys_errors_have_the_anthropic_shape_under_its_paths(gateway: Gateway) -> None:
    """The request id in the body is escaped: it is the client's own text."""
    raw = await gateway.raw(
        b'GET /v1/messages HTTP/1.1\r\nhost: x\r\nx-request-id: a"b\r\n'
        b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
    )
    assert raw.startswith(b"HTTP/1.1 403 ")
    assert b'"type":"error"' in raw
    assert b'"request_id":"a\\"b"' in raw


async def test_a_processor_that_does_not_answer_is_a_503(gateway: Gateway) -> None:
    """Never an open door: nothing is sent to a provider."""

    def stuck(_head: dict[str, str]) -> None:
        raise RuntimeError("the RPC ends with an error")

    gateway.processor.denies = stuck
    answer = await gateway.chat()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "gateway_unavailable"
    assert answer.headers["retry-after"] == "1"
    assert gateway.providers["a"].seen == []


async def test_an_upload_that_never_ends_is_waited_for_only_so_long(gateway: Gateway) -> None:
    """The limit is stated in the listener's file; here, that a half body decides nothing."""
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{" % CHAT.encode())
    await until("the head", lambda: gateway.processor.heads)
    assert gateway.processor.bodies == []
    assert "request_timeout: 60s" in (gateway.directory / "lds.yaml").read_text()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("path", "headers", "shape"),
    [
        ("/v1/models", {"anthropic-version": "2023-06-01"}, "anthropic"),
        ("/v1/models", {}, "openai"),
        (CHAT, {"anthropic-version": "2023-06-01"}, "openai"),
    ],
    ids=["a list for Anthropic's client", "a list for another", "a chat says what it is"],
)
async def test_a_list_of_models_fails_in_the_callers_shape(
    gateway: Gateway, path: str, headers: dict[str, str], shape: str
) -> None:
    """The version header tells the caller's dialect where the path does not."""

    def stuck(_head: dict[str, str]) -> None:
        raise RuntimeError("the RPC ends with an error")

    gateway.processor.denies = stuck
    async with gateway.client() as client:
        answer = await client.request("GET" if path != CHAT else "POST", path, headers=headers)
    assert answer.status_code == 503
    assert ("type" in answer.json()) is (shape == "anthropic")
