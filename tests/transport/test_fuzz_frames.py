"""Frames no client should send: an RFC error code, and nothing worse."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from extproc.transport import frames
from extproc.transport.bounds import Bounds
from extproc.transport.frames import PREFACE, frame
from tests.transport.test_fuzz import CODES, MUTATED, RECORDED, Frame, Played, cut, fuzz, play

from .wire import (
    GRPC,
    HELLO,
    WHOLE,
    C,
    D,
    H,
    message,
    parsed,
)


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
