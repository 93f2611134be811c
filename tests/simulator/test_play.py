"""Answers over time, broken answers, and thousands at once, over real sockets."""

import asyncio
import hashlib
import json
import resource

import openai
import pytest
from openai import AsyncOpenAI

from extproc.simulator.play import Wheel

HI = [{"role": "user", "content": "hi"}]
STREAMS = 2000


async def test_framings_carry_the_same_bytes(stream, sim) -> None:
    """However the stream is cut, the client reads the same events and the log the same digest."""
    answers = {}
    for framing in ("event", "byte", "random"):
        headers = {"x-sim-framing": framing, "x-sim-output-tokens": "5", "x-sim-digest": "1"}
        answers[framing] = await stream(headers)
    lengths = {name: [len(piece) for piece in one.pieces] for name, one in answers.items()}
    assert len(lengths["event"]) == len(answers["event"].events)
    assert set(lengths["byte"]) == {1}
    assert lengths["random"] != lengths["event"]
    for answer, record in zip(answers.values(), sim.requests, strict=True):
        assert answer.complete
        assert answer.words == "tok0 tok1 tok2 tok3 tok4 "
        assert record.sent_sha256 == hashlib.sha256(answer.body).hexdigest()
        assert record.sent_bytes == len(answer.body)
        assert record.chunks_sent == len(answer.events)
        assert record.output_tokens_sent == 5
    same_length = {len(answer.body) for answer in answers.values()}
    assert len(same_length) == 1


@pytest.mark.parametrize("framing", ["event", "byte", "random"])
async def test_crlf(framing: str, stream) -> None:
    """SSE lines may end in CRLF."""
    answer = await stream({"x-sim-newline": "crlf", "x-sim-framing": framing})
    assert answer.body.count(b"\r\n") == answer.body.count(b"\n") == 2 * len(answer.events)
    assert answer.events[-1] == "[DONE]"


@pytest.mark.parametrize("framing", ["event", "byte", "random"])
@pytest.mark.parametrize(
    ("after", "tokens", "chunks"),
    [
        pytest.param(0, 0, 0, id="before the first event"),
        pytest.param(4, 3, 4, id="in the middle"),
        pytest.param(19, 16, 19, id="between usage and the end mark"),
        pytest.param(20, 16, 20, id="after the last event, before the end of the body"),
    ],
)
async def test_abort(*, framing: str, after: int, tokens: int, chunks: int, stream, sim) -> None:
    """The connection closes in mid-body after exactly so many events."""
    headers = {"x-sim-abort-after-chunks": str(after), "x-sim-framing": framing}
    answer = await stream(headers)
    assert answer.status == 200
    assert not answer.complete
    assert len(answer.events) == chunks
    record = sim.requests[0]
    assert (record.broke, record.finished) == ("abort", False)
    assert (record.output_tokens_sent, record.chunks_sent) == (tokens, chunks)
    assert (record.usage_sent is not None) == (chunks >= 19)


async def test_abort_after_more_events_than_there_are(stream, sim) -> None:
    """A stream that ends before its break is whole."""
    answer = await stream({"x-sim-abort-after-chunks": "21"})
    assert answer.complete
    assert sim.requests[0].finished


async def test_abort_as_the_official_client_sees_it(client: AsyncOpenAI) -> None:
    """The client raises, after the events it got."""
    stream = await client.chat.completions.create(
        model="m", messages=HI, stream=True, extra_headers={"x-sim-abort-after-chunks": "3"}
    )
    for _ in range(3):
        assert (await anext(stream)).choices
    with pytest.raises(openai.APIConnectionError):
        await anext(stream)


async def test_abort_of_a_whole_answer(send, client: AsyncOpenAI, sim) -> None:
    """Half the body comes, then nothing."""
    headers = {"x-sim-abort-after-chunks": "1"}
    body = {"model": "m", "messages": HI}
    answer = await send("POST", "/v1/chat/completions", body, headers)
    assert not answer.complete
    assert len(answer.body) == int(answer.headers["content-length"]) // 2
    with pytest.raises(openai.APIConnectionError):
        await client.chat.completions.create(model="m", messages=HI, extra_headers=headers)
    assert [record.broke for record in sim.requests] == ["abort", "abort"]
    assert sim.requests[0].usage_sent is None


async def _open(sim, headers: str, streamed: bool = True):
    body = json.dumps({"model": "m", "messages": HI, "stream": streamed}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    writer.write(f"{head}{headers}\r\n".encode() + body)
    return reader, writer


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("streamed", [True, False])
async def test_stall(streamed: bool, sim, until) -> None:
    """The answer stops and the connection stays; the client leaving later changes nothing."""
    reader, writer = await _open(sim, "x-sim-stall-after-chunks: 2\r\n", streamed)
    await until(lambda: bool(sim.requests) and sim.requests[0].broke == "stall")
    await reader.readuntil(b"\r\n\r\n")
    if streamed:
        await reader.readuntil(b"\n\n")
        await reader.readuntil(b"\n\n\r\n")
    assert not reader.at_eof()
    await _close(writer)
    reader, writer = await _open(sim, "connection: close\r\n")
    await reader.read(-1)
    await _close(writer)
    record = sim.requests[0]
    assert (record.broke, record.finished) == ("stall", False)
    assert record.chunks_sent == (2 if streamed else 0)


@pytest.mark.parametrize(
    ("headers", "streamed"),
    [
        pytest.param("x-sim-chunk-ms: 5\r\nx-sim-output-tokens: 100000\r\n", True, id="paced"),
        pytest.param("x-sim-output-tokens: 1000000\r\n", True, id="slow reader"),
    ],
)
async def test_client_closed(headers: str, streamed: bool, sim, until) -> None:
    """A client that leaves in mid-stream is recorded with what it had been sent."""
    reader, writer = await _open(sim, headers, streamed)
    await reader.readuntil(b"tok3 ")
    await _close(writer)
    await until(lambda: sim.requests[0].broke is not None)
    record = sim.requests[0]
    assert (record.broke, record.finished) == ("client_closed", False)
    assert 4 <= record.output_tokens_sent < 1_000_000
    assert record.chunks_sent == record.output_tokens_sent + 1


async def test_a_client_that_leaves_before_the_answer(sim, until) -> None:
    """Leaving while the provider still thinks is recorded too, and no answer is made."""
    _, writer = await _open(sim, "x-sim-latency-ms: 50\r\n", streamed=False)
    await until(lambda: bool(sim.requests))
    await _close(writer)
    await until(lambda: sim.requests[0].broke == "client_closed")
    assert sim.requests[0].status is None


async def test_a_slow_reader_gets_everything(sim) -> None:
    """Writing waits for the reader and goes on."""
    tokens = 20_000
    headers = f"x-sim-output-tokens: {tokens}\r\nconnection: close\r\n"
    reader, writer = await _open(sim, headers)
    await reader.readuntil(b"tok1 ")
    assert sim.requests[0].output_tokens_sent < tokens
    rest = await reader.read(-1)
    assert rest.endswith(b"0\r\n\r\n")
    assert rest.count(b"tok") == tokens - 2
    await _close(writer)
    assert sim.requests[0].finished


async def test_latency_and_pace_take_their_time(stream, sim) -> None:
    """Delays are lower bounds: nothing comes early."""
    loop = asyncio.get_running_loop()
    before = loop.time()
    headers = {"x-sim-latency-ms": "40", "x-sim-chunk-ms": "10", "x-sim-output-tokens": "4"}
    answer = await stream(headers)
    assert loop.time() - before >= 0.078  # two timers, each exact to the loop's millisecond
    assert int(answer.headers["openai-processing-ms"]) >= 39
    assert sim.requests[0].finished


async def test_latency_delays_errors_too(send) -> None:
    """A provider may take its time to refuse."""
    headers = {"x-sim-status": "503", "x-sim-latency-ms": "20"}
    body = {"model": "m", "messages": HI}
    answer = await send("POST", "/v1/chat/completions", body, headers)
    assert answer.status == 503
    assert int(answer.headers["openai-processing-ms"]) >= 19


async def test_one_broken_stream_does_not_stop_its_neighbours() -> None:
    """Calls due in the same tick are independent."""
    loop = asyncio.get_running_loop()
    failures, called = [], asyncio.Event()
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
    wheel = Wheel(loop)
    due = wheel.now() + 0.005

    def fail() -> None:
        raise RuntimeError("bug")

    wheel.at(due, fail)
    wheel.at(due, called.set)
    await called.wait()
    assert [str(error) for error in failures] == ["bug"]
    assert wheel.now() >= due - 0.001


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_two_thousand_paced_streams(sim) -> None:
    """All finish, each with its own words, and the log has every one right."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * STREAMS + 500:
        pytest.skip(f"only {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * STREAMS + 500), hard))
    headers = "x-sim-chunk-ms: 200\r\nx-sim-output-tokens: 5\r\nconnection: close\r\n"

    async def one() -> bytes:
        reader, writer = await _open(sim, headers)
        received = await reader.read(-1)
        await _close(writer)
        return received

    try:
        answers = await asyncio.gather(*(one() for _ in range(STREAMS)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for received in answers:
        assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert [b'"tok%d "' % index in received for index in range(6)] == [True] * 5 + [False]
    assert [record.seq for record in sim.requests] == list(range(1, STREAMS + 1))
    assert {record.finished for record in sim.requests} == {True}
    assert {record.output_tokens_sent for record in sim.requests} == {5}
    assert {record.chunks_sent for record in sim.requests} == {8}
