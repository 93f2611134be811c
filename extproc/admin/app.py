"""The admin port: is it alive, is it ready, what did it count, and the admin API.

Knows: FastAPI and the callables it is given. Must not know: sockets, Envoy, the pipeline or what
makes the processor ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Literal

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from extproc.admin import cache, explain
from extproc.admin.cache import CacheAdmin
from extproc.admin.explain import Explaining
from extproc.admin.guard import Guard
from extproc.admin.keys import KeyAdmin, install
from extproc.admin.readiness import Readiness
from extproc.admin.report import ErrorReport, report
from extproc.schema_fields import SecretRef


class Health(BaseModel):
    """The event loop answers."""

    status: Literal["ok"] = "ok"
    version: str


class Condition(BaseModel):
    """One thing that must hold; the detail says what was seen."""

    name: str
    ok: bool
    detail: str


class ReadinessReport(BaseModel):
    """Every condition, and whether all hold."""

    ready: bool
    conditions: list[Condition]


def create_app(
    *,
    ready: Callable[[], Awaitable[Readiness]],
    metrics: Callable[[], tuple[bytes, str]],
    version: str,
    keys: KeyAdmin,
    explaining: Explaining | None = None,
    caching: CacheAdmin | None = None,
    token: SecretRef | None,
    env: Mapping[str, str],
) -> FastAPI:
    """Build the admin application.

    `ready` is awaited on the loop at every probe; `metrics` is called in a thread and returns the
    page and its content type. Health never depends on either. `/admin` is for who has the `token`.
    """
    app = FastAPI(
        title="LLM Edge Agent admin",
        version=version,
        redoc_url=None,
        responses={404: {"model": ErrorReport}, 405: {"model": ErrorReport}},
    )

    @app.get("/healthz")
    async def healthz() -> Health:
        """Answer while the event loop lives. For liveness probes."""
        return Health(version=version)

    @app.get("/readyz", responses={503: {"model": ReadinessReport}})
    async def readyz(response: Response) -> ReadinessReport:
        """Say whether traffic may come, condition by condition. For readiness probes."""
        found = await ready()
        if not found.ok:
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        conditions = [Condition(name=n, ok=ok, detail=detail) for n, ok, detail in found.conditions]
        return ReadinessReport(ready=found.ok, conditions=conditions)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Return the counters as Prometheus text."""
        body, content_type = await asyncio.to_thread(metrics)
        return Response(body, headers={"content-type": content_type})

    install(app, keys)
    if explaining is not None:
        explain.install(app, explaining)
    if caching is not None:
        cache.install(app, caching)
    app.add_middleware(Guard, token=token, env=env)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _broken)
    return app


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).name.lower()
    answer = report(error.status_code, code, f"{error.detail}; see /docs")
    answer.headers.update(error.headers or {})
    return answer


async def _broken(_request: Request, _error: Exception) -> Response:
    # uvicorn logs the trace; the caller learns nothing of the inside.
    message = "The admin API failed; see the log."
    return report(500, "internal_error", message, kind="server_error")
