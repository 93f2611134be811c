"""The response probe and answers that are no stream."""

from __future__ import annotations

import asyncio
import json

import pytest

from .harness import CHAT, Gateway
from .scripted import Request, http_answer
from .streams import USAGE, cut

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "with a length"])
async def test_usage_of_a_document_is_found_wherever_it_is_cut(
    gateway: Gateway, chunked: bool
) -> None:
    """The last object named usage, not the caller's words about one."""
    document = {
        "a": {"usage": {"prompt_tokens": 1}},
        "t": '"usage":{"x":1}',
        "usage": USAGE,
        "z": 1,
    }
    body = json.dumps(document).encode()

    async def answer(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json; charset=utf-8\r\n")
        if not chunked:
            writer.write(b"content-length: %d\r\n\r\n" % len(body))
        else:
            writer.write(b"transfer-encoding: chunked\r\n\r\n")
        for piece in cut(body, "bytes"):
            writer.write(b"1\r\n%b\r\n" % piece if chunked else piece)
            await writer.drain()
        writer.write(b"0\r\n\r\n" if chunked else b"")

    gateway.providers["a"].answer = answer
    reply = await gateway.chat()
    assert reply.content == body
    probe = await gateway.seen(reply.headers["x-request-id"])
    assert probe["done"] == 1
    assert json.loads("{" + probe["usage"] + "}")["usage"] == USAGE


async def test_a_document_cut_short_is_not_done(gateway: Gateway) -> None:
    """The provider announced more than it sent."""

    async def answer(_request: Request, writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n"
        writer.write(head + b'{"usage":{"prompt_tokens":4')
        await writer.drain()
        writer.close()

    gateway.providers["a"].answer = answer
    head = b"x-request-id: short\r\ncontent-length: 13\r\nconnection: close\r\n\r\n"
    await gateway.raw(
        b"POST %b HTTP/1.1\r\nhost: x\r\n%b" % (CHAT.encode(), head) + b'{"model":"m"}'
    )
    probe = await gateway.seen("short")
    assert "done" not in probe


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "application/json"), (500, "text/event-stream")],
)
async def test_errors_are_not_looked_at(gateway: Gateway, status: int, kind: str) -> None:
    """An error has no usage, whatever it says."""
    gateway.providers["a"].answer = http_answer(
        status, b'{"usage":{"prompt_tokens":1}}', content_type=kind
    )
    answer = await gateway.chat()
    assert await gateway.seen(answer.headers["x-request-id"]) == {}


@pytest.mark.parametrize(
    "headers", [{"content_type": "text/plain"}, {"content_encoding": "gzip"}], ids=["type", "gzip"]
)
async def test_of_an_unreadable_answer_the_end_is_told(
    gateway: Gateway, headers: dict[str, str]
) -> None:
    """So that it settles as finished, by an estimate."""
    body = b'{"usage":{"prompt_tokens":1}}'
    gateway.providers["a"].answer = http_answer(200, body, **headers)
    async with gateway.client() as client, client.stream("POST", CHAT, content=b"{}") as answer:
        assert await anext(answer.aiter_raw())
    probe = await gateway.seen(answer.headers["x-request-id"])
    assert probe == {"bytes": len(body), "done": 1}
