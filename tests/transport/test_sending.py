"""What waits for the peer's windows, and how it goes out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.transport import frames
from extproc.transport.frames import frame

from .wire import (
    BLOCK,
    ENDS,
    OPEN,
    RESPONSE,
    TRAILERS,
    WHOLE,
    D,
    H,
    fed,
    feed,
    parsed,
    reset,
    setting,
    update,
)


@pytest.mark.parametrize("narrow", ["stream", "connection"])
def test_data_waits_for_the_narrower_window(narrow: str) -> None:
    """Cut to frames, in order, trailers last; the owner hears when all has gone."""
    connection, heard = fed(OPEN)
    stream = heard.streams[1]
    connection.feed(update(0 if narrow == "stream" else 1, 1_000_000))
    connection.take()
    data = bytes(range(256)) * 400
    connection.send(stream, RESPONSE, data, b"")
    connection.send(stream, b"", b"more", TRAILERS)
    head, *first = parsed(connection.take())
    assert head == (H, WHOLE, 1, RESPONSE)
    assert sum(len(payload) for *_, payload in first) == 65535
    assert max(len(payload) for *_, payload in first) == frames.MAX_FRAME_BYTES
    assert connection.sender.queued == len(data) + 4 - 65535
    connection.feed(update(1 if narrow == "stream" else 0, 10))
    (second,) = parsed(connection.take())
    assert len(second[3]) == 10
    assert ("drained", 1) not in heard.events
    connection.feed(update(1 if narrow == "stream" else 0, 1_000_000))
    *rest, last = parsed(connection.take())
    assert b"".join(f[3] for f in [*first, second, *rest]) == data + b"more"
    assert last == (H, WHOLE | ENDS, 1, TRAILERS)
    assert heard.events[-1] == ("drained", 1)
    assert (connection.sender.queued, connection.streams) == (0, {})


def test_trailers_alone_need_no_window() -> None:
    """An empty window holds back bytes, not ends."""
    connection, heard = fed(OPEN, setting((frames.INITIAL_WINDOW_SIZE, 0)))
    connection.take()
    connection.send(heard.streams[1], RESPONSE, b"", TRAILERS)
    assert [kind for kind, *_ in parsed(connection.take())] == [H, H]


def test_settings_change_the_window_and_the_frame_of_open_streams() -> None:
    """Also below nothing."""
    connection, heard = fed(OPEN, update(0, 1_000_000))
    connection.feed(setting((frames.INITIAL_WINDOW_SIZE, 10)))
    connection.take()
    connection.send(heard.streams[1], b"", bytes(40_000), b"")
    assert [len(payload) for *_, payload in parsed(connection.take())] == [10]
    connection.feed(setting((frames.INITIAL_WINDOW_SIZE, 0)) + update(1, 10))  # -10, then 0
    assert parsed(connection.take()) == [(frames.SETTINGS, frames.ACK, 0, b"")]
    connection.feed(setting((frames.MAX_FRAME_SIZE, 30_000), (frames.INITIAL_WINDOW_SIZE, 65535)))
    sizes = [len(payload) for kind, *_, payload in parsed(connection.take()) if kind == D]
    assert sizes == [30_000, 9_990]


def test_the_connections_window_is_shared_in_turn() -> None:
    """Two streams that wait for it each get their share; one that waits for its own blocks none."""
    more = b"".join(frame(H, WHOLE, number, BLOCK) for number in (3, 5))
    connection, heard = fed(OPEN + more)
    streams = heard.streams
    connection.send(streams[1], b"", bytes(65535), b"")  # uses the connection's window up
    connection.send(streams[3], b"", b"3" * 100, b"")
    connection.send(streams[5], b"", b"5" * 100, b"")
    connection.take()
    connection.feed(update(0, 100))
    assert [(stream, len(data)) for *_, stream, data in parsed(connection.take())] == [(3, 100)]
    connection.feed(reset(3) + update(0, 100))
    assert [(stream, len(data)) for *_, stream, data in parsed(connection.take())] == [(5, 100)]


def test_a_stream_that_is_reset_while_it_waits_has_no_share() -> None:
    """The others go on with all of the connection's window."""
    more = b"".join(frame(H, WHOLE, number, BLOCK) for number in (3, 5))
    connection, heard = fed(OPEN + more)
    connection.send(heard.streams[1], b"", bytes(65535), b"")  # uses the connection's window up
    for number in (3, 5):
        connection.send(heard.streams[number], b"", bytes(100), b"")
    connection.take()
    connection.feed(reset(3) + update(0, 100))
    assert [(stream, len(data)) for *_, stream, data in parsed(connection.take())] == [(5, 100)]


def test_a_smaller_table_is_acknowledged_in_the_next_block() -> None:
    """RFC 7541 4.2: once, before the first field."""
    connection, heard = fed(OPEN, frame(H, WHOLE, 3, BLOCK), setting((frames.HEADER_TABLE_SIZE, 0)))
    connection.take()
    connection.send(heard.streams[1], RESPONSE, b"", TRAILERS)
    connection.send(heard.streams[3], b"", b"", RESPONSE + TRAILERS)
    blocks = [payload for *_, payload in parsed(connection.take())]
    assert blocks == [b"\x20" + RESPONSE, TRAILERS, RESPONSE + TRAILERS]


def test_a_smaller_table_is_acknowledged_by_whatever_block_goes_first() -> None:
    """Trailers that wait for a window do not take it with them, past the blocks of other streams."""
    connection, heard = fed(
        OPEN, frame(H, WHOLE, 3, BLOCK), setting((frames.INITIAL_WINDOW_SIZE, 0))
    )
    connection.send(heard.streams[1], RESPONSE, b"waits", b"")
    connection.feed(setting((frames.HEADER_TABLE_SIZE, 0)))
    connection.take()
    connection.send(heard.streams[1], b"", b"", TRAILERS)
    connection.send(heard.streams[3], RESPONSE, b"", TRAILERS)
    blocks = [payload for *_, payload in parsed(connection.take())]
    assert blocks == [b"\x20" + RESPONSE, TRAILERS]
    connection.feed(update(1, 5))
    assert parsed(connection.take())[-1][3] == TRAILERS


def test_trailers_that_waited_acknowledge_a_smaller_table_if_they_go_first() -> None:
    """Once, as any block would."""
    connection, heard = fed(OPEN, setting((frames.INITIAL_WINDOW_SIZE, 0)))
    connection.send(heard.streams[1], RESPONSE, b"waits", b"")
    connection.feed(setting((frames.HEADER_TABLE_SIZE, 0)))
    connection.send(heard.streams[1], b"", b"", TRAILERS)
    connection.feed(update(1, 5))
    assert parsed(connection.take())[-1][3] == b"\x20" + TRAILERS


def test_windows_of_a_byte_do_not_copy_what_waits() -> None:
    """The dribble: a copy for each would be gigabytes. Nor is kept what has gone (RFC 9113 10.5)."""
    connection, heard = fed(OPEN, setting((frames.INITIAL_WINDOW_SIZE, 0)), update(0, 10**6))
    stream, data = heard.streams[1], bytes(range(250)) * 400
    connection.send(stream, RESPONSE, data, b"")
    copies, kept, got = 0, data, b""
    for _ in range(1000):
        feed(connection, update(1, 100))
        got += b"".join(payload for kind, *_, payload in parsed(connection.take()) if kind == D)
        if stream.queue is not None:
            copies += stream.queue[0][0] is not kept
            kept = stream.queue[0][0]
            assert len(kept) <= 2 * connection.sender.queued
    assert copies < 20
    assert (got, connection.sender.queued) == (data, 0)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from([1, 3]), st.integers(0, 50_000)),
        st.tuples(st.just("update"), st.sampled_from([0, 1, 3]), st.integers(1, 60_000)),
        st.tuples(st.just("resize"), st.just(0), st.integers(0, 100_000)),
    ),
    max_size=40,
)


@given(STEPS)
def test_no_more_is_sent_than_the_windows_allow_and_nothing_is_lost(
    steps: list[tuple[str, int, int]],
) -> None:
    """A second account of both windows agrees after every step, and in the end all has gone."""
    connection, heard = fed(OPEN, frame(H, WHOLE, 3, BLOCK))
    connection.take()
    initial, window = 65535, {0: 65535, 1: 65535, 3: 65535}
    sent, got = {1: b"", 3: b""}, {1: b"", 3: b""}

    def account() -> None:
        for kind, _, number, data in parsed(connection.take()):
            if kind == D:
                assert data
                got[number] += data
                window[number] -= len(data)
                window[0] -= len(data)
                assert min(window[number], window[0]) >= 0
        assert all(sent[number].startswith(got[number]) for number in sent)
        assert connection.sender.queued == sum(len(sent[n]) - len(got[n]) for n in sent)

    for step, number, size in steps:
        if step == "send":
            data = bytes((len(sent[number]) % 251,)) * size
            sent[number] += data
            connection.send(heard.streams[number], b"", data, b"")
        elif step == "update":
            window[number] += size
            connection.feed(update(number, size))
        else:
            for one in (1, 3):
                window[one] += size - initial
            initial = size
            connection.feed(setting((frames.INITIAL_WINDOW_SIZE, size)))
        account()
        for one in (1, 3):  # whatever could have gone has gone
            assert sent[one] == got[one] or min(window[one], window[0]) <= 0
    for number in (1, 3, 0):
        window[number] += 10_000_000
        connection.feed(update(number, 10_000_000))
    account()
    assert sent == got
