"""Answers that are to be kept, as the probe in a real Envoy collects them: whole, or not at all."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Sequence
from typing import Any

import pytest

from extproc.wire.structs import fields_of

from .harness import CHAT, Gateway
from .scripted import Answer, Request, http_answer, plan, stream_answer
from .streams import DONE, TRAPS, USAGE, content, cut, event, stream

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOM = 100_000
EVENTS = [event(content(text), ascii_only=False) for text in TRAPS]
SENT = stream([*EVENTS, event({"id": "c", "choices": [], "usage": USAGE}), DONE])
TOLD = stream([*EVENTS, DONE])
ZIPPED = gzip.compress(b"{}")
STATUS = "llm-edge; fwd=miss"


async def kept(
    gateway: Gateway, answer: Answer, *, room: int | None = ROOM, **more: Any
) -> tuple[bytes, dict[str, bytes], str]:
    """Return what a client got, what was collected, and Cache-Status."""
    gateway.providers["a"].answer = answer
    words = more if room is None else {**more, "keep_bytes": room}

    def plans(body: bytes) -> dict[str, Any]:
        return {**plan(("a", "m"), body=body, **words), "llm.limits": {"cache-status": STATUS}}

    gateway.processor.plans = plans
    got = await gateway.chat()
    entry = await gateway.entry(got.headers["x-request-id"])
    metadata = entry.common_properties.metadata.filter_metadata
    fields = fields_of(metadata["llm.answer"]) if "llm.answer" in metadata else {}
    collected = {name: value.string_value for name, value in fields.items()}
    return got.content, collected, got.headers["cache-status"]


@pytest.mark.parametrize("how", ["whole", "random", "bytes"])
async def test_a_stream_is_kept_as_the_provider_sent_it(gateway: Gateway, how: str) -> None:
    """With the usage event that this client did not ask for."""
    got, collected, status = await kept(gateway, stream_answer(cut(SENT, how)), strip_usage=True)
    assert got == TOLD
    assert collected == {"sse": SENT}
    assert status == STATUS + "; stored"


async def test_a_document_is_kept(gateway: Gateway) -> None:
    body = '{"é": "\\u0000", "usage": {}}'.encode()
    got, collected, status = await kept(gateway, http_answer(200, body))
    assert got == body
    assert collected == {"json": body}
    assert status == STATUS + "; stored"


async def test_the_largest_answer(gateway: Gateway) -> None:
    """A megabyte in metadata and in one message of the log."""
    body = b'{"x":"%b"}' % (b"y" * 1_048_568)
    _, collected, _ = await kept(gateway, http_answer(200, body), room=len(body))
    assert collected["json"] == body


NOT_KEPT = [
    pytest.param(stream_answer(cut(SENT, "random")), {"room": None}, False, id="not asked for"),
    pytest.param(stream_answer(cut(SENT, "random")), {"room": len(SENT) - 1}, True, id="too long"),
    pytest.param(http_answer(200, b"{}"), {"room": 1}, True, id="a document too long"),
    pytest.param(stream_answer([TOLD[:-20]]), {}, True, id="a stream without its end"),
    pytest.param(http_answer(400, b"{}"), {}, False, id="an error"),
    pytest.param(http_answer(201, b"{}"), {}, False, id="another success"),
    pytest.param(http_answer(200, b"{}", content_type="text/html"), {}, False, id="another type"),
    pytest.param(http_answer(200, ZIPPED, content_encoding="gzip"), {}, False, id="compressed"),
    pytest.param(http_answer(200, b'"\0"'), {}, True, id="a byte that would cut it"),
]


@pytest.mark.parametrize(("answer", "words", "begun"), NOT_KEPT)
async def test_what_is_not_kept(
    gateway: Gateway, answer: Answer, words: dict[str, Any], begun: bool
) -> None:
    """`stored` is said of what is being collected when the headers go."""
    _, collected, status = await kept(gateway, answer, **words)
    assert collected == {}
    assert status.endswith("; stored") is begun


@pytest.mark.parametrize("leaves", ["the client", "the provider"])
async def test_an_answer_that_breaks_is_not_kept(gateway: Gateway, leaves: str) -> None:
    gate = asyncio.Event()

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        await stream_answer([SENT], ends=False)(request, writer)
        await gate.wait()
        writer.close()

    gateway.providers["a"].answer = answer
    gateway.processor.plans = lambda body: plan(("a", "m"), body=body, keep_bytes=ROOM)
    headers = {"x-request-id": f"broken-{leaves}"}
    async with (
        gateway.client() as client,
        client.stream("POST", CHAT, content=b'{"model":"m"}', headers=headers) as got,
    ):
        await anext(got.aiter_raw())
        if leaves == "the provider":
            gate.set()
    entry = await gateway.entry(headers["x-request-id"])
    gate.set()
    assert "llm.answer" not in entry.common_properties.metadata.filter_metadata


async def test_a_status_from_elsewhere_is_not_ours(gateway: Gateway) -> None:
    """A cache at the provider says nothing to our callers."""
    answer = http_answer(200, b"{}", cache_status="theirs; hit", age="7")
    gateway.providers["a"].answer = answer
    got = await gateway.chat()
    assert not {"cache-status", "age"} & set(got.headers)


def pieces(count: int) -> Sequence[bytes]:
    """Return a stream of so many events."""
    return [event(content("x")) + b"\n\n"] * count + [DONE + b"\n\n"]


async def test_a_stream_of_many_chunks_is_kept(gateway: Gateway) -> None:
    sent = pieces(2_000)
    got, collected, _ = await kept(gateway, stream_answer(sent), room=2**20)
    assert got == collected["sse"] == b"".join(sent)
