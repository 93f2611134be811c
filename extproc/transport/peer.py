"""One connection to the lane: its socket, and whose turn it is.

Knows: asyncio and when to read and write. Must not know: frames, or what calls do.
Every read is answered by one write. What a read brings beyond one turn's budget is done in later
turns of the loop, with reading paused, so that a burst starves neither signals and timers nor
another connection; and a peer that does not read its answers is not read.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, cast

from extproc.transport.call import Call
from extproc.transport.calls import Calls
from extproc.transport.calls import Lane as CallsLane
from extproc.transport.frames import ENHANCE_YOUR_CALM, ConnectionFault
from extproc.transport.http2 import TURN_BUDGET

log: Final = logging.getLogger(__name__)

PARTING_S: Final = 1.0  # how long a peer may take to read why it is cut off


class Lane(CallsLane, Protocol):
    """What the connections of one server share."""

    def joined(self, peer: Peer) -> None: ...

    def left(self, peer: Peer) -> None: ...


class Peer(asyncio.Protocol):
    """One connection from Envoy."""

    def __init__(self, lane: Lane, clock: Callable[[], float]) -> None:
        self._lane = lane
        self._calls = Calls(lane, clock, self._list, self._flush)
        self._http = self._calls.http
        self._sender = self._http.sender
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parting: asyncio.TimerHandle | None = None
        self._ready: deque[Call] = deque()
        self._turning = False
        self._full = False  # the socket takes no more for now
        self._reading = True
        self._finishing = False
        self._queued_bytes = lane.bounds.queued_bytes
        self._unread_bytes = lane.bounds.unread_bytes
        self._unread = False  # the last turn left frames

    @property
    def queued(self) -> int:
        """Count the reply bytes that wait for the peer's windows."""
        return self._sender.queued

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class
        self._lane.joined(self)
        self._flush()

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        if self._parting is not None:
            self._parting.cancel()
        self._calls.close()
        self._lane.left(self)

    def data_received(self, data: bytes) -> None:
        self._http.budget = TURN_BUDGET
        self._read(data)

    def pause_writing(self) -> None:
        self._full = True
        self._pace()

    def resume_writing(self) -> None:
        self._full = False
        if self._ready or self._unread:
            self._later()
        self._pace()

    def refuse_new(self) -> None:
        """Send GOAWAY; open streams go on."""
        self._http.refuse_new()
        self._flush()

    def finish(self) -> None:
        """Close as soon as the peer has seen that this is the end, or does not say so in time."""
        self._finishing = True
        if self._http.refusing or self._transport is None:
            self.close()
        else:
            self._parting = self._loop.call_later(PARTING_S, self._leave)

    def _leave(self) -> None:
        """Close on a peer that has not answered."""
        transport = self._transport
        self._http.finish()
        self._write()
        self.close()
        if transport is not None and transport.get_write_buffer_size():
            transport.abort()

    def close(self) -> None:
        """Close the connection, by force if the peer does not read what is left."""
        transport, self._transport = self._transport, None
        if transport is not None:  # or the second call would take the force off the first
            if self._parting is not None:
                self._parting.cancel()
            self._parting = self._loop.call_later(PARTING_S, transport.abort)
            transport.close()

    def tell_watchers(self) -> None:
        """Send the health status to whoever watches it and has not been told."""
        self._calls.tell_watchers()
        self._flush()

    # Turns.

    def _read(self, data: bytes) -> None:
        try:
            done = self._http.feed(data)
        except ConnectionFault as fault:
            self._fail(fault)
            return
        self._unread = not done
        if self._ready or self._unread:
            self._later()
            self._pace()
        self._flush()
        if self._finishing and self._http.refusing:
            self.close()

    def _turn(self) -> None:
        """Go on with what the last turn left."""
        self._turning = False
        if self._transport is None or self._full:
            return
        self._http.budget = TURN_BUDGET
        listed = len(self._ready)
        while listed and self._http.budget > 0:
            listed -= 1
            call = self._ready.popleft()
            call.ready = False
            if not call.done:
                self._calls.proceed(call)
        self._read(b"")
        self._pace()

    def _later(self) -> None:
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def _list(self, call: Call) -> None:
        """Let a call go on in a later turn."""
        if not call.ready:
            call.ready = True
            self._ready.append(call)
            self._later()

    def _pace(self) -> None:
        """Read only while the socket takes our answers and no turn is due."""
        if self._transport is None:
            return
        reading = not (self._full or self._turning)
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _fail(self, fault: ConnectionFault) -> None:
        log.warning("connection refused", extra={"reason": str(fault)})
        self._http.fail(fault.code)
        self._write()
        self.close()

    def _flush(self) -> None:
        sender, transport = self._sender, self._transport
        if transport is None:
            return
        if sender.queued > self._queued_bytes:
            self._fail(ConnectionFault(ENHANCE_YOUR_CALM, "too many replies wait for windows"))
        elif not sender.out:
            return
        elif self._full and transport.get_write_buffer_size() > self._unread_bytes:
            self._fail(ConnectionFault(ENHANCE_YOUR_CALM, "too many replies wait for the socket"))
        else:
            transport.write(sender.take())

    def _write(self) -> None:
        """Write what there is, whatever else still waits."""
        if self._transport is not None:
            self._transport.write(self._sender.take())
