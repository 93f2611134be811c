"""One HTTP/2 connection fed with bytes, by the `h2` client and by hand."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass, field
from itertools import pairwise

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.transport import http2
from extproc.transport.http2 import PREFACE, Connection, ConnectionFault, frame

REQUEST = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/s/M")]
RESPONSE = b"\x88"
TRAILERS = b"\x00\x0bgrpc-status\x010"
BLOCK = Encoder().encode(REQUEST)
ENDS = http2.END_STREAM
OPEN = PREFACE + frame(http2.SETTINGS, 0, 0) + frame(http2.HEADERS, http2.END_HEADERS, 1, BLOCK)


@dataclass
class Heard:
    """Every event there was; data of one stream in a row is one event."""

    events: list[tuple[object, ...]] = field(default_factory=list)

    def opened(self, stream: int, headers: dict[str, str]) -> None:
        self.events.append(("opened", stream, headers))

    def received(self, stream: int, data: bytes) -> None:
        self.events.append(("received", stream, data))

    def half_closed(self, stream: int) -> None:
        self.events.append(("half closed", stream))

    def reset(self, stream: int) -> None:
        self.events.append(("reset", stream))


def fed(*pieces: bytes) -> tuple[Connection, Heard]:
    """Feed a new connection; what it says at once is taken."""
    heard = Heard()
    connection = Connection(heard)
    connection.take()
    for piece in pieces:
        connection.feed(piece)
    return connection, heard


def update(stream: int, more: int) -> bytes:
    return frame(http2.WINDOW, 0, stream, struct.pack(">L", more))


def setting(identifier: int, value: int) -> bytes:
    return frame(http2.SETTINGS, 0, 0, struct.pack(">HL", identifier, value))


def frames(raw: bytes) -> list[tuple[int, int, int, bytes]]:
    """Read frames: kind, flags, stream, payload."""
    found = []
    while raw:
        size = int.from_bytes(raw[:3], "big")
        found.append((raw[3], raw[4], int.from_bytes(raw[5:9], "big"), raw[9 : 9 + size]))
        raw = raw[9 + size :]
    return found


def client() -> h2.connection.H2Connection:
    made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    made.initiate_connection()
    return made


def conversation() -> bytes:
    """Build what a client says: two requests of every shape, a ping and a reset."""
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
WHOLE, WHOLE_HEARD = fed(CONVERSATION)
WHOLE_OUT = WHOLE.take()


def test_a_conversation_is_heard() -> None:
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
    assert frames(WHOLE_OUT) == [
        (http2.SETTINGS, http2.ACK, 0, b""),
        (http2.PING, http2.ACK, 0, b"12345678"),
    ]
    assert WHOLE.streams == 2


@pytest.mark.parametrize("size", [1, 2, 3, 7, 9, 10])
def test_pieces_of_one_size_are_heard_alike(size: int) -> None:
    pieces = [CONVERSATION[at : at + size] for at in range(0, len(CONVERSATION), size)]
    connection, heard = fed(*pieces)
    assert (heard.events, connection.take()) == (WHOLE_HEARD.events, WHOLE_OUT)


def test_every_single_cut_is_heard_alike() -> None:
    for at in range(len(CONVERSATION) + 1):
        connection, heard = fed(CONVERSATION[:at], CONVERSATION[at:])
        assert (heard.events, connection.take()) == (WHOLE_HEARD.events, WHOLE_OUT)


@given(st.lists(st.integers(0, len(CONVERSATION)), max_size=30))
def test_any_cuts_are_heard_alike(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(CONVERSATION)]
    pieces = [CONVERSATION[a:b] for a, b in pairwise(places)]
    connection, heard = fed(*pieces)
    assert (heard.events, connection.take()) == (WHOLE_HEARD.events, WHOLE_OUT)


def test_the_h2_client_understands_the_answers() -> None:
    talk, connection = client(), Connection(Heard())
    talk.send_headers(1, REQUEST)
    connection.feed(talk.data_to_send())
    connection.respond(1, RESPONSE)
    connection.send(1, b"one")
    connection.send(1, b"two", TRAILERS)
    events = talk.receive_data(connection.take())
    data = [event.data for event in events if isinstance(event, h2.events.DataReceived)]
    ends = [event.headers for event in events if isinstance(event, h2.events.TrailersReceived)]
    assert (data, ends) == ([b"one", b"two"], [[(b"grpc-status", b"0")]])
    assert connection.streams == 0


def test_the_same_request_again_is_heard_alike() -> None:
    talk = client()
    for stream in (1, 3, 5, 7):
        path = "/other" if stream == 5 else "/s/M"
        talk.send_headers(stream, [*REQUEST[:3], (":path", path), ("x", "y")])
    _, heard = fed(talk.data_to_send())
    paths = [event[2][":path"] for event in heard.events]  # type: ignore[index]
    assert paths == ["/s/M", "/s/M", "/other", "/s/M"]


def test_a_padded_and_prioritized_header_block_in_parts_is_one() -> None:
    flags = http2.PADDED | http2.PRIORITIZED
    head = frame(http2.HEADERS, flags, 1, b"\x03" + bytes(5) + BLOCK[:2] + bytes(3))
    parts = [frame(http2.CONTINUATION, 0, 1, BLOCK[2:4])]
    parts.append(frame(http2.CONTINUATION, http2.END_HEADERS, 1, BLOCK[4:]))
    _, heard = fed(PREFACE, head, *parts)
    assert heard.events == [("opened", 1, dict(REQUEST))]


def test_frames_nobody_knows_and_acknowledgements_are_passed_over() -> None:
    others = frame(0x2, 0, 1, bytes(5)) + frame(0xEE, 0xFF, 9, b"?") + frame(http2.GOAWAY, 0, 0)
    acks = frame(http2.SETTINGS, http2.ACK, 0) + frame(http2.PING, http2.ACK, 0, bytes(8))
    connection, heard = fed(OPEN)
    connection.take()
    connection.feed(others + acks)
    assert (len(heard.events), connection.take()) == (1, b"")


def test_received_bytes_are_given_back_to_both_windows() -> None:
    connection, heard = fed(OPEN)
    connection.take()
    full = frame(http2.DATA, 0, 1, bytes(http2.MAX_FRAME_BYTES))
    count = http2.REPLENISH_BYTES // http2.MAX_FRAME_BYTES
    connection.feed(full * (count - 1))
    assert connection.take() == b""
    connection.feed(full)
    assert connection.take() == update(0, http2.REPLENISH_BYTES) + update(1, http2.REPLENISH_BYTES)
    assert len(heard.events) == 1 + count


def test_padding_counts_against_the_window() -> None:
    connection, heard = fed(OPEN)
    connection.take()
    padded = frame(http2.DATA, http2.PADDED, 1, b"\xff" + b"x" + bytes(255))
    for _ in range(http2.REPLENISH_BYTES // 257 + 1):
        connection.feed(padded)
    assert [kind for kind, *_ in frames(connection.take())] == [http2.WINDOW] * 2
    assert heard.events[-1] == ("received", 1, b"x")


@pytest.mark.parametrize("narrow", ["stream", "connection"])
def test_data_waits_for_the_narrower_window(narrow: str) -> None:
    connection, _ = fed(OPEN)
    connection.feed(update(0 if narrow == "stream" else 1, 1_000_000))
    connection.take()
    data = bytes(range(256)) * 400
    connection.send(1, data)
    connection.send(1, b"more", TRAILERS)
    first = frames(connection.take())
    assert sum(len(payload) for *_, payload in first) == 65535
    assert max(len(payload) for *_, payload in first) == http2.MAX_FRAME_BYTES
    connection.feed(update(1 if narrow == "stream" else 0, 10))
    (second,) = frames(connection.take())
    assert len(second[3]) == 10
    connection.feed(update(1 if narrow == "stream" else 0, 1_000_000))
    *rest, last = frames(connection.take())
    assert b"".join(f[3] for f in [*first, second, *rest]) == data + b"more"
    assert last == (http2.HEADERS, http2.END_HEADERS | ENDS, 1, TRAILERS)
    assert connection.streams == 0


def test_settings_change_the_window_and_the_frame_of_open_streams() -> None:
    connection, _ = fed(OPEN, update(0, 1_000_000))
    connection.feed(setting(0x4, 10))
    connection.take()
    connection.send(1, bytes(40_000))
    assert [len(payload) for *_, payload in frames(connection.take())] == [10]
    connection.feed(setting(0x4, 0) + update(1, 10))  # the window is -10, then 0
    assert frames(connection.take()) == [(http2.SETTINGS, http2.ACK, 0, b"")]
    connection.feed(setting(0x5, 30_000) + setting(0x4, 65535))
    sizes = [len(payload) for kind, *_, payload in frames(connection.take()) if kind == http2.DATA]
    assert sizes == [30_000, 9_990]


def test_a_reset_stream_sends_no_more() -> None:
    connection, heard = fed(OPEN)
    connection.send(1, bytes(100_000))
    connection.feed(frame(http2.RST_STREAM, 0, 1, bytes(4)))
    connection.take()
    connection.feed(update(0, 100_000) + update(1, 100_000) + frame(http2.DATA, 0, 1, b"late"))
    connection.send(1, b"late", TRAILERS)
    connection.respond(1, RESPONSE)
    assert (connection.take(), heard.events[-1]) == (b"", ("reset", 1))


def test_after_goaway_new_streams_are_passed_over_and_open_ones_go_on() -> None:
    connection, heard = fed(OPEN)
    connection.take()
    connection.refuse_new()
    assert frames(connection.take()) == [(http2.GOAWAY, 0, 0, struct.pack(">LL", 1, 0))]
    crossing = frame(http2.HEADERS, http2.END_HEADERS, 3, BLOCK)
    crossing += frame(http2.DATA, 0, 3, b"unheard") + frame(http2.RST_STREAM, 0, 3, bytes(4))
    connection.feed(crossing + frame(http2.DATA, ENDS, 1, b"heard"))
    assert heard.events[1:] == [("received", 1, b"heard"), ("half closed", 1)]


H, C, D = http2.HEADERS, http2.CONTINUATION, http2.DATA
WHOLE_BLOCK = http2.END_HEADERS
FAULTS = {
    "not HTTP/2": (b"GET / HTTP/1.1\r\n", http2.PROTOCOL_ERROR),
    "not HTTP/2, long": (b"GET / HTTP/1.1\r\nHost: example\r\n", http2.PROTOCOL_ERROR),
    "even stream": (OPEN + frame(H, WHOLE_BLOCK, 2, BLOCK), http2.PROTOCOL_ERROR),
    "headers on stream 0": (OPEN + frame(H, WHOLE_BLOCK, 0, BLOCK), http2.PROTOCOL_ERROR),
    "interrupted block": (OPEN + frame(H, 0, 3, BLOCK) + frame(D, 0, 1), http2.PROTOCOL_ERROR),
    "other block": (OPEN + frame(H, 0, 3, BLOCK) + frame(C, 4, 5), http2.PROTOCOL_ERROR),
    "lone continuation": (OPEN + frame(C, WHOLE_BLOCK, 1, BLOCK), http2.PROTOCOL_ERROR),
    "oversized frame": (OPEN + frame(D, 0, 1, bytes(16385)), http2.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE 0": (OPEN + update(0, 0), http2.PROTOCOL_ERROR),
    "WINDOW_UPDATE 0 on a stream": (OPEN + update(1, 0), http2.PROTOCOL_ERROR),
    "short WINDOW_UPDATE": (OPEN + frame(http2.WINDOW, 0, 0, b"1"), http2.FRAME_SIZE_ERROR),
    "window overflow": (OPEN + update(0, 2**31 - 1), http2.FLOW_CONTROL_ERROR),
    "stream's window overflow": (OPEN + update(1, 2**31 - 1), http2.FLOW_CONTROL_ERROR),
    "window set too large": (OPEN + setting(4, 2**31), http2.FLOW_CONTROL_ERROR),
    "window set to overflow": (
        OPEN + update(1, 2**31 - 1 - 65535) + setting(4, 65536),
        http2.FLOW_CONTROL_ERROR,
    ),
    "frame size out of range": (OPEN + setting(5, 1), http2.PROTOCOL_ERROR),
    "short SETTINGS": (OPEN + frame(http2.SETTINGS, 0, 0, b"1"), http2.FRAME_SIZE_ERROR),
    "short PING": (OPEN + frame(http2.PING, 0, 0, b"1"), http2.FRAME_SIZE_ERROR),
    "push": (OPEN + frame(http2.PUSH, 0, 1), http2.PROTOCOL_ERROR),
    "many CONTINUATION": (
        OPEN + frame(H, 0, 3) + frame(C, 0, 3) * (http2.MAX_CONTINUATIONS + 1),
        http2.ENHANCE_YOUR_CALM,
    ),
    "large block": (
        OPEN + frame(H, 0, 3, bytes(16384)) + frame(C, 0, 3, bytes(16384)) * 4,
        http2.ENHANCE_YOUR_CALM,
    ),
    "bad block": (OPEN + frame(H, WHOLE_BLOCK, 3, b"\xff\xff\xff\xff"), http2.COMPRESSION_ERROR),
    "PING flood": (
        OPEN + frame(http2.PING, 0, 0, bytes(8)) * (http2.MAX_CONTROL_BACKLOG + 1),
        http2.ENHANCE_YOUR_CALM,
    ),
    "SETTINGS flood": (
        OPEN + frame(http2.SETTINGS, 0, 0) * http2.MAX_CONTROL_BACKLOG,
        http2.ENHANCE_YOUR_CALM,
    ),
    "empty DATA flood": (
        OPEN + frame(D, 0, 1) * (http2.MAX_CONTROL_BACKLOG + 1),
        http2.ENHANCE_YOUR_CALM,
    ),
    "DATA on an idle stream": (OPEN + frame(D, 0, 3, b"x"), http2.PROTOCOL_ERROR),
    "DATA on stream 0": (OPEN + frame(D, 0, 0, b"x"), http2.PROTOCOL_ERROR),
    "DATA after the end": (OPEN + frame(D, ENDS, 1) + frame(D, 0, 1, b"x"), http2.STREAM_CLOSED),
    "padding too long": (OPEN + frame(D, http2.PADDED, 1, b"\x02x"), http2.PROTOCOL_ERROR),
    "trailers that do not end": (OPEN + frame(H, WHOLE_BLOCK, 1, BLOCK), http2.PROTOCOL_ERROR),
    "reset of an idle stream": (
        OPEN + frame(http2.RST_STREAM, 0, 3, bytes(4)),
        http2.PROTOCOL_ERROR,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_has_its_code(name: str) -> None:
    raw, code = FAULTS[name]
    connection, _ = fed()
    with pytest.raises(ConnectionFault) as caught:
        connection.feed(raw)
    assert caught.value.code == code
    connection.take()
    connection.fail(caught.value)
    ((kind, *_, payload),) = frames(connection.take())
    assert (kind, payload[4:]) == (http2.GOAWAY, struct.pack(">L", code))


def test_data_between_control_frames_is_no_flood() -> None:
    pings = frame(http2.PING, 0, 0, bytes(8)) * (http2.MAX_CONTROL_BACKLOG // 2)
    connection, _ = fed(OPEN)
    for _ in range(3):
        connection.feed(pings + frame(D, 0, 1, b"x"))
    assert connection.streams == 1


FRAMES = st.builds(
    frame,
    st.integers(0, 10),
    st.sampled_from([0, 1, 4, 5, 8, 12, 0x20, 0x2D]),
    st.sampled_from([0, 1, 2, 3, 5]),
    st.binary(max_size=40) | st.just(BLOCK) | st.sampled_from([bytes(4), bytes(8)]),
)


@settings(max_examples=500)
@given(st.binary(max_size=300) | st.lists(FRAMES, max_size=12).map(b"".join), st.booleans())
def test_no_bytes_raise_anything_but_a_fault(raw: bytes, opened: bool) -> None:
    connection, _ = fed(OPEN if opened else PREFACE)
    with contextlib.suppress(ConnectionFault):
        connection.feed(raw)
        connection.send(1, bytes(70_000), TRAILERS)
    frames(connection.take())


FIELDS = st.tuples(
    st.sampled_from(["x-a", "x-b", "te"]), st.sampled_from(["", "1", "long " * 900]), st.booleans()
)


@settings(deadline=None)
@given(st.lists(st.lists(FIELDS, max_size=3), max_size=12))
def test_a_remembered_block_means_what_it_meant_when_the_table_has_not_moved(
    blocks: list[list[tuple[str, str, bool]]],
) -> None:
    """Fields written out or indexed, repeated, evicted or too long for the table."""
    encoder = Encoder()
    connection, heard = fed(PREFACE, frame(http2.SETTINGS, 0, 0))
    for number, fields in enumerate(blocks):
        block = encoder.encode([*[(n, v, False) for n, v in REQUEST[:3]], (":path", "/s/M", True)])
        block += encoder.encode(fields)
        connection.feed(frame(http2.HEADERS, http2.END_HEADERS, 2 * number + 1, block))
        expected = dict(REQUEST) | {name: value for name, value, _ in fields}
        assert heard.events[-1] == ("opened", 2 * number + 1, expected)
