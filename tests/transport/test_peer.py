"""Turns, pauses and writes of one connection, without a socket."""

from __future__ import annotations

import asyncio

import pytest
from hpack import Encoder

from extproc.transport import frames
from extproc.transport import peer as peer_module
from extproc.transport.bounds import Bounds
from extproc.transport.calls import MESSAGE_COST
from extproc.transport.control import FAREWELL, STREAM_WINDOW
from extproc.transport.frames import frame
from extproc.transport.http2 import TURN_BUDGET

from .line import Hand, hand
from .scenarios import PATIENCE_S, within
from .wire import ENDS, GRPC, HELLO, WHOLE, D, H, message, parsed, setting, update

WIDE = update(0, 10**7) + setting((frames.INITIAL_WINDOW_SIZE, 10**7))
encoder = Encoder()
START = HELLO + WIDE + frame(H, WHOLE, 1, encoder.encode(GRPC))
AGAIN = encoder.encode(GRPC)
A_TURN = TURN_BUDGET // MESSAGE_COST


def answers(held: Hand) -> int:
    return sum(kind == D for kind, *_ in parsed(held.socket.out))


async def test_a_read_is_answered_by_one_write() -> None:
    """For all its streams."""
    held = hand()
    more = [frame(H, WHOLE, n, AGAIN) + frame(D, 0, n, message(b"one")) for n in range(3, 23, 2)]
    await held.give(START)
    held.socket.written.clear()
    await held.give(b"".join(more))
    assert len(held.socket.written) == 1
    assert answers(held) == 10
    held.lose()


BURSTS = {
    "messages of one frame": [frame(D, 0, 1, message(b"x") * 2000)],
    "messages of many frames": [frame(D, 0, 1, message(b"x")) * 2000],
    "streams": [
        b"".join(
            frame(H, WHOLE, n, AGAIN) + frame(D, 0, n, message(b"x")) for n in range(3, 4003, 2)
        )
    ],
    "frames that ask nothing": [update(1, 1) * 5000 + frame(D, 0, 1, message(b"x"))],
}


@pytest.mark.parametrize("name", BURSTS)
async def test_a_burst_lets_others_have_their_turns(name: str) -> None:
    """No callback does more than a turn's work, and what is left is read no further meanwhile."""
    held = hand()
    await held.give(START)
    loop = asyncio.get_running_loop()
    seen: list[int] = []
    peer, socket = held.peer, held.socket
    loop.call_soon(peer.data_received, BURSTS[name][0])
    asked = 2000 if "ask nothing" not in name else 1
    while len(seen) < 10_000:
        await asyncio.sleep(0)  # another callback of the same loop
        seen.append(answers(held))
        if seen[-1] == asked:
            break
        assert socket.paused
    steps = [after - before for before, after in zip([0, *seen], seen, strict=False)]
    assert max(steps) <= A_TURN
    assert len(seen) >= 5000 // TURN_BUDGET
    await held.give()
    assert not socket.paused
    held.lose()


async def test_what_comes_while_a_burst_is_worked_off_keeps_its_order() -> None:
    """Bytes that were under way when reading was paused come behind."""
    held = hand()
    await held.give(START)
    loop = asyncio.get_running_loop()
    first = b"".join(message(b"%d" % n) for n in range(300))
    loop.call_soon(held.peer.data_received, frame(D, 0, 1, first))
    await asyncio.sleep(0)
    loop.call_soon(held.peer.data_received, frame(D, 0, 1, message(b"300") + message(b"end")))
    await asyncio.sleep(0)
    await held.give()
    (exchange,) = held.opened.exchanges
    assert exchange.received == [b"%d" % n for n in range(301)] + [b"end"]
    held.lose()


async def test_a_peer_that_does_not_read_is_not_read() -> None:
    """The socket's buffer full: reading pauses, a burst under way stops, and both go on after."""
    held = hand()
    await held.give(START)
    peer, socket = held.peer, held.socket
    loop = asyncio.get_running_loop()
    loop.call_soon(peer.data_received, frame(D, 0, 1, message(b"x") * 200))
    loop.call_soon(peer.pause_writing)
    for _ in range(5):
        await asyncio.sleep(0)
    assert socket.paused
    assert answers(held) == A_TURN
    peer.resume_writing()
    await held.give()
    assert answers(held) == 200
    assert not socket.paused
    peer.pause_writing()
    assert socket.paused
    peer.resume_writing()
    assert not socket.paused
    held.lose()


async def test_replies_that_the_socket_does_not_take_have_a_bound() -> None:
    """Of calls that were waiting when it stopped: over it, the connection ends."""
    held = hand(bounds=Bounds(unread_bytes=1000))
    await held.give(START + frame(D, 0, 1, message(b"later")))
    await held.give(frame(H, WHOLE, 3, AGAIN) + frame(D, 0, 3, message(b"later")))
    first, second = held.opened.exchanges
    held.peer.pause_writing()
    held.socket.unsent = 1000
    first.released.set()
    while answers(held) < 1:
        await asyncio.sleep(0)
    assert not held.socket.closed
    held.socket.unsent = 1001
    second.released.set()
    while not held.socket.closed:
        await asyncio.sleep(0)
    *_, last = parsed(held.socket.out)
    assert last == (frames.GOAWAY, 0, 0, frames.pair.pack(3, frames.ENHANCE_YOUR_CALM))
    held.lose()
    assert [exchange.closes for exchange in held.opened.exchanges] == [1, 1]


@pytest.mark.parametrize("size", [2**14, 2**24 - 1], ids=["frames of 16 KB", "of any size"])
@pytest.mark.parametrize("window", [0, 10**8], ids=["windows closed", "windows open"])
async def test_a_turn_writes_or_queues_little_more_than_one_large_reply(
    window: int, size: int
) -> None:
    """So that whoever does not take it is found out before the next ones are made."""
    held = hand()
    pairs = (frames.INITIAL_WINDOW_SIZE, window), (frames.MAX_FRAME_SIZE, size)
    wide = update(0, 10**8) + setting(*pairs)
    body = message(bytes(600_000))
    pieces = [body[at : at + 16384] for at in range(0, len(body), 16384)]
    streams = range(1, 41, 2)
    opening = [frame(H, WHOLE, n, Encoder().encode(GRPC)) for n in streams]
    await held.give(HELLO + wide, *opening)
    for n in streams:  # all but the last frame, so that a read of 20 frames makes 20 replies
        await held.give(b"".join(frame(D, 0, n, piece) for piece in pieces[:-1]))
    held.socket.written.clear()
    last = b"".join(frame(D, 0, n, pieces[-1]) for n in streams)
    asyncio.get_running_loop().call_soon(held.peer.data_received, last)
    await asyncio.sleep(0)
    made = sum(exchange.received != [] for exchange in held.opened.exchanges)
    assert 1 <= made <= 3
    await held.give()
    assert sum(exchange.received != [] for exchange in held.opened.exchanges) == len(streams)
    held.lose()


async def test_closing_twice_keeps_its_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that broke a rule and does not read is cut off, also when the lane stops meanwhile."""
    monkeypatch.setattr(peer_module, "PARTING_S", 0.01)
    held = hand()
    await held.give(START, frame(D, 0, 0, b"x"))
    held.peer.finish()
    async with asyncio.timeout(PATIENCE_S):
        await held.socket.aborted.wait()
    held.lose()


async def test_a_held_stream_gets_its_window_back_when_its_messages_are_taken() -> None:
    """A suspended call is not replenished beyond one window; then its bytes are asked for."""
    held = hand(limit=32 * 1024 * 1024, bounds=Bounds())
    big = message(b"later") + message(bytes(9 * 1024 * 1024))
    pieces = [frame(D, 0, 1, big[at : at + 16384]) for at in range(0, len(big), 16384)]
    await held.give(START, *pieces)
    updates = [f for f in parsed(held.socket.out) if f[0] == frames.WINDOW and f[2] == 1]
    assert updates == []
    (exchange,) = held.opened.exchanges
    exchange.released.set()
    while answers(held) < 2:
        await asyncio.sleep(0)
    updates = [f for f in parsed(held.socket.out) if f[0] == frames.WINDOW and f[2] == 1]
    assert [payload for *_, payload in updates] == [frames.number.pack(len(big))]
    held.lose()


async def test_a_call_that_suspended_at_its_last_byte_is_held_no_longer_than_that() -> None:
    """Its next messages are more than a window together."""
    held = hand()
    await held.give(START, update(0, 10**8) + update(1, 10**8))
    await held.give(frame(D, 0, 1, message(b"x") + message(b"late")))
    (exchange,) = held.opened.exchanges
    while b"timed out" not in held.socket.written[-1]:
        await asyncio.sleep(0)
    small = frame(D, 0, 1, message(bytes(16_000)))
    count = STREAM_WINDOW // 16_000 + 10
    await held.give(*[small] * count)
    assert len(exchange.received) == 2 + count
    held.lose()


async def test_the_end_that_comes_before_a_calls_turn_waits_for_it() -> None:
    """Its messages that waited behind one that suspended are answered first."""
    held = hand()
    await held.give(START + frame(D, 0, 1, message(b"later") + message(b"two")))
    (exchange,) = held.opened.exchanges
    await asyncio.sleep(0)  # its task waits now
    exchange.released.set()
    # In the pass of the loop in which the first answer is made; the call's turn is in the next.
    asyncio.get_running_loop().call_soon(held.peer.data_received, frame(D, ENDS, 1))
    while parsed(held.socket.out)[-1][:2] != (H, WHOLE | ENDS):
        await asyncio.sleep(0)
    assert exchange.received == [b"later", b"two"]
    assert answers(held) == 2
    assert b"grpc-status\x010" in parsed(held.socket.out)[-1][3]
    held.lose()


@pytest.mark.parametrize("moment", ["suspended", "in a burst", "watching", "idle"])
async def test_a_lost_connection_leaves_nothing_behind(moment: str) -> None:
    """Every exchange is closed once, every task is cancelled, nothing is written."""
    held = hand()
    raw = {"suspended": b"hang", "in a burst": b"x", "watching": b"", "idle": b"x"}[moment]
    await held.give(START)
    count = 200 if moment == "in a burst" else 1
    asyncio.get_running_loop().call_soon(
        held.peer.data_received, frame(D, 0, 1, message(raw) * count)
    )
    await asyncio.sleep(0)
    (exchange,) = held.opened.exchanges
    held.lose()
    written = len(held.socket.written)
    for _ in range(5):
        await asyncio.sleep(0)
    if moment == "suspended":
        await within(exchange.left)
    assert exchange.closes == 1
    assert len(held.socket.written) == written


@pytest.mark.parametrize("answered", ["before", "after", "never"])
async def test_the_end_waits_until_the_peer_knows(
    answered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a stream it opens meanwhile would be lost; one that does not answer is left in the end."""
    monkeypatch.setattr(peer_module, "PARTING_S", 0.01)
    held = hand()
    await held.give(START)
    held.peer.refuse_new()
    farewell = frame(frames.PING, frames.ACK, 0, FAREWELL)
    if answered == "before":
        await held.give(farewell)
    assert not held.socket.closed
    held.peer.finish()
    if answered == "after":
        assert not held.socket.closed
        await held.give(farewell)
    if answered == "never":
        async with asyncio.timeout(PATIENCE_S):
            while not held.socket.closed:
                await asyncio.sleep(0)
    *_, last = parsed(held.socket.out)
    assert last == (frames.GOAWAY, 0, 0, frames.pair.pack(1, frames.NO_ERROR))
    assert held.socket.closed
    held.lose()


async def test_a_fault_says_goodbye_and_closes() -> None:
    """GOAWAY is the last thing written."""
    held = hand()
    await held.give(START, frame(D, 0, 0, b"x"))
    *_, last = parsed(held.socket.out)
    assert last == (frames.GOAWAY, 0, 0, frames.pair.pack(1, frames.PROTOCOL_ERROR))
    assert held.socket.closed
    held.lose()
    assert held.opened.exchanges[0].closes == 1
