"""Each kind of flood over a real socket: the one connection ends, the others do not notice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from hpack import Encoder

from extproc.transport import frames
from extproc.transport.bounds import Bounds
from extproc.transport.frames import frame
from extproc.transport.lane import LaneTransport

from .line import Line
from .scenarios import MAX_BODY_BYTES, PATIENCE_S, Serve, ask, running, within
from .wire import ENDS, GRPC, WHOLE, C, D, H, goaway, message, reset, setting, update

TIGHT = Bounds(
    continuations=5, pings=50, settings=50, goaways=5, resets=50, faults=50, empty=50, ignored=50,
    windows=50, queued_bytes=5_000, header_list_bytes=20_000,
)  # fmt: skip
CALL = Encoder().encode(GRPC)  # nothing in it depends on what was sent before
HANGS = message(b"hang")
NARROW = setting((frames.INITIAL_WINDOW_SIZE, 0))
MANY = 200


def on(number: int, *more: bytes) -> bytes:
    """Open a call whose exchange waits for ever, and go on."""
    return frame(H, WHOLE, number, CALL) + frame(D, 0, number, HANGS) + b"".join(more)


def streams(make: Callable[[int], bytes]) -> bytes:
    return b"".join(make(number) for number in range(3, 3 + 2 * MANY, 2))


FLOODS = {
    "PING": frame(frames.PING, 0, 0, bytes(8)) * MANY,
    "SETTINGS": setting() * MANY,
    "GOAWAY": goaway(0, 0) * MANY,
    "rapid reset": streams(lambda n: on(n, reset(n, frames.CANCEL))),
    "MadeYouReset by a window of 0": streams(lambda n: on(n, update(n, 0))),
    "MadeYouReset by data after the end": streams(
        lambda n: on(n, frame(D, ENDS, n), frame(D, 0, n, b"x"))
    ),
    "MadeYouReset by headers after the end": streams(
        lambda n: on(n, frame(D, ENDS, n), frame(H, WHOLE, n, CALL))
    ),
    "MadeYouReset by an overflow": streams(lambda n: on(n, update(n, 2**31 - 1))),
    "CONTINUATION": frame(H, 0, 3, CALL) + frame(C, 0, 3) * MANY,
    "empty DATA": on(3, frame(D, 0, 3) * MANY),
    "PRIORITY": frame(frames.PRIORITY, 0, 3, bytes(5)) * MANY,
    "WINDOW_UPDATE": update(0, 1) * MANY,
    "a header list without end": frame(H, WHOLE, 3, b"\x82" * 10_000),
    "replies behind closed windows": NARROW
    + streams(lambda n: frame(H, WHOLE, n, CALL) + frame(D, 0, n, message(bytes(1000)))),
}


@pytest.fixture
def serve() -> Serve:
    return lambda path, opened, inbox, limit: LaneTransport(
        f"unix:{path}", opened, inbox, limit, bounds=TIGHT
    )


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_ends_its_connection_alone(name: str, serve: Serve, tmp_path: Path) -> None:
    """ENHANCE_YOUR_CALM and the end; its exchanges are closed once, another client's goes on."""
    async with running(serve, tmp_path / "s.sock", MAX_BODY_BYTES) as bench:
        other = bench.process()
        assert await ask(other, b"one") == b"one"
        line = Line(*(await asyncio.open_unix_connection(tmp_path / "s.sock")))
        line.writer.write(FLOODS[name])
        while (found := await line.frame())[0] != frames.GOAWAY:
            pass
        assert found[3][4:] == frames.number.pack(frames.ENHANCE_YOUR_CALM)
        async with asyncio.timeout(PATIENCE_S):
            assert await line.reader.read() == b""
        line.writer.close()
        assert await ask(other, b"end") == b"end"
        for exchange in bench.opened.exchanges:
            await within(exchange.closed)
        assert {exchange.closes for exchange in bench.opened.exchanges} == {1}
        assert len(bench.opened.exchanges) <= 1 + TIGHT.resets + 1
