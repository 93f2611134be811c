"""The admin API's answers."""

import os
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from extproc.admin.app import create_app
from extproc.admin.keys import KeyAdmin
from extproc.admin.readiness import Readiness

NO_STORE: Any = None
PAGE = (b"# HELP x y\n", "text/plain; version=1.0.0; charset=utf-8")
GOOD = Readiness((("processor", True, "serving"), ("envoy", True, "live")))
BAD = Readiness((("processor", True, "serving"), ("envoy", False, "no admin socket")))


class Scene:
    """What the app is given, to be changed by a test."""

    def __init__(self) -> None:
        self.readiness: Readiness | Exception = GOOD

    async def ready(self) -> Readiness:
        if isinstance(self.readiness, Exception):
            raise self.readiness
        return self.readiness

    def metrics(self) -> tuple[bytes, str]:
        return PAGE


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
async def client(scene: Scene) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(
        ready=scene.ready,
        metrics=scene.metrics,
        version="1.2.3",
        keys=KeyAdmin(NO_STORE, {"free"}, lambda: 0.0, os.urandom, lambda _op: None),
        token=None,
        env={},
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as opened:
        yield opened


async def test_health(client: httpx.AsyncClient, scene: Scene) -> None:
    """A process that is not ready is alive all the same."""
    scene.readiness = BAD
    answer = await client.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "version": "1.2.3"})


@pytest.mark.parametrize(
    ("readiness", "status", "ready"),
    [
        pytest.param(BAD, 503, False, id="one condition that fails fails it"),
        pytest.param(GOOD, 200, True, id="all hold"),
        pytest.param(Readiness(()), 200, True, id="nothing is asked"),
    ],
)
async def test_readiness(
    client: httpx.AsyncClient, scene: Scene, readiness: Readiness, status: int, ready: bool
) -> None:
    """Readiness lists each condition."""
    scene.readiness = readiness
    answer = await client.get("/readyz")
    assert answer.status_code == status
    assert answer.json() == {
        "ready": ready,
        "conditions": [{"name": n, "ok": ok, "detail": d} for n, ok, d in readiness.conditions],
    }


async def test_a_broken_probe_tells_nothing(client: httpx.AsyncClient, scene: Scene) -> None:
    """A bug behind readiness is a 500 in the house shape, without its text."""
    scene.readiness = RuntimeError("secret")
    answer = await client.get("/readyz")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text


async def test_metrics(client: httpx.AsyncClient) -> None:
    """The page goes out as it came, with its own content type."""
    answer = await client.get("/metrics")
    assert (answer.content, answer.headers["content-type"]) == PAGE


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nothing", 404, "not_found"), ("POST", "/metrics", 405, "method_not_allowed")],
)
async def test_errors(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    """Errors have the gateway's shape."""
    answer = await client.request(method, path)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error == {
        "message": f"{answer.reason_phrase}; see /docs",
        "type": "invalid_request_error",
        "param": None,
        "code": code,
    }
    assert answer.headers.get("allow") == ("GET" if status == 405 else None)


async def test_documentation(client: httpx.AsyncClient) -> None:
    """The schema names every path and its types, and the page shows it."""
    schema = (await client.get("/openapi.json")).json()
    assert {path for path in schema["paths"] if not path.startswith("/admin/")} == {
        *("/healthz", "/readyz", "/metrics")
    }
    assert schema["info"]["version"] == "1.2.3"
    assert "503" in schema["paths"]["/readyz"]["get"]["responses"]
    assert {"Health", "ReadinessReport", "ErrorReport"} <= set(schema["components"]["schemas"])
    assert (await client.get("/docs")).status_code == 200
