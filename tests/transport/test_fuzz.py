"""Connections that were recorded, cut anywhere; and frames no client should send.

`make fuzz` runs every property with at least 10,000 examples, `make test` with a few hundred.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from hpack import Encoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extproc.transport import ACCESS_LOG, EXT_PROC, HEALTH, frames
from extproc.transport.bounds import Bounds
from extproc.transport.frames import PREFACE, frame
from extproc.transport.lane import LaneTransport
from extproc.transport.peer import Peer

from .line import Socket
from .scenarios import Inbox
from .wire import (
    ENDS,
    GRPC,
    HELLO,
    WHOLE,
    C,
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
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass
class Digest:
    """Answers a message with its digest; a body ends it, as in the product."""

    ended: bool = False
    closes: int = 0

    async def receive(self, raw: bytes) -> bytes:
        if raw[:1] == b"~":
            await asyncio.sleep(0)
        self.ended = raw[:1] == bytes((BODY,))
        return hashlib.sha256(raw).digest()

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


def frames_of(raw: bytes) -> list[Frame]:
    return parsed(raw.removeprefix(PREFACE))


def encoded(some: list[Frame]) -> bytes:
    return PREFACE + b"".join(frame(*one) for one in some)


def swapped(some: list[Frame], a: int, b: int) -> list[Frame]:
    some[a], some[b] = some[b], some[a]
    return some


def moved(some: list[Frame], a: int, b: int) -> list[Frame]:
    some.insert(b, some.pop(a))
    return some


def dropped(some: list[Frame], a: int, b: int) -> list[Frame]:
    del some[min(a, b) : min(a, b) + 1 + abs(a - b) % 3]
    return some


def repeated(some: list[Frame], a: int, b: int) -> list[Frame]:
    some.insert(b, some[a])
    return some


def on_another_stream(some: list[Frame], a: int, b: int) -> list[Frame]:
    kind, flags, _, payload = some[a]
    some[a] = (kind, flags, some[b][2], payload)
    return some


def as_another_kind(some: list[Frame], a: int, b: int) -> list[Frame]:
    _, flags, number, payload = some[a]
    some[a] = (some[b][0], flags, number, payload)
    return some


def with_other_flags(some: list[Frame], a: int, b: int) -> list[Frame]:
    kind, flags, number, payload = some[a]
    some[a] = (kind, flags ^ (1, 4, 8, 0x20, 0xFF)[b % 5], number, payload)
    return some


def shortened(some: list[Frame], a: int, b: int) -> list[Frame]:
    kind, flags, number, payload = some[a]
    some[a] = (kind, flags, number, payload[: len(payload) * b // (b + 1) if b else 0])
    return some


def with_a_bit_turned(some: list[Frame], a: int, b: int) -> list[Frame]:
    kind, flags, number, payload = some[a]
    if payload:
        at = (b * 7919) % len(payload)
        turned = bytes((payload[at] ^ 1 << b % 8,))
        some[a] = (kind, flags, number, payload[:at] + turned + payload[at + 1 :])
    return some


Change = Callable[[list[Frame], int, int], list[Frame]]
CHANGES: list[Change] = [
    swapped,
    moved,
    dropped,
    repeated,
    on_another_stream,
    as_another_kind,
    with_other_flags,
    shortened,
    with_a_bit_turned,
]
ANY_FRAME = st.builds(
    lambda *parts: parts,
    st.integers(0, 10) | st.integers(0, 255),
    st.sampled_from([0, 1, 4, 5, 8, 12, 0x20, 0x2D]) | st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 7, 13, 15, 2**31 - 1]),
    st.binary(max_size=40)
    | st.sampled_from([bytes(4), bytes(5), bytes(8), Encoder().encode(GRPC), message(b"x")]),
)
TIGHT = Bounds(
    streams=4, queued_bytes=20_000, held_bytes=20_000, lingering=2, resets=3, faults=5, empty=5,
    ignored=8, pings=5, settings=8, windows=20, continuations=2, header_list_bytes=2000,
)  # fmt: skip


def check_answers(raw: bytes, played: Played) -> None:
    """Every property of whatever was fed: codes of the RFC, and never another stream's bytes."""
    sent = parsed(played.out)
    for kind, _, number, payload in sent:
        assert kind in {
            D,
            H,
            frames.RST_STREAM,
            frames.SETTINGS,
            frames.PING,
            frames.GOAWAY,
            frames.WINDOW,
        }
        if kind == frames.RST_STREAM:
            assert int.from_bytes(payload, "big") in CODES - {0}
            assert number
    if played.closed:
        assert sent[-1][0] == frames.GOAWAY
        assert int.from_bytes(sent[-1][3][4:8], "big") in CODES - {0}
    else:
        assert frames.GOAWAY not in {kind for kind, *_ in sent}
    digests = {number: replies(sent, number) for kind, _, number, _ in sent if kind == D}
    for number, found in digests.items():
        own = messages_of(raw, number)
        for digest in found:
            if len(digest) == 32:
                assert digest in own, "another stream's bytes"


def replies(sent: list[Frame], number: int) -> list[bytes]:
    """Read the messages that were sent on a stream; the last may be cut."""
    data = b"".join(payload for kind, _, stream, payload in sent if (kind, stream) == (D, number))
    found = []
    while len(data) >= 5:
        stop = 5 + int.from_bytes(data[1:5], "big")
        found.append(data[5:stop])
        data = data[stop:]
    return found


def messages_of(raw: bytes, number: int) -> set[bytes]:
    """Return the digests of the messages that stream `number` alone was sent, padding off or on."""
    found = set()
    rest, data = raw.removeprefix(PREFACE), b""
    while len(rest) >= 9:
        size, kind, flags = int.from_bytes(rest[:3], "big"), rest[3], rest[4]
        payload = rest[9 : 9 + size]
        if kind == D and int.from_bytes(rest[5:9], "big") & (2**31 - 1) == number:
            if flags & frames.PADDED and payload and payload[0] < len(payload):
                payload = payload[1 : len(payload) - payload[0]]
            data += payload
        rest = rest[9 + size :]
    while len(data) >= 5:
        stop = 5 + int.from_bytes(data[1:5], "big")
        found.add(hashlib.sha256(data[5:stop]).digest())
        data = data[stop:]
    return found


@pytest.mark.parametrize("bounds", [Bounds(), TIGHT], ids=["bounds as shipped", "tight bounds"])
@pytest.mark.parametrize("name", MUTATED)
@fuzz
@given(st.data())
def test_mutated_frames_end_as_the_rfc_says(name: str, bounds: Bounds, data: st.DataObject) -> None:
    """Changed, repeated, reordered, cut: RST_STREAM or GOAWAY with a code, and all is cleaned up."""
    some = frames_of(MUTATED[name])
    for _ in range(data.draw(st.integers(1, 4))):
        place = st.integers(0, max(0, len(some) - 1))
        some = data.draw(st.sampled_from(CHANGES))(some, data.draw(place), data.draw(place))
        if not some:
            break
    raw = encoded(some)
    raw = raw[: len(raw) - data.draw(st.integers(0, 30) | st.just(0))]
    places = data.draw(st.lists(st.integers(0, len(raw)), max_size=5))
    check_answers(raw, play(cut(raw, places), bounds))


@pytest.mark.parametrize("bounds", [Bounds(), TIGHT], ids=["bounds as shipped", "tight bounds"])
@fuzz
@given(
    st.lists(ANY_FRAME | st.sampled_from(frames_of(RECORDED["every service"])), max_size=40),
    st.lists(st.integers(0, 2000), max_size=5),
)
def test_random_frames_end_as_the_rfc_says(
    bounds: Bounds, some: list[Frame], places: list[int]
) -> None:
    """Any frames in any order."""
    raw = encoded([(frames.SETTINGS, 0, 0, b""), *some])
    check_answers(raw, play(cut(raw, [min(p, len(raw)) for p in places]), bounds))


@fuzz
@given(st.binary(max_size=400), st.sampled_from([b"", PREFACE, HELLO]))
def test_random_bytes_end_as_the_rfc_says(raw: bytes, before: bytes) -> None:
    """Noise, with and without a good beginning."""
    check_answers(before + raw, play([before + raw]))


@fuzz
@given(st.lists(st.integers(0, 255), max_size=300), st.integers(0, 5))
def test_random_header_blocks_end_as_the_rfc_says(block: list[int], continuations: int) -> None:
    """HPACK of noise, in one frame or several."""
    payload = bytes(block)
    size = len(payload) // (continuations + 1) + 1
    parts = [payload[at : at + size] for at in range(0, max(1, len(payload)), size)]
    kinds = [H, *[C] * (len(parts) - 1)]
    some = [
        (kind, WHOLE if last == len(parts) - 1 else 0, 1, part)
        for last, (kind, part) in enumerate(zip(kinds, parts, strict=True))
    ]
    raw = encoded([(frames.SETTINGS, 0, 0, b""), *some, (H, WHOLE, 3, Encoder().encode(GRPC))])
    check_answers(raw, play([raw]))
