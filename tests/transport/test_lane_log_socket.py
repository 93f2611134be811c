"""The lane on a socket that another process keeps: what is sent while nobody serves it waits."""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from extproc.sockets import listening
from extproc.transport import ACCESS_LOG
from extproc.transport.lane import LaneTransport
from tests.transport.scenarios import LIMIT_BYTES, PATIENCE_S, Inbox, Opened


@pytest.fixture
def kept(tmp_path: Path) -> socket.socket:
    """Bind a socket as whoever starts workers does."""
    made = listening(tmp_path / "log.sock")
    made.listen(8)
    return made


def lane(directory: Path, kept: socket.socket, inbox: Inbox) -> LaneTransport:
    """Serve it as a worker does: by a descriptor of its own."""
    own = socket.socket(fileno=kept.dup().detach())
    address = f"unix:{directory / 'processor.sock'}"
    return LaneTransport(address, Opened(), inbox, LIMIT_BYTES, also=own)


async def test_what_comes_between_two_workers_waits(kept: socket.socket, tmp_path: Path) -> None:
    """Nothing is refused and nothing lost: the next one takes what was sent to nobody."""
    inbox = Inbox()
    with closing(kept):
        first = lane(tmp_path, kept, inbox)
        await first.start()
        await first.stop(0)
        async with grpc.aio.insecure_channel(f"unix:{tmp_path / 'log.sock'}") as channel:
            logs = channel.stream_unary(f"/{ACCESS_LOG}/StreamAccessLogs")(timeout=PATIENCE_S)
            writing = asyncio.create_task(logs.write(b"entry"))
            second = lane(tmp_path, kept, inbox)
            await second.start()
            async with asyncio.timeout(PATIENCE_S):
                await writing
                assert await inbox.messages.get() == b"entry"
            assert second.log_streams == 1
            await logs.done_writing()
            assert await logs == b""
            await second.stop(0)
        assert second.detached


async def test_an_entry_at_either_socket_counts(kept: socket.socket, tmp_path: Path) -> None:
    """A worker is attached where its log comes, wherever that is."""
    inbox = Inbox()
    with closing(kept):
        served = lane(tmp_path, kept, inbox)
        await served.start()
        for path in ("log.sock", "processor.sock"):
            async with grpc.aio.insecure_channel(f"unix:{tmp_path / path}") as channel:
                logs = channel.stream_unary(f"/{ACCESS_LOG}/StreamAccessLogs")(timeout=PATIENCE_S)
                await logs.write(path.encode())
                async with asyncio.timeout(PATIENCE_S):
                    assert await inbox.messages.get() == path.encode()
        await served.stop(0)
