"""Envoy's state as its admin interface tells it, by a fake on a Unix socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from extproc.admin import envoy as module
from extproc.admin.envoy import admin_request, envoy_config_status


def listeners(*names: str) -> bytes:
    return json.dumps({"listener_statuses": [{"name": name} for name in names]}).encode()


def clusters(*names: str) -> bytes:
    return json.dumps({"cluster_statuses": [{"name": name} for name in names]}).encode()


class FakeEnvoy:
    """An admin interface: bodies by path, sent chunked as Envoy does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[str] = []
        self.status = b"200 OK"
        self.bodies = {
            "/ready": b"LIVE\n",
            "/listeners?format=json": listeners("gateway"),
            "/clusters?format=json": clusters("llm-edge-processor", "openai", "local"),
        }
        self.raw: bytes | None = None
        self.hangs = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0].decode()
        self.asked.append(line)
        if self.hangs:
            await reader.read()  # until the other side gives up
        elif self.raw is not None:
            writer.write(self.raw)
        else:
            body = self.bodies[line.split(" ")[1]]
            head = b"HTTP/1.1 %b\r\ntransfer-encoding: chunked\r\n\r\n" % self.status
            half = len(body) // 2
            parts = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (body[:half], body[half:]))
            writer.write(head + parts + b"0\r\n\r\n")
        writer.close()


@pytest.fixture
async def envoy(tmp_path: Path) -> AsyncIterator[FakeEnvoy]:
    fake = FakeEnvoy(tmp_path / "envoy-admin.sock")
    server = await asyncio.start_unix_server(fake.serve, fake.path)
    yield fake
    server.close()
    await server.wait_closed()


Change = Callable[[FakeEnvoy], None]


def put(path: str, body: bytes) -> Change:
    def change(fake: FakeEnvoy) -> None:
        fake.bodies[path] = body

    return change


def with_attribute(name: str, value: object) -> Change:
    return lambda fake: setattr(fake, name, value)


@pytest.mark.parametrize(
    ("change", "ok", "detail"),
    [
        pytest.param(
            with_attribute("status", b"503 Service Unavailable"), False, "503 LIVE", id="not live"
        ),
        pytest.param(
            put("/listeners?format=json", listeners("other")),
            False,
            "not warm: listener gateway",
            id="no listener of ours",
        ),
        pytest.param(
            put("/listeners?format=json", b"{}"),
            False,
            "not warm: listener gateway",
            id="no listener at all",
        ),
        pytest.param(
            put("/clusters?format=json", clusters("openai")),
            False,
            "not warm: cluster llm-edge-processor, cluster local",
            id="clusters still warming",
        ),
        pytest.param(
            put("/clusters?format=json", b"[1]"), False, "not the JSON", id="JSON of another shape"
        ),
        pytest.param(
            put("/clusters?format=json", b'{"cluster_statuses":[{}]}'),
            False,
            "not the JSON",
            id="a cluster without a name",
        ),
        pytest.param(
            put("/listeners?format=json", b"<html>"), False, "not the JSON", id="not JSON"
        ),
        pytest.param(with_attribute("raw", b"SSH-2.0-x\r\n"), False, "/ready: ", id="not HTTP"),
        pytest.param(with_attribute("raw", b""), False, "/ready: ", id="closed without an answer"),
        pytest.param(
            with_attribute("raw", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nLI"),
            False,
            "/ready: ",
            id="an answer that is cut",
        ),
        pytest.param(lambda _: None, True, "live, gateway and 3 clusters warm", id="live and warm"),
    ],
)
async def test_status(envoy: FakeEnvoy, change: Change, ok: bool, detail: str) -> None:
    """Only a live Envoy with all that is needed warm is good; what is missing is named."""
    change(envoy)
    found = await envoy_config_status(envoy.path, frozenset({"openai", "local"}))
    assert found[0] is ok
    assert detail in found[1]


async def test_slow(envoy: FakeEnvoy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Envoy that does not answer does not hold the probe."""
    monkeypatch.setattr(module, "TIMEOUT_S", 0.01)
    envoy.hangs = True
    assert await envoy_config_status(envoy.path) == (False, "no answer within 0.01 s")


async def test_too_large(envoy: FakeEnvoy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer without end is not read to its end."""
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 4)
    ok, detail = await envoy_config_status(envoy.path)
    assert (ok, detail) == (False, "GET /ready: answer over 4 bytes")


@pytest.mark.parametrize(
    ("required", "expected"), [(True, "no admin socket at"), (False, "not here")]
)
async def test_no_socket(tmp_path: Path, required: bool, expected: str) -> None:
    """Without a socket it is a matter of whether Envoy should be here."""
    ok, detail = await envoy_config_status(tmp_path / "none.sock", required=required)
    assert ok is not required
    assert expected in detail


@pytest.mark.parametrize("required", [True, False])
async def test_a_socket_nobody_listens_on(tmp_path: Path, required: bool) -> None:
    """What a killed Envoy left behind is not an Envoy elsewhere."""
    path = tmp_path / "envoy-admin.sock"
    server = await asyncio.start_unix_server(_never, path)
    server.close()
    await server.wait_closed()
    if not path.exists():  # newer Pythons remove it themselves
        path.touch()
    ok, _ = await envoy_config_status(path, required=required)
    assert ok is False


async def _never(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def test_admin_request(envoy: FakeEnvoy) -> None:
    """Any request of the admin interface can be made; the body is the answer."""
    envoy.bodies["/drain_listeners?graceful"] = b"OK\n"
    assert await admin_request(envoy.path, "POST", "/drain_listeners?graceful") == "OK\n"
    assert envoy.asked == ["POST /drain_listeners?graceful HTTP/1.1"]


@pytest.mark.parametrize(
    "cause",
    [with_attribute("status", b"404 Not Found"), with_attribute("raw", b"nonsense\r\n\r\n")],
)
async def test_admin_request_fails_as_oserror(envoy: FakeEnvoy, cause: Change) -> None:
    """Whoever asks has one kind of error to think of."""
    cause(envoy)
    call: Awaitable[str] = admin_request(envoy.path, "GET", "/ready")
    with pytest.raises(OSError, match="GET /ready: "):
        await call
