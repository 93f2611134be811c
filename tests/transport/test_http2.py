"""One HTTP/2 connection fed with bytes, by the `h2` client and by hand."""

from __future__ import annotations

from itertools import pairwise

import h2.events
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.transport import frames, http2
from extproc.transport.control import STREAM_WINDOW
from extproc.transport.frames import frame
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


def test_a_half_closed_or_closed_stream_gets_nothing_back() -> None:
    """There is nothing more that it could send."""
    full = frame(D, 0, 1, bytes(frames.MAX_FRAME_BYTES))
    count = http2.REPLENISH_BYTES // frames.MAX_FRAME_BYTES
    connection, heard = fed(OPEN)
    stream = heard.streams[1]
    stream.held = True
    feed(connection, full * count + frame(D, ENDS, 1))
    connection.take()
    connection.release(stream)
    assert connection.take() == b""
    connection, heard = fed(OPEN)
    stream = heard.streams[1]
    feed(connection, full * (count - 1))
    connection.take()
    heard.received = lambda *_: connection.cancel(stream)  # type: ignore[method-assign, assignment]
    connection.feed(full)
    assert connection.take() == update(0, http2.REPLENISH_BYTES) + reset(1, frames.CANCEL)


def test_padding_alone_is_given_back_too() -> None:
    """Or a stream's window would leak away, and a long one stop in the end."""
    connection, heard = fed(OPEN)
    for _ in range(10):
        connection.feed(frame(D, frames.PADDED, 1, b"\xff" + bytes(255)))
    assert heard.streams[1].consumed == 2560
    assert [event[0] for event in heard.events] == ["opened"]


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
    connection.send(stream, RESPONSE, bytes(200_000), b"")
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
