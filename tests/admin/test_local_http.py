"""Requests over a Unix socket: what arrives, and what goes wrong in one way only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from extproc.admin.local_http import Answer, ask
from extproc.admin.server import start_local

MAX_BYTES = 10_000


@pytest.fixture
async def echo(tmp_path: Path) -> AsyncIterator[Path]:
    """Serve what was asked."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        headers = dict(scope["headers"])
        told = [scope["method"], scope["raw_path"].decode(), scope["query_string"].decode()]
        told += [headers.get(b"x-one", b"").decode(), body.decode()]
        start = {"type": "http.response.start", "status": 418, "headers": [(b"X-Two", b"2")]}
        await send(start)
        await send({"type": "http.response.body", "body": "|".join(told).encode()})

    server = await start_local(app, tmp_path / "s")
    yield tmp_path / "s"
    await server.close()


async def asked(path: Path, method: str = "GET", target: str = "/", **more: Any) -> Answer:
    return await ask(path, method, target, timeout_s=5, max_bytes=MAX_BYTES, **more)


async def test_a_request_arrives_whole(echo: Path) -> None:
    """Method, path and query as they are, headers, body; the answer whatever its status."""
    answer = await asked(echo, "PUT", "/a%2Fb?c=%20", headers=[(b"x-one", b"1")], body=b"hello")
    assert (answer.status, answer.body) == (418, b"PUT|/a%2Fb|c=%20|1|hello")
    assert dict(answer.headers)[b"x-two"] == b"2"
    assert (await asked(echo, "HEAD")).body == b""


async def test_only_this_user_may_connect(echo: Path) -> None:
    """The mode of the socket is who may."""
    assert echo.stat().st_mode & 0o777 == 0o600


async def test_an_answer_without_end_is_not_read(echo: Path) -> None:
    """ConnectionError, as for whatever else is no answer."""
    with pytest.raises(ConnectionError, match="over 4 bytes"):
        await ask(echo, "GET", "/", timeout_s=5, max_bytes=4)


async def test_what_http_cannot_carry_is_not_sent_and_not_quoted(echo: Path) -> None:
    """The text of h11's error would quote the header."""
    with pytest.raises(ConnectionError, match="cannot carry") as caught:
        await asked(echo, headers=[(b"authorization", b"secret\r\nx: y")])
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_nobody_there_is_told_apart(tmp_path: Path) -> None:
    """Because then nothing was sent, and another may be asked."""
    with pytest.raises(FileNotFoundError):
        await asked(tmp_path / "none")
