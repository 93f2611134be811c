"""Each flood against its bound: ENHANCE_YOUR_CALM, and a slow drip of the same is no flood."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from extproc.transport import frames
from extproc.transport.bounds import WINDOW_S, Bounds, Meter
from extproc.transport.frames import ConnectionFault, frame
from extproc.transport.http2 import TURN_BUDGET, Connection

from .wire import (
    BLOCK,
    ENDS,
    HELLO,
    OPEN,
    RESPONSE,
    TRAILERS,
    WHOLE,
    C,
    Clock,
    D,
    H,
    fed,
    feed,
    goaway,
    parsed,
    reset,
    setting,
    update,
)

BOUNDS = Bounds()


def rapid_reset(number: int) -> bytes:
    stream = 2 * number + 3
    return frame(H, WHOLE, stream, BLOCK) + reset(stream, frames.CANCEL)


def made_you_reset(number: int) -> bytes:
    stream = 2 * number + 3
    return frame(H, WHOLE, stream, BLOCK) + update(stream, 0)


FLOODS: dict[str, tuple[Callable[[int], bytes], int]] = {
    "PING": (lambda _: frame(frames.PING, 0, 0, bytes(8)), BOUNDS.pings),
    "PING acknowledgements": (lambda _: frame(frames.PING, frames.ACK, 0, bytes(8)), BOUNDS.pings),
    "SETTINGS": (lambda _: setting(), BOUNDS.settings - 1),  # one came with the preface
    "SETTINGS acknowledgements": (
        lambda _: frame(frames.SETTINGS, frames.ACK, 0),
        BOUNDS.settings - 1,
    ),
    "GOAWAY": (lambda _: goaway(0, 0), BOUNDS.goaways),
    "rapid reset": (rapid_reset, BOUNDS.resets),
    "MadeYouReset": (made_you_reset, BOUNDS.faults),
    "data for closed streams": (
        lambda n: frame(H, WHOLE | ENDS, 2 * n + 3, BLOCK) + frame(D, 0, 2 * n + 3, b"x"),
        BOUNDS.faults,
    ),
    "empty DATA": (lambda _: frame(D, 0, 1), BOUNDS.empty),
    "DATA of padding alone": (lambda _: frame(D, frames.PADDED, 1, b"\x03abc"), BOUNDS.empty),
    "empty DATA for a stream we ended": (lambda _: frame(D, 0, 5), BOUNDS.empty),
    "DATA of padding alone for a stream we ended": (
        lambda _: frame(D, frames.PADDED, 5, b"\x03abc"),
        BOUNDS.empty,
    ),
    "HEADERS without end for a stream we ended": (
        lambda _: frame(H, WHOLE, 5, BLOCK),
        BOUNDS.ignored,
    ),
    "calls after our goodbye": (lambda n: frame(H, WHOLE, 2 * n + 7, BLOCK), BOUNDS.ignored),
    "DATA after our goodbye": (lambda _: frame(D, 0, 7, b"x"), BOUNDS.ignored),
    "PRIORITY": (lambda _: frame(frames.PRIORITY, 0, 9, bytes(5)), BOUNDS.ignored),
    "unknown frames": (lambda _: frame(0xEE, 0, 0, b"x"), BOUNDS.ignored),
    "resets of a closed stream": (
        lambda n: rapid_reset(0) if n == 0 else reset(3),
        BOUNDS.ignored + 1,
    ),
    "WINDOW_UPDATE": (lambda _: update(1, 1), BOUNDS.windows),
}


def flooded(name: str, clock: Callable[[], float] = lambda: 1000.0) -> Connection:
    """Make a connection with stream 1 open, and in the state that the flood is for."""
    connection, heard = fed(OPEN, clock=clock)
    if "stream we ended" in name:
        connection.feed(frame(H, WHOLE, 5, BLOCK))
        connection.send(heard.streams[5], RESPONSE, b"", TRAILERS)
    if "goodbye" in name:
        connection.finish()
    return connection


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_told_to_calm_down(name: str) -> None:
    """The bound itself passes, one more does not."""
    make, bound = FLOODS[name]
    connection = flooded(name)
    for number in range(bound):
        feed(connection, make(number))
        connection.take()
    with pytest.raises(ConnectionFault) as caught:
        feed(connection, make(bound))
    assert caught.value.code == frames.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("name", FLOODS)
def test_the_same_at_a_slow_pace_is_no_flood(name: str) -> None:
    """Twice as many as the bound, in two windows and a bit."""
    make, bound = FLOODS[name]
    bound = min(bound, 1_100)  # because the others show that the clock is read
    clock = Clock()
    connection = flooded(name, clock)
    for number in range(2 * bound):
        clock.now += 1.01 * WINDOW_S / bound
        feed(connection, make(number))
        connection.take()
    assert 1 in connection.streams


def test_more_streams_than_offered_are_refused_one_by_one() -> None:
    """REFUSED_STREAM tells the client to try elsewhere; those that are open go on."""
    connection, heard = fed(OPEN, bounds=Bounds(streams=2))
    connection.take()
    connection.feed(frame(H, WHOLE, 3, BLOCK) + frame(H, WHOLE, 5, BLOCK) + frame(D, 0, 5, b"x"))
    assert connection.take() == reset(5, frames.REFUSED_STREAM)
    connection.send(heard.streams[1], RESPONSE, b"", TRAILERS)
    connection.feed(frame(D, ENDS, 1) + frame(H, WHOLE, 7, BLOCK))
    assert sorted(connection.streams) == [3, 7]


def test_the_default_number_of_streams_can_be_open() -> None:
    """The bound that is offered is one that holds."""
    connection, _ = fed(HELLO)
    last = 2 * BOUNDS.streams
    for number in range(1, last, 2):
        connection.budget = 1
        connection.feed(frame(H, WHOLE, number, BLOCK))
    connection.take()
    feed(connection, frame(H, WHOLE, last + 1, BLOCK))
    assert connection.take() == reset(last + 1, frames.REFUSED_STREAM)
    assert len(connection.streams) == BOUNDS.streams


BLOCKS = {
    "many CONTINUATION": frame(H, 0, 3) + frame(C, 0, 3) * (BOUNDS.continuations + 1),
    "a block larger than its list may be": frame(H, 0, 3, bytes(16384))
    + frame(C, 0, 3, bytes(16384)) * 4,
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_header_block_without_end_is_cut(name: str) -> None:
    """Before it is decoded."""
    connection, heard = fed(OPEN)
    with pytest.raises(ConnectionFault) as caught:
        connection.feed(BLOCKS[name])
    assert caught.value.code == frames.ENHANCE_YOUR_CALM
    assert len(heard.events) == 1


COSTLY = {
    "header blocks of new fields": frame(H, WHOLE, 5, b"\x82" * 1400) * 30,
    "long values": frame(H, WHOLE, 5, b"\x04\xff\x81\x7c" + b"\x00" * 16000) * 30,
    "another window for every stream": b"".join(
        setting((frames.INITIAL_WINDOW_SIZE, 65535 + n % 2)) for n in range(30)
    ),
}


@pytest.mark.parametrize("name", COSTLY)
def test_frames_that_cost_more_end_the_turn_sooner(name: str) -> None:
    """A turn is a time, not a number of frames: thirty of these were a second in one."""
    connection = flooded("a stream we ended")
    for number in range(7, 40_007, 2):
        connection.budget = 1
        connection.feed(frame(H, WHOLE, number, BLOCK))
    connection.take()
    count = COSTLY[name].count(COSTLY[name][:9])
    connection.budget = TURN_BUDGET
    assert not connection.feed(COSTLY[name])
    turns = 1
    while not connection.feed(b""):
        connection.budget = TURN_BUDGET
        turns += 1
    assert turns >= count // 2


def test_streams_that_the_peer_never_ends_are_forgotten_in_the_end() -> None:
    """The oldest first; what comes for it then is an error of that stream."""
    connection, heard = fed(HELLO, bounds=Bounds(lingering=2))
    for number in (1, 3, 5):
        connection.feed(frame(H, WHOLE, number, BLOCK))
        connection.send(heard.streams[number], RESPONSE, b"", TRAILERS)
    connection.take()
    connection.feed(frame(D, 0, 5, b"x") + frame(D, 0, 3, b"x"))
    assert connection.take() == b""
    connection.feed(frame(D, 0, 1, b"x"))
    assert parsed(connection.take()) == parsed(reset(1, frames.STREAM_CLOSED))


def test_a_meter_reads_the_clock_only_when_its_count_is_full() -> None:
    """It costs an addition an event."""
    reads = []
    meter = Meter(3, "events", lambda: reads.append(0) or 5.0)  # type: ignore[func-returns-value]
    for _ in range(3):
        meter.count()
    assert len(reads) == 1
    with pytest.raises(ConnectionFault, match="too many events"):
        meter.count()
