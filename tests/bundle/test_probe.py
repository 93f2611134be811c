"""The response probe in a real Envoy: bytes on one side, metadata in the log on the other."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from extproc.cache.usage_event import without_usage

from .harness import CHAT, Gateway, until
from .scripted import Request, plan, stream_answer
from .streams import DONE, TRAPS, USAGE, content, cut, event, stream

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def pass_through(
    gateway: Gateway, pieces: Sequence[bytes], *, strip: bool, **more: Any
) -> tuple[bytes, dict[str, Any]]:
    """Stream the pieces to a client and return what it got and what the probe wrote."""
    gateway.providers["a"].answer = stream_answer(pieces)
    gateway.processor.plans = lambda body: plan(
        ("a", "m"), body=body, stream=True, strip_usage=strip, **more
    )
    answer = await gateway.chat()
    assert answer.status_code == 200
    return answer.content, await gateway.seen(answer.headers["x-request-id"])


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("how", ["whole", "bytes", "random"])
@pytest.mark.parametrize("strip", [False, True], ids=["usage kept", "usage dropped"])
async def test_a_stream_is_the_same_but_for_the_usage_event(
    gateway: Gateway, newline: bytes, how: str, strip: bool
) -> None:
    """Whatever the cuts and line ends, and whatever the content says."""
    before = [event(content(text, usage=None), ascii_only=False) for text in TRAPS]
    usage = event({"id": "c", "choices": [], "usage": USAGE}, (", ", ": "))
    sent = stream([*before, b": ping", usage, DONE], newline)
    kept = stream([*before, b": ping", DONE], newline) if strip else sent
    got, probe = await pass_through(gateway, cut(sent, how), strip=strip)
    assert got == kept
    assert probe["done"] == 1
    assert probe["events"] == len(before) + 1
    assert json.loads("{" + probe["usage"] + "}")["usage"] == USAGE
    assert probe["ttfc_ms"] >= 0
    assert probe["bytes"] == len(sent)


@pytest.mark.parametrize("seed", range(25))
async def test_cuts_change_nothing(gateway: Gateway, seed: int) -> None:
    """Randomly made streams, randomly cut, are what they are when they come whole."""
    draw = random.Random(seed)
    newline = draw.choice([b"\n", b"\r\n"])
    sent, kept = b"", b""
    for _ in range(draw.randrange(1, 9)):
        separators = draw.choice([(",", ":"), (", ", ": "), (" , ", " : ")])
        usage = draw.choice([None, USAGE])
        made = draw.choice(
            [content(draw.choice(TRAPS), usage=usage), {"choices": [], "usage": usage}]
        )
        one = event(made, separators, draw.random() < 0.5) + newline * 2
        sent += one
        kept += b"" if made["choices"] == [] and usage else one
    sent, kept = sent + DONE + newline * 2, kept + DONE + newline * 2
    pieces = cut(sent, draw.choice(["random", "bytes"]), seed)
    assert (await pass_through(gateway, pieces, strip=True))[0] == kept
    assert (await pass_through(gateway, pieces, strip=False))[0] == sent


@pytest.mark.parametrize("how", ["whole", "bytes"])
@pytest.mark.parametrize("last", [b"", b"\n"], ids=["no line end", "one line end"])
async def test_the_end_needs_no_blank_line(gateway: Gateway, how: str, last: bytes) -> None:
    """What is held when the answer ends is sent, or dropped when it is the usage event."""
    body = [event(content("a")), event(content("b"))]
    sent = stream(body, last=last)
    assert (await pass_through(gateway, cut(sent, how), strip=True))[0] == sent
    sent = stream([*body, event({"choices": [], "usage": USAGE})], last=last)
    got, probe = await pass_through(gateway, cut(sent, how), strip=True)
    assert got == stream(body)
    assert "prompt_tokens" in probe["usage"]
    got, probe = await pass_through(gateway, cut(stream([*body, DONE], last=last), how), strip=True)
    assert got == stream([*body, DONE], last=last)
    assert probe["done"] == 1


@pytest.mark.parametrize(
    "kept",
    [
        event({"choices": [], "usage": None}),
        event({"choices": [], "prompt_filter_results": [{"usage": {}}]}),
        event(content("x", usage=USAGE)),
        event({"x": {"choices": [], "usage": USAGE}}),
        b": choices [] usage {}",
    ],
    ids=["null usage", "usage deeper", "choices too", "both deeper", "comment"],
)
async def test_only_the_usage_event_is_dropped(gateway: Gateway, kept: bytes) -> None:
    """An empty `choices` and an object `usage`, both at the top level, or nothing."""
    sent = stream([event(content("a")), kept, DONE])
    for how in ("whole", "bytes"):
        assert (await pass_through(gateway, cut(sent, how), strip=True))[0] == sent


ALMOST_USAGE = (
    b'data: {"choices":[],\ndata: "usage":{}}',
    b'data: {"choices":[],"usage":{},"x":"\\"}{\\\\"}',
    b'data: {"choices":[],"usage":{"a":1},"x":[{"choices":[ ]}]}',
    b'data: {"choices":[],"usage":{"a":1},"x":[{"choices":[1]}]}',
    b'data: {"x":{"choices":[]},"usage":{}}',
    b'data: {"choices":[],"usage":{},"choices":null}',
    b'data: {"choices":[],"usage":{},"usage":null}',
    b'data: {"\\u0063hoices":[1],"choices":[],"usage":{}}',
    b'data: {"choices":[],"usage":{},"x":"',
    b'data: {"choices":[],"usage":{}',
    b'data: {"choices":[]],"usage":{}}',
    b'data: [{"choices":[],"usage":{}}]',
    b'data:\n\ndata:{ "usage" : {} , "choices" : [ ] }',
    b'id: 1\nevent: x\ndata:   {"choices":[],"usage":{}}',
    b'data: "choices":[],"usage":{}',
    b': {"choices":[],"usage":{}}',
    b'{"choices":[],"usage":{}}',
    b"data: [DONE]",
    b"",
)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
async def test_a_kept_stream_is_told_as_the_probe_lets_it_through(
    gateway: Gateway, newline: bytes
) -> None:
    """The cache and the probe agree on what the usage event is and what is left around it."""
    gateway.processor.plans = lambda body: plan(
        ("a", "m"), body=body, stream=True, strip_usage=True
    )
    draw = random.Random(newline)
    plain = event(content("a", usage=None))
    for one in (*ALMOST_USAGE, *[b""] * 20):
        events = [one] if one else draw.choices((plain, *ALMOST_USAGE), k=5)
        blank = newline * draw.choice([1, 2, 2, 2, 3])
        sent = stream([plain, *events], newline) + blank + stream([plain, DONE], newline)
        gateway.providers["a"].answer = stream_answer([sent])
        assert (await gateway.chat()).content == without_usage(sent), sent


async def test_an_event_of_many_megabytes_passes(gateway: Gateway) -> None:
    """It is neither held without bound nor changed."""
    sent = stream([event({"long": "y" * 3_000_000, "choices": []}), DONE])
    got, probe = await pass_through(gateway, cut(sent, "random"), strip=True)
    assert got == sent
    assert probe["done"] == 1


async def test_bytes_are_not_held_longer_than_they_may_be_usage(gateway: Gateway) -> None:
    """Half an event goes on as soon as its choices are seen not to be empty."""
    half, gate = b'data: {"id":"c","choices":[{"delta":{"content":"half', asyncio.Event()

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        await stream_answer([half], ends=False)(request, writer)
        await gate.wait()
        writer.write(b"0\r\n\r\n")

    gateway.providers["a"].answer = answer
    gateway.processor.plans = lambda body: plan(("a", "m"), body=body, strip_usage=True)
    async with (
        gateway.client() as client,
        client.stream("POST", CHAT, content=b'{"model":"m"}') as got,
    ):
        pieces = got.aiter_raw()
        assert await anext(pieces) == half
        gate.set()
        assert [piece async for piece in pieces] == []


async def test_the_log_is_right_when_the_client_leaves(gateway: Gateway) -> None:
    """After two events and their usage so far, and without an end."""
    gate = asyncio.Event()
    two = stream([event(content(text, usage=USAGE)) for text in "ab"])

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        await stream_answer([two], ends=False)(request, writer)
        await gate.wait()

    gateway.providers["a"].answer = answer
    async with gateway.client() as client:
        async with client.stream(
            "POST", CHAT, content=b'{"model":"m"}', headers={"x-request-id": "left"}
        ) as got:
            assert await anext(got.aiter_raw()) == two
    probe = await gateway.seen("left")
    gate.set()
    assert probe["events"] == 2
    assert "done" not in probe
    assert json.loads("{" + probe["usage"] + "}")["usage"] == USAGE
    entry = await gateway.entry("left")
    assert entry.common_properties.response_flags.downstream_connection_termination


async def test_done_is_known_before_the_blank_line(gateway: Gateway) -> None:
    """A client that leaves at the word [DONE] has had the whole answer."""
    gate = asyncio.Event()

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        await stream_answer([event(content("a")) + b"\n\n" + DONE + b"\n"], ends=False)(
            request, writer
        )
        await gate.wait()

    gateway.providers["a"].answer = answer
    async with gateway.client() as client:
        async with client.stream(
            "POST", CHAT, content=b'{"model":"m"}', headers={"x-request-id": "early"}
        ) as got:
            await anext(got.aiter_raw())
    assert (await gateway.seen("early"))["done"] == 1
    gate.set()


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete", "response.failed"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "by type alone"])
async def test_the_responses_api_ends_with_its_own_event(
    gateway: Gateway, kind: str, named: bool
) -> None:
    """Its usage stands in the last event, after an output of any size."""
    result = {"output": [{"text": "z" * 10_000}], "usage": {"input_tokens": 5}, "metadata": {}}
    events = [event({"type": "response.output_text.delta", "delta": "response.completed"})]
    name = f"event: {kind}\n".encode() if named else b""
    end = name + event({"type": kind, "response": result})
    _, probe = await pass_through(gateway, cut(stream(events), "random"), strip=False)
    assert "done" not in probe
    got, probe = await pass_through(gateway, cut(stream([*events, end]), "random"), strip=False)
    assert got == stream([*events, end])
    assert probe["done"] == 1
    assert probe["usage"] == '"usage":{"input_tokens":5}'


MESSAGE = [
    (
        b"event: message_start\n"
        b'data: {"type":"message_start","message":{"id":"m","content":[],"usage":{"input_tokens":377,'
        b'"cache_creation":{"ephemeral_5m_input_tokens":0},"cache_read_input_tokens":9,"output_tokens":1}}}'
    ),
    b'event: ping\ndata: {"type": "ping"}',
    (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
        b'{"type":"input_json_delta","partial_json":"\\"usage\\":{\\"input_tokens\\":1}"}}'
    ),
    (
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
        b'"usage" : {"output_tokens":65}}'
    ),
    b'event: message_stop\ndata: {"type":"message_stop"}',
]
FIRST = (
    '"usage":{"input_tokens":377,"cache_creation":{"ephemeral_5m_input_tokens":0},'
    '"cache_read_input_tokens":9,"output_tokens":1}'
)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("how", ["whole", "bytes", 1, 2, 3, 4, 5])
@pytest.mark.parametrize("named", [True, False], ids=["named", "by type alone"])
async def test_anthropics_two_parts_of_usage_are_both_kept(
    gateway: Gateway, newline: bytes, how: str | int, named: bool
) -> None:
    """What message_start says of the prompt stays when message_delta says the rest."""
    events = MESSAGE if named else [one.partition(b"\n")[2] for one in MESSAGE]
    sent = stream(events, b"\n").replace(b"\n", newline)
    pieces = cut(sent, how, 0) if isinstance(how, str) else cut(sent, "random", how)
    got, probe = await pass_through(gateway, pieces, strip=False)
    assert got == sent
    assert probe["usage"] == f'message_start {FIRST} "usage" : {{"output_tokens":65}}'
    assert probe["done"] == 1


@pytest.mark.parametrize("how", ["whole", "bytes"])
async def test_an_anthropic_stream_that_breaks_has_its_first_part(
    gateway: Gateway, how: str
) -> None:
    """Without a message_delta the log has what message_start said, marked so, and no end."""
    _, probe = await pass_through(gateway, cut(stream(MESSAGE[:3]), how), strip=False)
    assert probe["usage"] == f"message_start {FIRST}"
    assert "done" not in probe


@pytest.mark.parametrize("how", ["whole", "bytes"])
async def test_only_a_stream_that_opens_so_has_two_parts(gateway: Gateway, how: str) -> None:
    """A caller's schema that names usage and message_start adds nothing to the last usage."""
    schema = {"usage": {"input_tokens": 0}, "enum": ["message_start"]}
    first = event({"type": "response.created", "response": {"tools": [schema]}})
    last = event({"type": "response.completed", "response": {"usage": {"input_tokens": 5}}})
    _, probe = await pass_through(gateway, cut(stream([first, last]), how), strip=False)
    assert probe["usage"] == '"usage":{"input_tokens":5}'


async def test_the_script_never_failed(gateway: Gateway) -> None:
    """Envoy counts and logs errors of Lua; there were none in this module's gateway."""
    await pass_through(gateway, [stream([event(content("a")), DONE])], strip=True)
    await until("Envoy's statistics", lambda: gateway.admin("/stats?filter=lua"))
    stats = await gateway.admin("/stats?filter=lua.*errors")
    assert all(line.endswith(": 0") for line in stats.splitlines())
    assert "script log" not in gateway.log()
