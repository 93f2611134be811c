"""One HTTP/2 connection fed with bytes, by the `h2` client and by hand."""

from __future__ import annotations

from itertools import pairwise

import h2.events
import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.transport import frames, http2
from extproc.transport.control import STREAM_WINDOW
from extproc.transport.frames import PREFACE, ConnectionFault, frame
from extproc.transport.http2 import TURN_BUDGET, Connection

from .wire import (
    BLOCK,
    ENDS,
    HELLO,
    OPEN,
    REQUEST,
    RESPONSE,
    TRAILERS,
    WHOLE,
    C,
    D,
    H,
    Heard,
    client,
    fed,
    feed,
    goaway,
    parsed,
    reset,
    setting,
    update,
)


def conversation() -> bytes:
    """Build what a client says: requests of every shape, a ping and a reset."""
    talk = client()
    talk.send_headers(1, [*REQUEST, ("x-long", "v" * 300)])
    talk.send_headers(3, REQUEST)
    talk.send_data(1, b"first", pad_length=7)
    talk.ping(b"12345678")
    talk.send_data(3, b"second")
    talk.increment_flow_control_window(1000)
    talk.send_headers(1, [("x-trailer", "t")], end_stream=True)
    talk.reset_stream(3)
    talk.send_headers(5, REQUEST, end_stream=True)
    return talk.data_to_send()


CONVERSATION = conversation()
WHOLE_TALK, WHOLE_HEARD = fed(CONVERSATION)
WHOLE_OUT = WHOLE_TALK.take()


def test_a_conversation_is_heard() -> None:
    """Requests, data, trailers, a reset: in order, padding and priorities off."""
    headers = dict(REQUEST)
    assert WHOLE_HEARD.events == [
        ("opened", 1, {**headers, "x-long": "v" * 300}),
        ("opened", 3, headers),
        ("received", 1, b"first"),
        ("received", 3, b"second"),
        ("half closed", 1),
        ("reset", 3),
        ("opened", 5, headers),
        ("half closed", 5),
    ]
    assert parsed(WHOLE_OUT) == [
        (frames.SETTINGS, frames.ACK, 0, b""),
        (frames.PING, frames.ACK, 0, b"12345678"),
    ]
    assert list(WHOLE_TALK.streams) == [1, 5]
    assert repr(WHOLE_HEARD.streams[3]) == "<Stream 3 closed, may send 65535>"
    assert repr(WHOLE_HEARD.streams[5]) == "<Stream 5 half-closed, may send 65535>"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 9, 10])
def test_pieces_of_one_size_are_heard_alike(size: int) -> None:
    """A byte at a time, and more."""
    pieces = [CONVERSATION[at : at + size] for at in range(0, len(CONVERSATION), size)]
    connection, heard = fed(*pieces)
    assert (heard.events, connection.take()) == (WHOLE_HEARD.events, WHOLE_OUT)


def test_every_single_cut_is_heard_alike() -> None:
    """In two, anywhere."""
    for at in range(len(CONVERSATION) + 1):
        connection, heard = fed(CONVERSATION[:at], CONVERSATION[at:])
        assert (heard.events, connection.take()) == (WHOLE_HEARD.events, WHOLE_OUT)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, len(CONVERSATION)), max_size=30),
    st.lists(st.integers(1, 5), min_size=1, max_size=40),
)
def test_any_cuts_and_turns_are_heard_alike(cuts: list[int], budgets: list[int]) -> None:
    """However the bytes are cut and however few frames a turn may take."""
    places = [0, *sorted(cuts), len(CONVERSATION)]
    connection, heard = fed()
    turns = 0
    for start, stop in pairwise(places):
        data = CONVERSATION[start:stop]
        while True:
            connection.budget = budgets[turns % len(budgets)]
            turns += 1
            if connection.feed(data):
                break
            data = b""
    assert (heard.events, connection.take()) == (WHOLE_HEARD.events, WHOLE_OUT)


def test_a_turn_ends_when_its_budget_is_used_up() -> None:
    """What is left waits, and new bytes come behind it."""
    connection, heard = fed(OPEN)
    connection.budget = 2
    assert not connection.feed(b"".join(frame(D, 0, 1, b"%d" % n) for n in range(3)))
    assert not connection.feed(frame(D, 0, 1, b"3"))
    connection.budget = TURN_BUDGET
    assert connection.feed(b"")
    assert [event[2] for event in heard.events[1:]] == [b"0", b"1", b"2", b"3"]


def test_the_h2_client_understands_the_answers() -> None:
    """Response, data and trailers of a stream that the client still holds open."""
    talk, heard = client(), Heard()
    connection = Connection(heard)
    talk.send_headers(1, REQUEST)
    connection.feed(talk.data_to_send())
    connection.send(heard.streams[1], RESPONSE, b"one", b"")
    connection.send(heard.streams[1], b"", b"two", TRAILERS)
    events = talk.receive_data(connection.take())
    data = [event.data for event in events if isinstance(event, h2.events.DataReceived)]
    ends = [event.headers for event in events if isinstance(event, h2.events.TrailersReceived)]
    assert (data, ends) == ([b"one", b"two"], [[(b"grpc-status", b"0")]])
    assert not connection.streams


def test_the_same_request_again_is_heard_alike() -> None:
    """Blocks of indexes alone are remembered, until the table changes."""
    talk = client()
    for stream in (1, 3, 5, 7):
        path = "/other" if stream == 5 else "/s/M"
        talk.send_headers(stream, [*REQUEST[:3], (":path", path), ("x", "y")])
    _, heard = fed(talk.data_to_send())
    paths = [event[2][":path"] for event in heard.events]  # type: ignore[index]
    assert paths == ["/s/M", "/s/M", "/other", "/s/M"]


def test_a_padded_and_prioritized_header_block_in_parts_is_one() -> None:
    """HEADERS and two CONTINUATION frames, cut inside a field."""
    flags = frames.PADDED | frames.PRIORITIZED
    head = frame(H, flags, 1, b"\x03" + bytes(5) + BLOCK[:2] + bytes(3))
    parts = [frame(C, 0, 1, BLOCK[2:4]), frame(C, WHOLE, 1, BLOCK[4:])]
    _, heard = fed(HELLO, head, *parts)
    assert heard.events == [("opened", 1, dict(REQUEST))]


def test_frames_nobody_knows_and_acknowledgements_are_passed_over() -> None:
    """PRIORITY, unknown kinds, GOAWAY and the answers to our own frames."""
    others = frame(frames.PRIORITY, 0, 1, bytes(5)) + frame(0xEE, 0xFF, 9, b"?") + goaway(0, 0)
    acks = frame(frames.SETTINGS, frames.ACK, 0) + frame(frames.PING, frames.ACK, 0, bytes(8))
    connection, heard = fed(OPEN)
    connection.take()
    connection.feed(others + acks)
    assert (len(heard.events), connection.take()) == (1, b"")


def test_the_reserved_bit_of_a_stream_means_nothing() -> None:
    """RFC 9113 4.1: ignored when received."""
    _, heard = fed(OPEN, frame(D, 0, 1 | 1 << 31, b"x"))
    assert heard.events[-1] == ("received", 1, b"x")


# Flow control, from the peer to us.


def test_received_bytes_are_given_back_to_both_windows() -> None:
    """At half a window, and padding counts."""
    connection, heard = fed(OPEN)
    connection.take()
    padded = frame(D, frames.PADDED, 1, b"\xff" + bytes(frames.MAX_FRAME_BYTES - 1))
    count = http2.REPLENISH_BYTES // frames.MAX_FRAME_BYTES
    feed(connection, padded * (count - 1))
    assert connection.take() == b""
    feed(connection, padded)
    assert connection.take() == update(0, http2.REPLENISH_BYTES) + update(1, http2.REPLENISH_BYTES)
    assert heard.events[-1] == ("received", 1, bytes(frames.MAX_FRAME_BYTES - 256))


def test_a_held_stream_gets_its_window_back_when_it_is_released() -> None:
    """The connection's window goes on, so that the others do too."""
    connection, heard = fed(OPEN)
    stream = heard.streams[1]
    stream.held = True
    full = frame(D, 0, 1, bytes(frames.MAX_FRAME_BYTES))
    connection.take()
    feed(connection, full * (STREAM_WINDOW // frames.MAX_FRAME_BYTES))
    assert connection.take() == update(0, http2.REPLENISH_BYTES) * 2
    connection.release(stream)
    assert connection.take() == update(1, STREAM_WINDOW)


def test_more_than_a_held_streams_window_resets_it() -> None:
    """FLOW_CONTROL_ERROR, and the connection goes on."""
    connection, heard = fed(OPEN)
    heard.streams[1].held = True
    full = frame(D, 0, 1, bytes(frames.MAX_FRAME_BYTES))
    feed(connection, full * (STREAM_WINDOW // frames.MAX_FRAME_BYTES))
    connection.take()
    feed(connection, frame(D, 0, 1, b"x"))
    assert connection.take() == reset(1, frames.FLOW_CONTROL_ERROR)
    assert heard.events[-1] == ("reset", 1)


def test_data_of_a_stream_we_ended_still_counts_for_the_connection() -> None:
    """RFC 9113 5.1: or the connection's window would leak away."""
    connection, heard = fed(OPEN)
    connection.send(heard.streams[1], RESPONSE, b"", TRAILERS)
    connection.take()
    full = frame(D, 0, 1, bytes(frames.MAX_FRAME_BYTES))
    feed(connection, full * (http2.REPLENISH_BYTES // frames.MAX_FRAME_BYTES))
    assert connection.take() == update(0, http2.REPLENISH_BYTES)
    assert len(heard.events) == 1


# Streams.


def test_a_reset_stream_sends_no_more() -> None:
    """What it still had to send is dropped, and what still comes for it is answered in kind."""
    connection, heard = fed(OPEN)
    stream = heard.streams[1]
    connection.send(stream, RESPONSE, bytes(100_000), b"")
    connection.feed(reset(1))
    connection.take()
    connection.feed(update(0, 100_000) + update(1, 100_000))
    connection.send(stream, RESPONSE, b"late", TRAILERS)
    assert (connection.take(), connection.sender.queued) == (b"", 0)
    assert heard.events[-1] == ("reset", 1)
    connection.feed(frame(D, 0, 1, b"late"))
    assert connection.take() == reset(1, frames.STREAM_CLOSED)


def test_what_comes_for_a_stream_we_ended_is_passed_over_until_its_end() -> None:
    """Data, trailers, updates and a reset under way when our trailers went out."""
    for last in (frame(D, ENDS, 1, b"x"), frame(H, WHOLE | ENDS, 1, b""), reset(1)):
        connection, heard = fed(OPEN)
        connection.send(heard.streams[1], RESPONSE, b"", TRAILERS)
        connection.take()
        connection.feed(frame(D, 0, 1, b"x") + update(1, 5) + last)
        assert (connection.take(), len(heard.events)) == (b"", 1)
        connection.feed(frame(D, 0, 1, b"x"))
        assert connection.take() == reset(1, frames.STREAM_CLOSED)


def test_cancelling_resets_the_stream_and_tells_its_owner() -> None:
    """CANCEL, once."""
    connection, heard = fed(OPEN)
    connection.take()
    connection.cancel(heard.streams[1])
    connection.cancel(heard.streams[1])
    assert connection.take() == reset(1, frames.CANCEL)
    assert heard.events[-1] == ("reset", 1)


LENGTH = Encoder().encode([*REQUEST, ("content-length", "5")])
BAD = Encoder().encode([*REQUEST, ("Upper", "case")])
ITSELF = frame(H, WHOLE | frames.PRIORITIZED, 1, frames.number.pack(1) + b"\x10" + BLOCK)
STREAM_FAULTS = {
    "data after the end": (OPEN + frame(D, ENDS, 1) + frame(D, 0, 1, b"x"), frames.STREAM_CLOSED),
    "trailers after the end": (
        OPEN + frame(D, ENDS, 1) + frame(H, WHOLE | ENDS, 1, b""),
        frames.STREAM_CLOSED,
    ),
    "trailers that do not end": (OPEN + frame(H, WHOLE, 1, b""), frames.PROTOCOL_ERROR),
    "a pseudo-header in trailers": (OPEN + frame(H, WHOLE | ENDS, 1, BLOCK), frames.PROTOCOL_ERROR),
    "an upper-case name": (HELLO + frame(H, WHOLE, 1, BAD), frames.PROTOCOL_ERROR),
    "a request without a path": (HELLO + frame(H, WHOLE, 1, b"\x83\x86"), frames.PROTOCOL_ERROR),
    "an empty header block": (HELLO + frame(H, WHOLE, 1, b""), frames.PROTOCOL_ERROR),
    "more than content-length": (
        HELLO + frame(H, WHOLE, 1, LENGTH) + frame(D, 0, 1, b"123456"),
        frames.PROTOCOL_ERROR,
    ),
    "less than content-length": (
        HELLO + frame(H, WHOLE, 1, LENGTH) + frame(D, ENDS, 1, b"1234"),
        frames.PROTOCOL_ERROR,
    ),
    "less than content-length before trailers": (
        HELLO + frame(H, WHOLE, 1, LENGTH) + frame(H, WHOLE | ENDS, 1, b""),
        frames.PROTOCOL_ERROR,
    ),
    "content-length and no data": (
        HELLO + frame(H, WHOLE | ENDS, 1, LENGTH),
        frames.PROTOCOL_ERROR,
    ),
    "WINDOW_UPDATE of 0": (OPEN + update(1, 0), frames.PROTOCOL_ERROR),
    "window overflow": (OPEN + update(1, 2**31 - 1), frames.FLOW_CONTROL_ERROR),
    "PRIORITY of a wrong size": (
        OPEN + frame(frames.PRIORITY, 0, 1, b"1234"),
        frames.FRAME_SIZE_ERROR,
    ),
    "PRIORITY on itself": (
        OPEN + frame(frames.PRIORITY, 0, 1, frames.number.pack(1) + b"\x10"),
        frames.PROTOCOL_ERROR,
    ),
    "HEADERS that depend on themselves": (HELLO + ITSELF, frames.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", STREAM_FAULTS)
def test_a_streams_fault_resets_it_alone(name: str) -> None:
    """RST_STREAM with its code; the stream's owner hears of it once, and another stream goes on."""
    raw, code = STREAM_FAULTS[name]
    connection, heard = fed(raw)
    assert parsed(connection.take())[1:] == parsed(reset(1, code))
    told = [event[0] for event in heard.events if event[0] in {"opened", "reset"}]
    assert told in ([], ["opened", "reset"])
    connection.feed(frame(H, WHOLE, 3, Encoder().encode(REQUEST)) + frame(D, 0, 3, b"on"))
    assert heard.events[-1] == ("received", 3, b"on")


def test_content_length_that_is_kept_is_no_fault() -> None:
    """In one piece, and padded in several."""
    for data in (
        frame(D, ENDS, 1, b"12345"),
        frame(D, frames.PADDED, 1, b"\x0112x") + frame(D, ENDS, 1, b"345"),
        frame(D, 0, 1, b"12345") + frame(H, WHOLE | ENDS, 1, b""),
    ):
        _, heard = fed(HELLO, frame(H, WHOLE, 1, LENGTH), data)
        assert heard.events[-1] == ("half closed", 1)


FAULTS = {
    "not HTTP/2": (b"GET / HTTP/1.1\r\n", frames.PROTOCOL_ERROR),
    "not HTTP/2, long": (b"GET / HTTP/1.1\r\nHost: example\r\n", frames.PROTOCOL_ERROR),
    "HEADERS before SETTINGS": (PREFACE + frame(H, WHOLE, 1, BLOCK), frames.PROTOCOL_ERROR),
    "an acknowledgement before SETTINGS": (
        PREFACE + frame(frames.SETTINGS, frames.ACK, 0),
        frames.PROTOCOL_ERROR,
    ),
    "even stream": (OPEN + frame(H, WHOLE, 2, BLOCK), frames.PROTOCOL_ERROR),
    "headers on stream 0": (OPEN + frame(H, WHOLE, 0, BLOCK), frames.PROTOCOL_ERROR),
    "a stream that is over": (OPEN + reset(1) + frame(H, WHOLE, 1, BLOCK), frames.STREAM_CLOSED),
    "a stream below the last": (
        OPEN + frame(H, WHOLE, 7, BLOCK) + frame(H, WHOLE, 5, BLOCK),
        frames.PROTOCOL_ERROR,
    ),
    "interrupted block": (OPEN + frame(H, 0, 3, BLOCK) + frame(D, 0, 1), frames.PROTOCOL_ERROR),
    "an unknown frame in a block": (
        OPEN + frame(H, 0, 3, BLOCK) + frame(0xEE, 0, 0),
        frames.PROTOCOL_ERROR,
    ),
    "other block": (OPEN + frame(H, 0, 3, BLOCK) + frame(C, 4, 5), frames.PROTOCOL_ERROR),
    "lone continuation": (OPEN + frame(C, WHOLE, 1, BLOCK), frames.PROTOCOL_ERROR),
    "oversized frame": (OPEN + frame(D, 0, 1, bytes(16385)), frames.FRAME_SIZE_ERROR),
    "the header of an oversized frame": (
        OPEN + frame(D, 0, 1, bytes(16385))[:9],
        frames.FRAME_SIZE_ERROR,
    ),
    "no room for the priority": (
        HELLO + frame(H, WHOLE | frames.PRIORITIZED, 1, b"1234"),
        frames.FRAME_SIZE_ERROR,
    ),
    "bad block": (OPEN + frame(H, WHOLE, 3, b"\xff\xff\xff\xff"), frames.COMPRESSION_ERROR),
    "bad block of a stream that is over": (
        OPEN + frame(D, ENDS, 1) + frame(H, WHOLE, 1, b"\x80"),
        frames.COMPRESSION_ERROR,
    ),
    "DATA on an idle stream": (OPEN + frame(D, 0, 3, b"x"), frames.PROTOCOL_ERROR),
    "DATA on stream 0": (OPEN + frame(D, 0, 0, b"x"), frames.PROTOCOL_ERROR),
    "DATA on an even stream": (
        OPEN + frame(H, WHOLE, 3, BLOCK) + frame(D, 0, 2, b"x"),
        frames.PROTOCOL_ERROR,
    ),
    "padding too long": (OPEN + frame(D, frames.PADDED, 1, b"\x02x"), frames.PROTOCOL_ERROR),
    "padding of HEADERS too long": (
        HELLO + frame(H, WHOLE | frames.PADDED, 1, b"\x02x"),
        frames.PROTOCOL_ERROR,
    ),
    "reset of an idle stream": (OPEN + reset(3), frames.PROTOCOL_ERROR),
    "reset of stream 0": (OPEN + reset(0), frames.PROTOCOL_ERROR),
    "short RST_STREAM": (OPEN + frame(frames.RST_STREAM, 0, 1, b"123"), frames.FRAME_SIZE_ERROR),
    "PRIORITY on stream 0": (OPEN + frame(frames.PRIORITY, 0, 0, bytes(5)), frames.PROTOCOL_ERROR),
    "short PRIORITY of an idle stream": (
        OPEN + frame(frames.PRIORITY, 0, 9, b"1"),
        frames.FRAME_SIZE_ERROR,
    ),
    "WINDOW_UPDATE 0": (OPEN + update(0, 0), frames.PROTOCOL_ERROR),
    "WINDOW_UPDATE on an idle stream": (OPEN + update(3, 1), frames.PROTOCOL_ERROR),
    "short WINDOW_UPDATE": (OPEN + frame(frames.WINDOW, 0, 0, b"1"), frames.FRAME_SIZE_ERROR),
    "window overflow": (OPEN + update(0, 2**31 - 1), frames.FLOW_CONTROL_ERROR),
    "window set to overflow": (
        OPEN + update(1, 2**31 - 1 - 65535) + setting((4, 65536)),
        frames.FLOW_CONTROL_ERROR,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_connections_fault_has_its_code(name: str) -> None:
    """GOAWAY with the code RFC 9113 names."""
    raw, code = FAULTS[name]
    connection, _ = fed()
    with pytest.raises(ConnectionFault) as caught:
        connection.feed(raw)
    assert caught.value.code == code
    connection.take()
    connection.fail(caught.value.code)
    assert parsed(connection.take())[-1][3][4:] == frames.number.pack(code)
