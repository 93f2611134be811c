"""SETTINGS, PING and GOAWAY, ours and the peer's."""

from __future__ import annotations

import pytest

from extproc.transport import frames
from extproc.transport.bounds import Bounds
from extproc.transport.control import FAREWELL, STREAM_WINDOW
from extproc.transport.frames import ConnectionFault, frame
from extproc.transport.http2 import Connection

from .wire import BLOCK, ENDS, OPEN, WHOLE, D, H, Heard, fed, goaway, parsed, reset, setting, update


def test_what_we_offer_comes_first() -> None:
    """Our SETTINGS before anything, then the whole window of the connection."""
    first, second = parsed(Connection(Heard(), Bounds(streams=7)).take())
    pairs = dict(frames.setting.iter_unpack(first[3]))
    assert first[:3] == (frames.SETTINGS, 0, 0)
    assert pairs == {
        frames.MAX_CONCURRENT_STREAMS: 7,
        frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        frames.MAX_HEADER_LIST_SIZE: 65536,
    }
    assert second == parsed(update(0, 2**31 - 1 - 65535))[0]


FAULTS = {
    "short SETTINGS": (frame(frames.SETTINGS, 0, 0, b"1"), frames.FRAME_SIZE_ERROR),
    "SETTINGS on a stream": (frame(frames.SETTINGS, 0, 1), frames.PROTOCOL_ERROR),
    "an acknowledgement with a payload": (
        frame(frames.SETTINGS, frames.ACK, 0, bytes(6)),
        frames.FRAME_SIZE_ERROR,
    ),
    "ENABLE_PUSH of 2": (setting((frames.ENABLE_PUSH, 2)), frames.PROTOCOL_ERROR),
    "a window too large": (setting((frames.INITIAL_WINDOW_SIZE, 2**31)), frames.FLOW_CONTROL_ERROR),
    "a frame too small": (setting((frames.MAX_FRAME_SIZE, 16383)), frames.PROTOCOL_ERROR),
    "a frame too large": (setting((frames.MAX_FRAME_SIZE, 2**24)), frames.PROTOCOL_ERROR),
    "short PING": (frame(frames.PING, 0, 0, b"1"), frames.FRAME_SIZE_ERROR),
    "PING on a stream": (frame(frames.PING, 0, 1, bytes(8)), frames.PROTOCOL_ERROR),
    "short GOAWAY": (frame(frames.GOAWAY, 0, 0, bytes(7)), frames.FRAME_SIZE_ERROR),
    "GOAWAY on a stream": (frame(frames.GOAWAY, 0, 1, bytes(8)), frames.PROTOCOL_ERROR),
    "push": (frame(frames.PUSH, 0, 1, bytes(4)), frames.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_connection_has_its_code(name: str) -> None:
    """RFC 9113 6.5 to 6.8."""
    raw, code = FAULTS[name]
    connection, _ = fed(OPEN)
    with pytest.raises(ConnectionFault) as caught:
        connection.feed(raw)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([(frames.ENABLE_PUSH, 0)], id="no push"),
        pytest.param([(frames.ENABLE_PUSH, 1)], id="push, which we never do"),
        pytest.param([(frames.MAX_CONCURRENT_STREAMS, 0)], id="no streams of ours"),
        pytest.param([(frames.MAX_HEADER_LIST_SIZE, 100)], id="short header lists, as ours are"),
        pytest.param([(0xFE, 5)], id="one nobody knows"),
        pytest.param([(frames.MAX_FRAME_SIZE, 2**24 - 1)], id="the largest frame"),
        pytest.param([(frames.INITIAL_WINDOW_SIZE, 2**31 - 1)], id="the largest window"),
        pytest.param([(frames.INITIAL_WINDOW_SIZE, 1)] * 2730, id="as many as a frame holds"),
    ],
)
def test_settings_are_acknowledged(pairs: list[tuple[int, int]]) -> None:
    """Once a frame, whatever they say."""
    connection, _ = fed(OPEN)
    connection.take()
    connection.feed(setting(*pairs))
    assert parsed(connection.take()) == [(frames.SETTINGS, frames.ACK, 0, b"")]


def test_a_fault_says_which_stream_was_the_last() -> None:
    """So that the client may repeat the later ones elsewhere."""
    connection, _ = fed(OPEN, frame(H, WHOLE, 5, BLOCK))
    connection.take()
    connection.fail(frames.INTERNAL_ERROR)
    assert connection.take() == goaway(5, frames.INTERNAL_ERROR)


def test_goodbye_comes_in_two_steps_and_loses_nothing() -> None:
    """A stream that crossed the first GOAWAY is served; the second, after the PING, names the last."""
    connection, heard = fed(OPEN)
    connection.take()
    connection.refuse_new()
    farewell = frame(frames.PING, 0, 0, FAREWELL)
    assert connection.take() == goaway(2**31 - 1, frames.NO_ERROR) + farewell
    connection.feed(frame(H, WHOLE, 3, BLOCK))
    assert heard.events[-1][:2] == ("opened", 3)
    connection.feed(frame(frames.PING, frames.ACK, 0, FAREWELL))
    assert connection.take() == goaway(3, frames.NO_ERROR)
    late = frame(H, WHOLE, 5, BLOCK) + frame(D, 0, 5, b"unheard") + update(5, 1) + reset(5)
    connection.feed(late + frame(D, ENDS, 3, b"heard"))
    assert heard.events[2:] == [("received", 3, b"heard"), ("half closed", 3)]
    assert connection.take() == b""


def test_goodbye_without_an_answer_names_the_last_stream_once() -> None:
    """Because a client may try again what came after it, and nothing else."""
    connection, _ = fed(OPEN)
    connection.refuse_new()
    connection.take()
    connection.finish()
    connection.finish()
    connection.feed(frame(frames.PING, frames.ACK, 0, FAREWELL))
    assert connection.take() == goaway(1, frames.NO_ERROR)


def test_a_ping_of_the_peers_own_is_no_goodbye() -> None:
    """Even when it looks like ours: only the answer counts."""
    connection, heard = fed(OPEN)
    connection.take()
    connection.feed(frame(frames.PING, 0, 0, FAREWELL))
    assert connection.take() == frame(frames.PING, frames.ACK, 0, FAREWELL)
    connection.feed(frame(H, WHOLE, 3, BLOCK))
    assert heard.events[-1][:2] == ("opened", 3)


def test_after_the_peers_goaway_its_streams_go_on() -> None:
    """It wants none of ours, and there are none."""
    connection, heard = fed(OPEN, goaway(0, frames.NO_ERROR), frame(D, ENDS, 1, b"x"))
    assert heard.events[-1] == ("half closed", 1)
    assert list(connection.streams) == [1]
