"""Connections that were recorded, cut anywhere; and frames no client should send.

`make fuzz` runs every property with at least 10,000 examples, `make test` with a few hundred.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hpack import Encoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extproc.transport import ACCESS_LOG, EXT_PROC, HEALTH, frames
from extproc.transport.bounds import Bounds
from extproc.transport.frames import frame
from extproc.transport.lane import LaneTransport
from extproc.transport.peer import Peer

from .line import Socket
from .scenarios import Inbox
from .wire import (
    ENDS,
    GRPC,
    HELLO,
    WHOLE,
    D,
    H,
    goaway,
    message,
    parsed,
    reset,
    setting,
    update,
)

EXAMPLES = int(os.environ.get("LLM_EDGE_FUZZ_EXAMPLES", "200"))
ENVOY = (Path(__file__).parent / "envoy.bin").read_bytes()  # Envoy 1.40 and a no-op processor
BODY = 0x22  # the first byte of an ext_proc request body: the answer to it is the last
CODES = frozenset(range(0xE))  # RFC 9113 7
TURNS = 20_000  # a connection that is not done by then hangs
fuzz = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass
class Digest:
    """Answers a message with its digest; a body ends it, as in the product."""

    ended: bool = False
    closes: int = 0
    patience_s: float | None = None

    async def receive(self, raw: bytes, say: Any = None) -> bytes:
        if raw[:1] == b"~":
            await asyncio.sleep(0)
        self.ended = raw[:1] == bytes((BODY,))
        return hashlib.sha256(raw).digest()

    def overdue(self) -> bytes:
        raise AssertionError("nobody is waited for")

    def close(self) -> None:
        self.closes += 1


@dataclass
class Digests:
    """Every exchange there was."""

    exchanges: list[Digest] = field(default_factory=list)

    def open(self) -> Digest:
        self.exchanges.append(Digest())
        return self.exchanges[-1]


@dataclass
class Played:
    """What became of a connection."""

    out: bytes
    closed: bool
    exchanges: list[Digest]
    logged: list[bytes]


async def _play(pieces: list[bytes], bounds: Bounds) -> Played:
    loop = asyncio.get_running_loop()
    escaped: list[object] = []
    loop.set_exception_handler(lambda _, context: escaped.append(context))
    opened, inbox, socket = Digests(), Inbox(), Socket()
    lane = LaneTransport("unix:/nowhere", opened, inbox, 64 * 1024, bounds=bounds)
    peer = Peer(lane, lambda: 1000.0)
    peer.connection_made(socket)  # type: ignore[arg-type]
    turns = 0
    for piece in [*pieces, b""]:
        while socket.paused and not socket.closed:
            await asyncio.sleep(0)
            turns += 1
            assert turns < TURNS
        if socket.closed:
            break
        loop.call_soon(peer.data_received, piece)
        await asyncio.sleep(0)
        assert not escaped
    for _ in range(5):
        await asyncio.sleep(0)
    closed = socket.closed
    peer.connection_lost(None)
    await asyncio.sleep(0)
    assert not escaped
    assert {exchange.closes for exchange in opened.exchanges} <= {1}
    assert peer._calls._held_bytes == 0
    logged = [inbox.messages.get_nowait() for _ in range(inbox.messages.qsize())]
    return Played(socket.out, closed, opened.exchanges, logged)


def play(pieces: list[bytes], bounds: Bounds = Bounds()) -> Played:  # noqa: B008
    """Feed a new connection and return what it said; fails on anything that escapes or hangs."""
    return asyncio.run(_play(pieces, bounds))


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    return [raw[a:b] for a, b in pairwise([0, *sorted(places), len(raw)])]


def mixed() -> bytes:
    """Record what a client of every service says, at once."""
    encoder = Encoder()

    def call(number: int, path: str, flags: int = 0) -> bytes:
        head = [*GRPC[:3], (":path", path), GRPC[4], ("x-number", str(number))]
        return frame(H, WHOLE | flags, number, encoder.encode(head))

    process, logs = f"/{EXT_PROC}/Process", f"/{ACCESS_LOG}/StreamAccessLogs"
    body = bytes((BODY,)) + b"body" * 3000
    return b"".join(
        (
            HELLO,
            setting((frames.INITIAL_WINDOW_SIZE, 100), (frames.HEADER_TABLE_SIZE, 0)),
            call(1, process) + frame(D, 0, 1, message(b"head 1")),
            call(3, logs) + frame(D, 0, 3, message(b"entry") + message(b"entries" * 9)[:30]),
            call(5, f"/{HEALTH}/Check") + frame(D, ENDS, 5, message(b"")),
            update(1, 50) + frame(frames.PING, 0, 0, b"12345678"),
            frame(D, 0, 3, message(b"entries" * 9)[30:]),
            call(7, process) + frame(D, 0, 7, message(b"head 7") + message(body)),
            call(9, "/nobody/knows") + frame(D, ENDS, 9, message(b"?")),
            call(11, process) + reset(11, frames.CANCEL),
            frame(D, 0, 1, message(body)[:5000]) + frame(D, ENDS, 1, message(body)[5000:]),
            update(0, 10_000) + setting((frames.INITIAL_WINDOW_SIZE, 70_000)),
            frame(frames.PRIORITY, 0, 13, bytes(5)) + frame(0xEE, 0, 0, b"?"),
            call(13, process) + frame(D, frames.PADDED, 13, b"\x03" + message(b"head 13") + b"..."),
            frame(D, ENDS, 3) + frame(D, ENDS, 13) + goaway(0, 0),
        )
    )


def suspending() -> bytes:
    """Record calls whose every message makes the processor wait."""
    encoder = Encoder()
    calls = HELLO
    for number in range(1, 15, 2):
        calls += frame(H, WHOLE, number, encoder.encode(GRPC))
        calls += frame(D, 0, number, message(b"~head %d" % number) + message(b"~next %d" % number))
    for number in (5, 13):
        calls += frame(D, 0, number, message(b"~more %d" % number)) + reset(
            number - 2, frames.CANCEL
        )
    return calls + frame(D, ENDS, 7)


RECORDED = {"Envoy": ENVOY, "every service": mixed()}
MUTATED = {**RECORDED, "suspending": suspending()}
WHOLE_ANSWERS = {name: play([raw]) for name, raw in RECORDED.items()}


def test_the_recordings_are_what_they_should_be() -> None:
    """Envoy asked 13 times, all was answered; nobody was refused but the unknown method."""
    envoy, every = WHOLE_ANSWERS["Envoy"], WHOLE_ANSWERS["every service"]
    kinds = [kind for kind, *_ in parsed(envoy.out)]
    assert (len(envoy.exchanges), kinds.count(D), envoy.closed) == (13, 24, False)
    assert frames.RST_STREAM not in kinds
    assert every.logged == [b"entry", b"entries" * 9]
    assert [kind for kind, *_ in parsed(every.out)].count(D) == 7
    assert not every.closed


@pytest.mark.parametrize("name", RECORDED)
@fuzz
@given(st.data())
def test_any_cuts_give_the_same_messages_and_replies(name: str, data: st.DataObject) -> None:
    """Byte for byte what one read gives, in whatever reads the bytes come."""
    raw = RECORDED[name]
    places = data.draw(st.lists(st.integers(0, len(raw)), max_size=40))
    assert play(cut(raw, places)) == WHOLE_ANSWERS[name]


@pytest.mark.parametrize("name", RECORDED)
def test_a_byte_at_a_time_gives_the_same(name: str) -> None:
    """The finest cut there is."""
    raw = RECORDED[name]
    assert play([raw[at : at + 1] for at in range(len(raw))]) == WHOLE_ANSWERS[name]


# Frames no client should send.

Frame = tuple[int, int, int, bytes]
