"""What a peer may not do on one HTTP/2 connection, and that it costs its stream or it all."""

from __future__ import annotations

import pytest
from hpack import Encoder

from extproc.transport import frames
from extproc.transport.frames import PREFACE, ConnectionFault, frame

from .wire import (
    BLOCK,
    ENDS,
    HELLO,
    OPEN,
    REQUEST,
    WHOLE,
    C,
    D,
    H,
    fed,
    parsed,
    reset,
    setting,
    update,
)

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
    "padding too long on a stream that is over": (
        OPEN + reset(1) + frame(D, frames.PADDED, 1, b"\x02x"),
        frames.PROTOCOL_ERROR,
    ),
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
