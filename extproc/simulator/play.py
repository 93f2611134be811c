"""Answers over time: latency, pace, and the ways a stream breaks.

Knows events, the clock of the loop and the truth log. Knows no dialect and no HTTP framing.
"""

import asyncio
import hashlib
import math
from collections.abc import Callable

from extproc.simulator.behaviour import Behaviour
from extproc.simulator.dialect import Event, Script, Whole
from extproc.simulator.framing import frame
from extproc.simulator.http1 import Exchange
from extproc.simulator.log import Record

TICKS_PER_SECOND = 1000  # what libuv timers resolve
BURST_EVENTS = 64  # an unpaced stream gives other streams a turn after this many


class Wheel:
    """Calls due in the same millisecond share one loop timer: 2,000 streams cost 50, not 2,000."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, list[Callable[[], None]]] = {}

    def now(self) -> float:
        """Return the loop's time in seconds."""
        return self._loop.time()

    def soon(self, call: Callable[[], None]) -> None:
        """Call after the loop had a turn at everything else."""
        self._loop.call_soon(call)

    def at(self, due: float, call: Callable[[], None]) -> None:
        """Call at `due` (loop seconds), never before it, and a tick late at most when idle."""
        slot = math.ceil(due * TICKS_PER_SECOND)
        calls = self._slots.get(slot)
        if calls is None:
            self._slots[slot] = [call]
            self._loop.call_at(slot / TICKS_PER_SECOND, self._fire, slot)
        else:
            calls.append(call)

    def _fire(self, slot: int) -> None:
        for call in self._slots.pop(slot):
            try:
                call()
            except Exception as error:  # noqa: BLE001 - one stream's bug must not stop the others
                self._loop.call_exception_handler({"message": "stream failed", "exception": error})


def send_whole(
    exchange: Exchange, record: Record, behaviour: Behaviour, headers: bytes, whole: Whole
) -> None:
    """Send an answer in one piece, or the first half of it when it has to break."""
    record.status = 200
    if behaviour.ending is None:
        exchange.reply(200, headers, whole.body)
        record.output_tokens_sent = whole.output_tokens
        record.usage_sent = whole.usage
        record.sent_bytes = len(whole.body)
        record.sent_sha256 = hashlib.sha256(whole.body).hexdigest()
        record.finished = True
        return
    half = whole.body[: len(whole.body) // 2]
    record.broke = behaviour.ending[0]
    record.sent_bytes = len(half)
    exchange.begin(200, headers, len(whole.body))
    exchange.write(half)
    if record.broke == "abort":
        exchange.sever()


class Player:
    """Hands one script to one exchange on time, and keeps the record true."""

    __slots__ = (
        "_burst", "_due", "_ending", "_events", "_exchange", "_held", "_pace",
        "_record", "_sha", "_wheel",
    )  # fmt: skip

    def __init__(
        self, exchange: Exchange, record: Record, behaviour: Behaviour, script: Script, wheel: Wheel
    ) -> None:
        self._exchange = exchange
        self._record = record
        self._wheel = wheel
        self._events = frame(script.events, behaviour, record.seq)
        self._ending = behaviour.ending
        self._pace = behaviour.chunk_ms / 1000
        self._burst = BURST_EVENTS if behaviour.framing == "event" else 1  # one write a turn
        self._sha = hashlib.sha256() if behaviour.digest else None
        self._held: Event | None = None
        self._due = 0.0

    def start(self, headers: bytes) -> None:
        """Send the head, and all events that need not wait."""
        self._record.status = 200
        self._due = self._wheel.now()
        self._exchange.begin(200, headers)
        self._step()

    def _step(self) -> None:
        exchange = self._exchange
        if exchange.closed:
            return
        if exchange.blocked:
            exchange.on_drain = self._step
            return
        budget = self._burst
        if self._held is not None:
            self._send(self._held)
            self._held = None
            budget -= 1
        for _ in range(budget):
            event = next(self._events, None)
            if event is None:
                self._finish()
                return
            if event.paced and self._pace:
                self._held = event
                self._due += self._pace
                self._wheel.at(self._due, self._step)
                return
            self._send(event)
        self._wheel.soon(self._step)

    def _send(self, event: Event) -> None:
        record = self._record
        self._exchange.write(event.data)
        record.sent_bytes += len(event.data)
        record.output_tokens_sent += event.tokens
        record.chunks_sent += event.chunks
        if event.usage is not None:
            record.usage_sent = event.usage
        if self._sha is not None:
            self._sha.update(event.data)

    def _finish(self) -> None:
        record = self._record
        if self._sha is not None:
            record.sent_sha256 = self._sha.hexdigest()
        if self._ending is None or record.chunks_sent < self._ending[1]:
            record.finished = True
            self._exchange.end()
            return
        record.broke = self._ending[0]
        if record.broke == "abort":
            self._exchange.sever()
