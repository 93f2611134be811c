"""The control endpoints, the order of decisions, and running it as a process."""

import asyncio
import contextlib
import json
import signal
import sys

import pytest
from openai import AsyncOpenAI

from extproc.simulator.behaviour import Behaviour
from extproc.simulator.server import start

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
SERVE = """
from extproc.simulator.server import serve
serve("127.0.0.1", 0, dialect="openai", name="alone")
"""


async def test_sticky_behaviour(send, sim) -> None:
    """A posted behaviour lasts until the next one; an empty object resets."""
    posted = await send("POST", "/sim/behaviour", {"output_tokens": 3})
    assert posted.status == 200
    assert posted.json["output_tokens"] == 3
    assert (await send("GET", "/sim/behaviour")).json == posted.json
    answer = await send("POST", CHAT, BODY)
    assert answer.json["usage"]["completion_tokens"] == 3
    answer = await send("POST", CHAT, BODY, {"x-sim-output-tokens": "2"})
    assert answer.json["usage"]["completion_tokens"] == 2
    await send("POST", "/sim/behaviour", {})
    assert sim.behaviour == Behaviour()
    assert [record.path for record in sim.requests] == [CHAT, CHAT]


async def test_bad_behaviour_changes_nothing(send, sim) -> None:
    """A typing error is a 400, and what was set stays."""
    await send("POST", "/sim/behaviour", {"output_tokens": 3})
    for body in ({"latency": 1}, {"output_tokens": "3"}, b"nonsense"):
        answer = await send("POST", "/sim/behaviour", body)
        assert answer.status == 400
        assert answer.json["error"]["type"] == "invalid_request_error"
    assert sim.behaviour == Behaviour(output_tokens=3)


async def test_bad_behaviour_header(send, sim) -> None:
    """A request with a header that means nothing is refused, and recorded."""
    answer = await send("POST", CHAT, BODY, {"x-sim-colour": "red"})
    assert answer.status == 400
    assert "x-sim-colour" in answer.json["error"]["message"]
    assert sim.requests[0].broke == "status"


async def test_queued_statuses_are_used_up(send, sim) -> None:
    """Each POST takes one; a header, a GET or a bad request takes none; 200 is a normal answer."""
    await send("POST", "/sim/behaviour", {"statuses": [503, 200, 429], "retry_after": 2})
    requests = [
        ("GET", "/v1/models", None, {}),
        ("POST", CHAT, {}, {}),
        ("POST", CHAT, BODY, {}),
        ("POST", CHAT, BODY, {"x-sim-status": "500"}),
        ("POST", CHAT, BODY, {}),
        ("POST", CHAT, BODY, {}),
        ("POST", CHAT, BODY, {}),
    ]
    answers = [await send(*request) for request in requests]
    assert [answer.status for answer in answers] == [200, 400, 503, 500, 200, 429, 200]
    assert [answer.headers.get("retry-after") for answer in answers] == [
        *(None, None, "2", None, None, "2", None)
    ]
    assert sim.behaviour.statuses == ()


async def test_the_log_over_http(send, client: AsyncOpenAI, sim) -> None:
    """JSON lines in order of arrival, from a number on, until cleared."""
    for request_id in ("one", "two"):
        await client.chat.completions.create(**BODY, extra_headers={"x-request-id": request_id})
    answer = await send("GET", "/sim/requests")
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert [line["request_id"] for line in lines] == ["one", "two"]
    assert lines[0]["headers"]["authorization"] == "Bearer sk-test"
    assert set(lines[0]) == {
        *("seq", "time", "method", "path", "headers", "body_sha256", "body_bytes", "model"),
        *("stream", "include_usage", "status", "usage_sent", "prompt_tokens"),
        *("output_tokens_sent", "chunks_sent", "finished", "broke", "request_id", "answer_id"),
        *("sent_sha256", "sent_bytes"),
    }
    answer = await send("GET", "/sim/requests?after=1")
    assert [json.loads(line)["seq"] for line in answer.body.splitlines()] == [2]
    assert (await send("GET", "/sim/requests?after=x")).status == 400
    assert (await send("DELETE", "/sim/requests")).status == 200
    assert sim.requests == []
    assert (await send("GET", "/sim/nowhere")).status == 404


async def test_the_clock_is_an_argument(client: AsyncOpenAI) -> None:
    """Times in the log and in answers come from the clock that was given."""
    simulator = await start("127.0.0.1", 0, clock=lambda: 1234.5)
    async with client.with_options(base_url=f"http://127.0.0.1:{simulator.port}/v1") as other:
        answer = await other.chat.completions.create(**BODY)
    assert (answer.created, simulator.requests[0].time) == (1234, 1234.5)
    assert repr(simulator) == f"<Simulator 'sim' port={simulator.port} requests=1>"
    await simulator.close()


async def test_ids_are_unique_between_providers(client: AsyncOpenAI, sim) -> None:
    """Two simulators never give out the same request id."""
    simulator = await start("127.0.0.1", 0)
    async with client.with_options(base_url=f"http://127.0.0.1:{simulator.port}/v1") as other:
        answers = [await one.chat.completions.create(**BODY) for one in (client, client, other)]
    assert len({answer.id for answer in answers}) == 3
    await simulator.close()


async def test_unknown_dialect() -> None:
    """The error names the dialect and the legal ones."""
    with pytest.raises(ValueError, match=r"unknown dialect 'klingon'; legal: .*openai"):
        await start("127.0.0.1", 0, dialect="klingon")


async def test_close_drops_open_streams(until) -> None:
    """Closing does not wait for a stalled client."""
    simulator = await start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    body = json.dumps(BODY | {"stream": True}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\ncontent-length: {len(body)}\r\nx-sim-stall-after-chunks: 1"
    writer.write(head.encode() + b"\r\n\r\n" + body)
    await reader.readuntil(b"\n\n\r\n")
    await simulator.close()
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()
    with contextlib.suppress(ConnectionResetError):  # whether the reset shows depends on the loop
        await writer.wait_closed()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve(number: signal.Signals) -> None:
    """The process says where it listens, serves, and stops with 0 on a signal."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode().strip()
    start_of_line = "simulated provider alone (openai) on http://127.0.0.1:"
    assert line.startswith(start_of_line)
    assert line.endswith("/v1")
    async with AsyncOpenAI(base_url=line.split(" on ")[1], api_key="k", max_retries=0) as client:
        answer = await client.chat.completions.create(**BODY)
        assert answer.usage.completion_tokens == 16
        process.send_signal(number)
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
