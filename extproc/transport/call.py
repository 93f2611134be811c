"""What is kept of one RPC.

Knows: its fields. Must not know: what is done with them; `calls` does it.
"""

from __future__ import annotations

import asyncio

from extproc.transport import Exchange
from extproc.transport.rpc import Method
from extproc.transport.stream import Stream


class Call:
    """One RPC: its bytes that are no message yet, and its exchange if it is an ext_proc stream."""

    __slots__ = (
        "buffer",
        "done",
        "exchange",
        "half_closed",
        "heard",
        "logs",
        "method",
        "ready",
        "responded",
        "service",
        "silence",
        "stream",
        "task",
        "timer",
        "told",
    )

    def __init__(self, stream: Stream, method: Method | None) -> None:
        self.stream = stream
        self.method = method
        self.buffer = bytearray()
        self.exchange: Exchange | None = None
        self.logs = False  # counted as an access-log stream
        self.responded = False
        self.half_closed = False
        self.done = False  # answered, though the answer may still wait for a window
        self.ready = False  # listed for a later turn
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.silence: asyncio.TimerHandle | None = None
        self.heard = 0.0  # when the last message was answered, where its exchange is impatient
        self.service: str | None = None  # whose health is watched
        self.told = b""  # the health that was told last

    def __repr__(self) -> str:
        name = self.method.name if self.method else "unknown"
        doing = "done" if self.done else "suspended" if self.task else "open"
        return f"<Call {name} on {self.stream.number}, {doing}>"
