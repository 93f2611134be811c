"""What is left of a call that its client left: nothing."""

from __future__ import annotations

import gc

from hpack import Encoder

from extproc.transport import frames
from extproc.transport.frames import frame

from .line import hand
from .scenarios import within
from .test_calls import START
from .wire import ENDS, GRPC, WHOLE, D, H, message, reset


async def test_a_reset_behind_a_suspending_message_stops_it() -> None:
    """In one read, before its task has run at all: the coroutine is left, the exchange closed."""
    held = hand()
    await held.give(START + frame(D, 0, 1, message(b"hang")) + reset(1, frames.CANCEL))
    (exchange,) = held.opened.exchanges
    await within(exchange.left)
    assert (exchange.closes, held.socket.out.count(b"grpc-status")) == (1, 0)
    held.lose()
    assert exchange.closes == 1


async def test_nothing_of_an_ended_call_waits_for_the_collector() -> None:
    """Or memory would grow by all the calls between two collections."""
    held = hand()
    await held.give(START)
    block = Encoder().encode(GRPC)
    gc.collect()
    gc.disable()
    try:
        for number in range(3, 403, 4):
            done = frame(H, WHOLE, number, block) + frame(D, ENDS, number, message(b"end"))
            left = frame(H, WHOLE, number + 2, block) + reset(number + 2, frames.CANCEL)
            await held.give(done + left)
        assert gc.collect() < 50
    finally:
        gc.enable()
    held.lose()
