"""How the lane stops: it waits for what is under way and wanted, and for nobody else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from extproc.transport import frames
from extproc.transport import lane as lane_module
from extproc.transport.control import FAREWELL
from extproc.transport.frames import frame
from extproc.transport.lane import LaneTransport

from .line import Line
from .scenarios import LIMIT_BYTES, PATIENCE_S, Serve, running, within
from .wire import message, reset, setting, update


@pytest.fixture
def serve() -> Serve:
    return lambda path, opened, inbox, limit: LaneTransport(f"unix:{path}", opened, inbox, limit)


async def test_stopping_ends_with_the_last_exchange(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the client keeps its connection."""
    monkeypatch.setattr(lane_module, "LAST_LOGS_S", 0)  # because it looks once more after that
    async with running(serve, tmp_path / "s.sock") as bench:
        line = Line(*(await asyncio.open_unix_connection(tmp_path / "s.sock")))
        stream = line.call()
        line.data(stream, message(b"one"))
        assert [(await line.frame())[0] for _ in range(2)] == [frames.HEADERS, frames.DATA]
        stopping = asyncio.create_task(bench.transport.stop(10 * PATIENCE_S))
        while (await line.frame())[0] != frames.GOAWAY:
            pass
        line.data(stream, message(b"end"))
        async with asyncio.timeout(PATIENCE_S):
            await stopping
        assert (await line.frame())[3] == message(b"end")
        line.writer.close()


async def test_stopping_waits_for_answers_that_wait_for_windows(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exchange that has ended is not over until its last byte has gone."""
    monkeypatch.setattr(lane_module, "LAST_LOGS_S", 0)  # so that it is this that is waited for
    async with running(serve, tmp_path / "s.sock") as bench:
        line = Line(*(await asyncio.open_unix_connection(tmp_path / "s.sock")))
        line.writer.write(setting((frames.INITIAL_WINDOW_SIZE, 0)))
        stream = line.call()
        line.data(stream, message(b"end"))
        assert (await line.frame())[0] == frames.HEADERS
        stopping = asyncio.create_task(bench.transport.stop(PATIENCE_S))
        while (await line.frame())[0] != frames.GOAWAY:
            pass
        assert bench.opened.exchanges[0].closes == 1
        line.writer.write(frame(frames.PING, frames.ACK, 0, FAREWELL))
        assert (await line.frame())[0] == frames.GOAWAY
        line.writer.write(update(stream, 100))
        assert (await line.frame())[3] == message(b"end")
        assert (await line.frame())[0] == frames.HEADERS
        await stopping
        line.writer.close()


@pytest.mark.parametrize("by", ["a reset", "the end of its connection"])
async def test_stopping_does_not_wait_for_an_answer_that_is_not_wanted_any_more(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Its client went away while it waited for a window: nothing is under way then."""
    monkeypatch.setattr(lane_module, "LAST_LOGS_S", 0)  # because it looks once more after that
    async with running(serve, tmp_path / "s.sock") as bench:
        line = Line(*(await asyncio.open_unix_connection(tmp_path / "s.sock")))
        line.writer.write(setting((frames.INITIAL_WINDOW_SIZE, 0)))
        stream = line.call()
        line.data(stream, message(b"end"))
        assert (await line.frame())[0] == frames.HEADERS
        stopping = asyncio.create_task(bench.transport.stop(10 * PATIENCE_S))
        while (await line.frame())[0] != frames.GOAWAY:
            pass
        if by == "a reset":
            line.writer.write(reset(stream, frames.CANCEL))
        else:
            line.writer.close()
        async with asyncio.timeout(PATIENCE_S):
            await stopping
        line.writer.close()


async def test_a_peer_that_does_not_read_cannot_hold_up_the_end(
    serve: Serve, tmp_path: Path
) -> None:
    """Its connection is cut after a moment."""
    async with running(serve, tmp_path / "s.sock") as bench:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s.sock")
        writer.transport.pause_reading()
        line = Line(reader, writer)
        line.writer.write(update(0, 10**9) + setting((frames.INITIAL_WINDOW_SIZE, 10**9)))
        stream = line.call()
        whole = message(bytes(LIMIT_BYTES))  # more than the socket holds
        for at in range(0, len(whole), 16384):
            line.data(stream, whole[at : at + 16384])
        while not bench.opened.exchanges:
            await asyncio.sleep(0)
        await within(bench.opened.exchanges[0].entered)
        async with asyncio.timeout(PATIENCE_S):
            await bench.transport.stop(0)
        assert bench.opened.exchanges[0].closes == 1
        writer.transport.abort()
