"""HTTP/1.1 as clients and proxies really speak it."""

import asyncio
import json
import logging

import pytest

from extproc.simulator.http1 import MAX_PIPELINED, Connection, Exchange, Request
from extproc.simulator.server import Simulator

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)
LAST = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def test_pipelined_requests_are_answered_in_order(wire, sim) -> None:
    """A slow answer keeps its place before the fast ones behind it."""
    slow = CHAT + LENGTH + b"x-sim-latency-ms: 30\r\n\r\n" + BODY
    missing = b"GET /v1/models/none HTTP/1.1\r\nhost: x\r\n\r\n"
    received = await wire(slow + missing + LAST)
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.index(b"chat.completion") < received.index(b"404 Not Found")
    assert received.index(b"404 Not Found") < received.index(b'"object":"list"')
    paths = [record.path for record in sim.requests]
    assert paths == ["/v1/chat/completions", "/v1/models/none", "/v1/models"]


async def test_more_pipelined_requests_than_are_read_ahead(wire) -> None:
    """Reading stops and goes on, and nobody is forgotten."""
    slow = CHAT + LENGTH + b"x-sim-latency-ms: 5\r\n\r\n" + BODY
    count = MAX_PIPELINED * 2
    received = await wire(slow + (CHAT + LENGTH + b"\r\n" + BODY) * count + LAST)
    assert received.count(b"HTTP/1.1 200 OK") == count + 2


async def test_chunked_request(send, wire, sim) -> None:
    """A body in chunks is the body joined."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (1, BODY[i : i + 1]) for i in range(len(BODY)))
    head = CHAT + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    received = await wire(head + chunks + b"0\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert sim.requests[0].body_bytes == len(BODY)


async def test_a_request_that_comes_byte_by_byte(sim: Simulator) -> None:
    """TCP may cut a request anywhere."""
    reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
    for byte in CHAT + LENGTH + b"connection: close\r\n\r\n" + BODY:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    assert (await reader.read(-1)).startswith(b"HTTP/1.1 200 OK")
    writer.close()
    await writer.wait_closed()


async def test_expect_100_continue(sim: Simulator) -> None:
    """The body is asked for, then the answer comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
    writer.write(CHAT + LENGTH + b"expect: 100-continue\r\nconnection: close\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(BODY)
    assert (await reader.read(-1)).startswith(b"HTTP/1.1 200 OK")
    writer.close()
    await writer.wait_closed()


async def test_expect_100_continue_behind_another_request(sim: Simulator) -> None:
    """The interim answer never lands inside the answer before it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
    writer.write(CHAT + LENGTH + b"x-sim-latency-ms: 20\r\n\r\n" + BODY)
    writer.write(CHAT + LENGTH + b"expect: 100-continue\r\nconnection: close\r\n\r\n")
    first = await reader.readuntil(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 OK")
    writer.write(BODY)
    assert (await reader.read(-1)).startswith(b"HTTP/1.1 200 OK")
    writer.close()
    await writer.wait_closed()


async def test_head_has_no_body(send) -> None:
    """HEAD of an unknown path says how long the JSON would be, and sends none."""
    head, get = [await send(method, "/nowhere") for method in ("HEAD", "GET")]
    assert (head.status, get.status) == (404, 404)
    assert head.body == b""
    assert head.headers["content-type"] == get.headers["content-type"] == "application/json"
    assert int(head.headers["content-length"]) > 0
    assert get.json["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"hello\r\n\r\n", id="no HTTP at all"),
        pytest.param(CHAT + b"content-length: x\r\n\r\n", id="a length that is no number"),
        pytest.param(CHAT + b"transfer-encoding: chunked\r\n\r\nzz\r\n", id="a bad chunk size"),
    ],
)
async def test_malformed(data: bytes, wire) -> None:
    """What is not HTTP is answered 400 in JSON and the connection closed."""
    head, _, body = (await wire(data)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


async def test_http_1_0_stream_ends_with_the_connection(wire) -> None:
    """A client of HTTP/1.0 gets no chunks."""
    body = BODY[:-1] + b',"stream":true}'
    head = b"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body)
    head, _, received = (await wire(head + body)).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert received.startswith(b"data: ")
    assert received.endswith(b"data: [DONE]\n\n")


async def test_an_upgrade_is_refused_by_answering(wire) -> None:
    """No upgrade is spoken; the answer comes in HTTP/1.1 and the connection closes."""
    upgrade = b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
    received = await wire(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + upgrade)
    assert received.startswith(b"HTTP/1.1 200 OK")


async def test_repeated_headers_are_joined(send, sim) -> None:
    """The log shows both values."""
    await send("GET", "/v1/models", headers={"X-Twice": "1\r\nx-twice: 2"})
    assert sim.requests[0].headers["x-twice"] == "1, 2"


@pytest.mark.parametrize("started", [False, True])
async def test_a_bug_in_the_handler_ends_that_exchange_only(
    started: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug is logged with its trace, and the client is not left waiting."""

    def handle(exchange: Exchange) -> None:
        if started:
            exchange.begin(200, b"")
        raise RuntimeError("bug")

    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(handle, set()), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with caplog.at_level(logging.ERROR):
        writer.write(LAST)
        received = await reader.read(-1)
    assert received.startswith(b"HTTP/1.1 200 OK" if started else b"HTTP/1.1 500 Internal")
    assert "RuntimeError: bug" in caplog.text
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


def test_repr_says_where_an_exchange_is() -> None:
    """A log line about an exchange can be read."""
    request = Request("GET", "/v1/models", "", {}, b"", True, True)
    assert repr(Exchange(request, Connection(lambda _: None, set()))) == (
        "<Exchange GET /v1/models waiting>"
    )
