"""nghttp2's own clients against the lane: another reading of RFC 9113 than Envoy's or grpcio's.

`make test` installs them where it may; elsewhere these tests are skipped.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from extproc.transport import EXT_PROC, HEALTH
from extproc.transport.lane import LaneTransport
from tests.e2e.ports import free_port

from .scenarios import Inbox, Opened
from .wire import message

URL = f"/{EXT_PROC}/Process"
GRPC_HEADERS = ("-H", "content-type: application/grpc", "-H", "te: trailers")
PATIENCE_S = 60


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is missing (Debian: nghttp2-client); make test installs it for root")
    return found


async def run(*argv: str) -> str:
    """Run a command to its good end and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(PATIENCE_S):
        printed, _ = await process.communicate()
    text = printed.decode(errors="replace")  # the bodies are printed too
    assert process.returncode == 0, text
    return text


@pytest.fixture
def opened() -> Opened:
    return Opened()


@pytest.fixture
async def port(opened: Opened) -> AsyncIterator[int]:
    """Serve on a loopback port: nghttp knows no Unix sockets."""
    number = free_port()
    lane = LaneTransport(f"127.0.0.1:{number}", opened, Inbox(), 1024 * 1024)
    await lane.start()
    await lane.set_serving(True)
    yield number
    await lane.stop(0)


def written(tmp_path: Path, raw: bytes) -> str:
    path = tmp_path / "data"
    path.write_bytes(raw)
    return str(path)


async def test_nghttp_sees_no_protocol_error(port: int, opened: Opened, tmp_path: Path) -> None:
    """Settings, priorities, a window of its own, data, trailers: every frame is as it expects."""
    data = written(tmp_path, message(b"one") + message(b"x" * 100_000) + message(b"end"))
    url = f"http://127.0.0.1:{port}{URL}"
    argv = (tool("nghttp"), "-v", "-y", "-w", "16", "-W", "17", "-d", data, *GRPC_HEADERS, url)
    text = await run(*argv)
    assert ":status: 200" in text
    assert "grpc-status: 0" in text
    assert "error_code" not in text.replace("error_code=NO_ERROR", "")
    (exchange,) = opened.exchanges
    assert [len(raw) for raw in exchange.received] == [3, 100_000, 3]
    assert exchange.closes == 1


async def test_nghttp_with_small_frames_and_padding(
    port: int, opened: Opened, tmp_path: Path
) -> None:
    """Padded frames and a table that it makes smaller in between."""
    data = written(tmp_path, message(b"x" * 50_000) + message(b"end"))
    options = ("-b", "200", "-c", "0", "-c", "4096", "-m", "3")
    url = f"http://127.0.0.1:{port}{URL}"
    text = await run(tool("nghttp"), "-v", *options, "-d", data, *GRPC_HEADERS, url)
    assert text.count("grpc-status: 0") == 3
    assert "error_code" not in text.replace("error_code=NO_ERROR", "")
    assert [exchange.closes for exchange in opened.exchanges] == [1] * 3


async def test_nghttp_is_told_what_is_not_served(port: int) -> None:
    """A GET is 405, another service UNIMPLEMENTED, health SERVING."""
    base = f"http://127.0.0.1:{port}"
    assert ":status: 405" in await run(tool("nghttp"), "-v", f"{base}{URL}")
    headers = (*GRPC_HEADERS, "-H", ":method: POST")
    text = await run(tool("nghttp"), "-v", *headers, f"{base}/other.Service/Do")
    assert "grpc-status: 12" in text
    text = await run(tool("nghttp"), "-v", *headers, f"{base}/{HEALTH}/Check")
    assert "grpc-status: 13" in text  # there was no message


@pytest.mark.parametrize(
    ("connections", "streams", "size"),
    [(1, 1, 10), (1, 100, 10), (4, 100, 10), (2, 20, 100_000)],
)
async def test_h2load_gets_every_answer(
    port: int, opened: Opened, tmp_path: Path, *, connections: int, streams: int, size: int
) -> None:
    """Many streams on several connections, each answered 200 and closed."""
    calls = 200 if size > 10 else 2000
    data = written(tmp_path, message(b"x" * size) + message(b"end"))
    load = ("-n", str(calls), "-c", str(connections), "-m", str(streams), "-d", data)
    text = await run(tool("h2load"), *load, *GRPC_HEADERS, f"http://127.0.0.1:{port}{URL}")
    assert f"{calls} done, {calls} succeeded, 0 failed, 0 errored, 0 timeout" in text, text
    assert re.search(rf"status codes: {calls} 2xx", text)
    assert len(opened.exchanges) == calls
    assert {exchange.closes for exchange in opened.exchanges} == {1}


async def test_h2load_on_a_unix_socket(tmp_path: Path) -> None:
    """The same on what Envoy uses."""
    h2load = tool("h2load")  # first, because where there is none nothing may be left running
    opened = Opened()
    lane = LaneTransport(f"unix:{tmp_path}/s", opened, Inbox(), 1024 * 1024)
    await lane.start()
    data = written(tmp_path, message(b"end"))
    base = ("-B", f"unix:{tmp_path}/s", "-n", "1000", "-c", "2", "-m", "50", "-d", data)
    text = await run(h2load, *base, *GRPC_HEADERS, f"http://localhost{URL}")
    assert "1000 succeeded" in text, text
    await lane.stop(0)
