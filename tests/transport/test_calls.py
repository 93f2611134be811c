"""gRPC's rules on one connection of the lane, spoken byte by byte."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.transport import ACCESS_LOG, EXT_PROC, HEALTH, frames
from extproc.transport.bounds import Bounds
from extproc.transport.frames import frame
from extproc.transport.lane import LaneTransport

from .line import Line, hand
from .scenarios import IMPATIENT_S, Inbox, Opened
from .wire import ENDS, GRPC, HELLO, WHOLE, D, H, message, parsed, reset, setting, update

LIMIT = 300_000  # of a message
ALLOWANCE = 256 * 1024  # which the transport adds to a body's limit
WIDE = update(0, 10**6) + setting((frames.INITIAL_WINDOW_SIZE, 10**6))
START = HELLO + WIDE + frame(H, WHOLE, 1, Encoder().encode(GRPC))
BOUNDS = Bounds(queued_bytes=500_000, held_bytes=500_000)


@pytest.fixture
def opened() -> Opened:
    return Opened()


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
async def lane(tmp_path: Path, opened: Opened, inbox: Inbox) -> AsyncIterator[LaneTransport]:
    address = f"unix:{tmp_path}/s"
    made = LaneTransport(address, opened, inbox, LIMIT - ALLOWANCE, bounds=BOUNDS)
    await made.start()
    yield made
    await made.stop(0)


@pytest.fixture
async def line(lane: LaneTransport, tmp_path: Path) -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
    yield Line(reader, writer)
    writer.close()


async def test_an_answer_is_headers_messages_trailers(line: Line) -> None:
    """Each message in a frame of its own."""
    stream = line.call()
    line.data(stream, message(b"one") + message(b"") + message(b"end"))
    heads, messages, ends = await line.answer(stream)
    assert heads == {":status": "200", "content-type": "application/grpc"}
    assert messages == [b"one", b"", b"end"]
    assert ends == {"grpc-status": "0"}


TALK = (
    message(b"one") + message(b"x" * 20_000) + message(b"") + message(b"y" * 70) + message(b"end")
)


@settings(max_examples=60)
@given(st.lists(st.integers(0, len(TALK)), max_size=25))
def test_messages_may_be_cut_and_joined_at_will(cuts: list[int]) -> None:
    """DATA frames of any size give the same answers."""

    async def play() -> bytes:
        held = hand()
        places = sorted({0, *cuts, *range(0, len(TALK), 16384), len(TALK)})
        await held.give(START, *(frame(D, 0, 1, TALK[a:b]) for a, b in pairwise(places)))
        answers = parsed(held.socket.out)
        held.lose()
        assert [exchange.closes for exchange in held.opened.exchanges] == [1]
        return b"".join(payload for kind, *_, payload in answers if kind == D)

    assert asyncio.run(play()) == TALK


REFUSED = {
    "an unknown service": ("/other.Service/Do", (), ("12", "unknown method")),
    "an unknown method": (f"/{EXT_PROC}/Other", (), ("12", "unknown method")),
    "no method": (f"/{EXT_PROC}", (), ("12", "unknown method")),
    "a malformed timeout": (
        f"/{EXT_PROC}/Process",
        (("content-type", "application/grpc"), ("grpc-timeout", "1 hour")),
        ("13", "malformed grpc-timeout"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_called_is_answered_by_trailers_alone(
    line: Line, opened: Opened, name: str
) -> None:
    """One HEADERS frame that ends the stream; what the client still sends is passed over."""
    path, fields, status = REFUSED[name]
    stream = line.call(path, *fields)
    kind, flags, number, payload = await line.frame()
    found = dict(line.decoder.decode(payload))
    assert (kind, flags, number) == (H, WHOLE | ENDS, stream)
    assert found[":status"] == "200"
    assert (found["grpc-status"], found["grpc-message"]) == status
    line.data(stream, message(b"late"), ENDS)
    line.data(line.call(), message(b"end"))
    assert (await line.answer(line.last))[1] == [b"end"]
    assert len(opened.exchanges) == 1


@pytest.mark.parametrize("kind", ["application/json", "application/grpcx", ""])
async def test_a_call_that_is_not_grpc_is_415(line: Line, kind: str) -> None:
    """As the protocol asks, so that no HTTP client takes it for an answer."""
    stream = line.call(f"/{EXT_PROC}/Process", ("content-type", kind))
    heads, *_ = await line.answer(stream)
    assert heads[":status"] == "415"


async def test_a_get_is_405(line: Line, opened: Opened) -> None:
    """gRPC is POST."""
    head = [(":method", "GET"), *GRPC[1:]]
    line.writer.write(frame(H, WHOLE | ENDS, 1, line.encoder.encode(head)))
    line.last = 1
    heads, *_ = await line.answer(1)
    assert (heads[":status"], opened.exchanges) == ("405", [])


BROKEN = {
    "compressed": (b"\x01" + message(b"x")[1:], ("12", "compressed messages are not taken")),
    "a flag of 2": (b"\x02" + message(b"x")[1:], ("12", "compressed messages are not taken")),
    "too large": (b"\x00" + (LIMIT + 1).to_bytes(4, "big"), ("8", "message too large")),
    "the largest number": (b"\x00\xff\xff\xff\xff", ("8", "message too large")),
    "refused by the exchange": (message(b"bad"), ("3", "bad in state new")),
}


@pytest.mark.parametrize("answered", [False, True], ids=["at first", "after an answer"])
@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_message_ends_its_call(
    line: Line, opened: Opened, name: str, answered: bool
) -> None:
    """With its status, once, as trailers alone or after the answers there were."""
    raw, status = BROKEN[name]
    stream = line.call()
    if answered:
        line.data(stream, message(b"one"))
    line.data(stream, raw)
    heads, messages, ends = await line.answer(stream)
    assert (ends["grpc-status"], ends["grpc-message"]) == status
    assert messages == [b"one"] * answered
    assert (heads == ends) is not answered
    assert [exchange.closes for exchange in opened.exchanges] == [1]


HALF_CLOSED = {
    "an exchange that was asked nothing": (EXT_PROC + "/Process", b"", "0", []),
    "an exchange": (EXT_PROC + "/Process", message(b"one"), "0", [b"one"]),
    "an exchange in the middle of a message": (EXT_PROC + "/Process", b"\x00\x00", "13", []),
    "a log": (ACCESS_LOG + "/StreamAccessLogs", message(b"entry"), "0", [b""]),
    "a log in the middle of an entry": (ACCESS_LOG + "/StreamAccessLogs", b"\x00", "13", []),
    "a health check": (HEALTH + "/Check", message(b""), "0", [b"\x08\x02"]),
    "a health check that asks nothing": (HEALTH + "/Check", b"", "13", []),
    "a watch that asks nothing": (HEALTH + "/Watch", b"", "13", []),
    "a health check that is no message": (HEALTH + "/Check", message(b"\xff"), "13", []),
    "a health check of nobody": (HEALTH + "/Check", message(b"\n\x01x"), "5", []),
}


@pytest.mark.parametrize("together", [True, False], ids=["with the data", "after it"])
@pytest.mark.parametrize("name", HALF_CLOSED)
async def test_a_client_that_is_done_gets_its_end(line: Line, name: str, together: bool) -> None:
    """END_STREAM with the last bytes or in an empty frame."""
    path, raw, status, expected = HALF_CLOSED[name]
    stream = line.call("/" + path)
    line.data(stream, raw, ENDS if together else 0)
    if not together:
        line.data(stream, b"", ENDS)
    _, messages, ends = await line.answer(stream)
    assert (ends["grpc-status"], messages) == (status, expected)


async def test_a_call_that_ends_with_its_headers_is_over(line: Line, opened: Opened) -> None:
    """END_STREAM on HEADERS: nothing will be asked."""
    assert await line.status(line.call(flags=ENDS)) == ("0", "")
    assert [exchange.closes for exchange in opened.exchanges] == [1]


async def test_trailers_of_a_client_end_its_half(line: Line) -> None:
    """As END_STREAM does."""
    stream = line.call()
    line.data(stream, message(b"one"))
    line.writer.write(frame(H, WHOLE | ENDS, stream, line.encoder.encode([("x", "y")])))
    assert (await line.answer(stream))[1] == [b"one"]


@pytest.mark.parametrize("raw", [b"", message(b"one"), message(b"hang"), b"\x00\x00"], ids=repr)
async def test_a_deadline_ends_the_call(line: Line, opened: Opened, raw: bytes) -> None:
    """DEADLINE_EXCEEDED, whatever the call is doing; its exchange is closed once."""
    stream = line.call(
        f"/{EXT_PROC}/Process", ("content-type", "application/grpc"), ("grpc-timeout", "20m")
    )
    line.data(stream, raw)
    assert (await line.status(stream))[0] == "4"
    assert [exchange.closes for exchange in opened.exchanges] == [1]


async def test_a_deadline_that_is_kept_does_nothing(line: Line, opened: Opened) -> None:
    """Its timer goes with the call."""
    fields = ("content-type", "application/grpc"), ("grpc-timeout", "1m")
    stream = line.call(f"/{EXT_PROC}/Process", *fields)
    line.data(stream, message(b"end"))
    assert await line.status(stream) == ("0", "")
    stream = line.call()
    line.data(stream, message(b"late"))  # takes 10 ms
    line.data(stream, message(b"end"))
    assert (await line.answer(stream))[1] == [b"timed out", b"end"]
    assert [exchange.closes for exchange in opened.exchanges] == [1, 1]


async def test_an_exchange_that_fails_at_its_last_word_ends_its_call_alone(
    line: Line, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug there is one call's, as anywhere else."""
    stream = line.call()
    line.data(stream, message(b"impatient bug"))
    _, messages, ends = await line.answer(stream)
    assert (messages, ends["grpc-status"]) == ([b"impatient bug"], "13")
    assert "ZeroDivisionError" in caplog.text
    assert [exchange.closes for exchange in opened.exchanges] == [1]
    stream = line.call()
    line.data(stream, message(b"end"))
    assert await line.status(stream) == ("0", "")


async def test_who_does_not_read_is_not_called_silent(line: Line, opened: Opened) -> None:
    """The reply that waits for a window is the peer's to take; patience begins anew then."""
    line.writer.write(setting((frames.INITIAL_WINDOW_SIZE, 0)))
    stream = line.call()
    line.data(stream, message(b"impatient"))
    assert (await line.frame())[:3] == (H, WHOLE, stream)
    loop = asyncio.get_running_loop()
    passed = loop.create_future()
    loop.call_later(3 * IMPATIENT_S, passed.set_result, None)
    await passed
    line.writer.write(update(stream, 1000))
    assert (await line.frame())[3] == message(b"impatient")
    assert (await line.frame())[3] == message(b"overdue")
    assert (await line.frame())[:3] == (H, WHOLE | ENDS, stream)
    assert [exchange.closes for exchange in opened.exchanges] == [1]


async def test_a_deadline_behind_a_closed_window_resets_the_stream(line: Line) -> None:
    """Because trailers would wait behind the data for ever."""
    line.writer.write(setting((frames.INITIAL_WINDOW_SIZE, 0)))
    fields = ("content-type", "application/grpc"), ("grpc-timeout", "20m")
    stream = line.call(f"/{EXT_PROC}/Process", *fields)
    line.data(stream, message(b"one"))
    assert (await line.frame())[0] == H
    assert await line.frame() == parsed(reset(stream, frames.CANCEL))[0]


async def test_a_stream_whose_answers_wait_is_asked_no_more(line: Line, opened: Opened) -> None:
    """Its next message waits for the peer's window, so a slow reader holds one answer a stream."""
    line.writer.write(setting((frames.INITIAL_WINDOW_SIZE, 0)))
    stream = line.call()
    line.data(stream, message(b"one") + message(b"two") + message(b"end"))
    line.data(line.call(), message(b"other"))
    assert (await line.frame())[:3] == (H, WHOLE, stream)
    assert (await line.frame())[:3] == (H, WHOLE, line.last)
    assert [exchange.received for exchange in opened.exchanges] == [[b"one"], [b"other"]]
    line.writer.write(update(stream, 8 + 4))
    assert (await line.frame())[3] == message(b"one")
    assert (await line.frame())[3] == message(b"two")[:4]
    line.writer.write(update(stream, 100))
    assert (await line.frame())[3] == message(b"two")[4:]
    assert (await line.frame())[3] == message(b"end")
    assert (await line.frame())[:3] == (H, WHOLE | ENDS, stream)


async def test_messages_behind_one_that_suspends_wait_as_bytes(line: Line, opened: Opened) -> None:
    """None of them is handed on, and the stream's window bounds them."""
    stream = line.call()
    line.data(stream, message(b"later") + message(b"two"))
    line.data(line.call(), message(b"end"))
    await line.answer(line.last)
    assert opened.exchanges[0].received == [b"later"]
    line.data(stream, message(b"end"), ENDS)
    opened.exchanges[0].released.set()
    assert (await line.answer(stream))[1] == [b"later", b"two", b"end"]


async def test_too_many_bytes_under_way_cost_one_stream(line: Line, opened: Opened) -> None:
    """The one that goes over the bound is told so; the others finish."""
    first, second = line.call(), line.call()
    whole = message(b"x" * (LIMIT - 5))
    for stream in (first, second):
        for at in range(0, LIMIT - 16384, 16384):
            line.data(stream, whole[at : at + 16384])
    assert await line.status(second) == ("8", "too many bytes under way")
    line.data(first, whole[(LIMIT - 1) // 16384 * 16384 :])
    assert (await line.frame())[:3] == (H, WHOLE, first)
    assert [exchange.closes for exchange in opened.exchanges] == [0, 1]


async def test_replies_nobody_takes_end_the_connection_alone(
    lane: LaneTransport, tmp_path: Path
) -> None:
    """The slow reader: windows of 0 and more than the bound asked for."""
    slow, other = [Line(*(await asyncio.open_unix_connection(tmp_path / "s"))) for _ in range(2)]
    slow.writer.write(setting((frames.INITIAL_WINDOW_SIZE, 0)))
    for _ in range(3):
        stream = slow.call()
        whole = message(b"x" * 200_000)
        for at in range(0, len(whole), 16384):
            slow.data(stream, whole[at : at + 16384])
    while (found := await slow.frame())[0] != frames.GOAWAY:
        assert found[0] == H
    assert found[3][4:] == frames.number.pack(frames.ENHANCE_YOUR_CALM)
    assert await slow.reader.read() == b""
    other.data(other.call(), message(b"end"))
    assert (await other.answer(1))[1] == [b"end"]
    for line in (slow, other):
        line.writer.close()


async def test_every_watcher_hears_every_change_once(line: Line, lane: LaneTransport) -> None:
    """Of a service there is, and of one there is not."""
    known, unknown = line.call(f"/{HEALTH}/Watch"), None
    line.data(known, message(b""), ENDS)
    assert (await line.frame())[0] == H
    assert (await line.frame())[3] == message(b"\x08\x02")
    unknown = line.call(f"/{HEALTH}/Watch")
    line.data(unknown, message(b"\n\x01x"))
    assert (await line.frame())[0] == H
    assert (await line.frame())[3] == message(b"\x08\x03")
    await lane.set_serving(True)
    await lane.set_serving(True)
    assert (await line.frame())[2:] == (known, message(b"\x08\x01"))
    await lane.set_serving(False)
    assert (await line.frame())[2:] == (known, message(b"\x08\x02"))


async def test_a_watcher_that_has_ended_hears_no_more() -> None:
    """Its trailers may wait for a window still: nothing goes behind them."""
    held = hand(bounds=Bounds(held_bytes=100))
    head = Encoder().encode([*GRPC[:3], (":path", f"/{HEALTH}/Watch"), GRPC[4]])
    closed = setting((frames.INITIAL_WINDOW_SIZE, 0))
    await held.give(HELLO + closed + frame(H, WHOLE, 1, head) + frame(D, 0, 1, message(b"")))
    await held.give(frame(D, 0, 1, bytes(200)))  # over the bound
    await held.peer._lane.set_serving(True)  # type: ignore[attr-defined]
    await held.give(update(1, 1000))
    assert held.peer.queued == 0
    kinds = [(kind, flags) for kind, flags, number, _ in parsed(held.socket.out) if number]
    assert kinds == [(H, WHOLE), (D, 0), (H, WHOLE | ENDS)]
    held.lose()


@pytest.mark.parametrize("part", ["opening", "closing", "an access-log message"])
async def test_a_bug_anywhere_ends_its_call_alone(
    line: Line, opened: Opened, inbox: Inbox, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Logged, INTERNAL where an answer is still due, and the connection goes on."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.CRITICAL + 1):
        path, whole = f"/{EXT_PROC}/Process", "13"
        if part == "opening":
            opened.open, healthy = broken, opened.open  # type: ignore[method-assign, assignment]
        elif part == "closing":
            opened.broken_close, whole = True, "0"
        else:
            inbox.receive, path = broken, f"/{ACCESS_LOG}/StreamAccessLogs"  # type: ignore[method-assign, assignment]
        stream = line.call(path)
        line.data(stream, message(b"end"))
        assert (await line.status(stream))[0] == whole
        if part == "opening":
            opened.open = healthy  # type: ignore[method-assign]
        opened.broken_close = False
    line.data(line.call(), message(b"end"))
    assert (await line.answer(line.last))[1] == [b"end"]
