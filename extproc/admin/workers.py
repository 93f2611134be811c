"""The admin port of several workers: one page, one readiness, one API for all of them.

Knows: ASGI, the workers' own admin sockets, how their answers come together. Must not know: how
workers are started, what they do. Who may ask under /admin is the workers' to say.
Failure mode: a worker that does not answer is not ready, and counts with what it last told.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from extproc.admin import summed
from extproc.admin.cache import together
from extproc.admin.guard import MAX_BODY_BYTES, Receive, Send, read_body
from extproc.admin.local_http import Answer, ask
from extproc.admin.report import report
from extproc.admin.summed import Page

log: Final = logging.getLogger(__name__)

PROBE_S: Final = 2.0  # a worker gives Envoy a second, and answers at once
SCRAPE_S: Final = 5.0  # of Prometheus' ten; a page takes tens of milliseconds
CALL_S: Final = 15.0  # a key store may try for a while
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024  # ten of the largest pages
WORST_FIRST: Final = ("open", "half-open", "closed")
_HOP_BY_HOP: Final = frozenset(
    {b"connection", b"content-length", b"transfer-encoding", b"host", b"expect", b"date"}
)
_RESTARTS: Final = "llm_edge_worker_restarts_total"

Scope = MutableMapping[str, Any]


class WorkersAdmin:
    """ASGI application; `sockets` are the workers' admin sockets, in the order of their numbers."""

    def __init__(self, sockets: Sequence[Path], version: str) -> None:
        self._sockets = sockets
        self._version = version
        self._pages: list[Page] = [summed.EMPTY for _ in sockets]
        self._gone: Page = summed.EMPTY
        self._lives = [0 for _ in sockets]
        self._turn = itertools.count()
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http"
        routes: Mapping[tuple[str, str], Callable[[Scope], Awaitable[Response]]] = {
            ("GET", "/healthz"): self._healthz,
            ("GET", "/readyz"): self._readyz,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/admin/breakers"): self._breakers,
            ("GET", "/admin/cache"): self._cache,
        }
        route = routes.get((scope["method"], scope["path"]))
        if route is not None:
            answer = await route(scope)
        else:
            body = await read_body(receive)
            answer = await self._passed_on(scope, body)
        await answer(scope, receive, send)

    def ended(self, worker: int) -> None:
        """Keep what a worker had counted when last asked: its next life begins at nothing."""
        self._lives[worker] += 1
        kept = summed.summed([self._gone, summed.growing(self._pages[worker])])
        if summed.size(kept) <= summed.MAX_KEPT:
            self._gone = kept
        else:  # as after a restart of all: whoever computes rates sees counters begin anew
            log.warning("counts of ended workers are forgotten: too many series")
            self._gone = summed.EMPTY
        self._pages[worker] = summed.EMPTY

    async def answers(self, worker: int) -> bool:
        """Say whether a worker serves its admin interface yet."""
        try:
            return (await self._get(worker, "/healthz", PROBE_S)).status == HTTPStatus.OK
        except OSError:
            return False

    async def _healthz(self, _: Scope) -> Response:
        return JSONResponse({"status": "ok", "version": self._version})

    async def _readyz(self, _: Scope) -> Response:
        found = await asyncio.gather(*(self._conditions(n) for n in range(len(self._sockets))))
        conditions = [condition for one in found for condition in one]
        if self.draining:
            conditions.append({"name": "workers", "ok": False, "detail": "draining"})
        ready = all(condition["ok"] for condition in conditions)
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        return JSONResponse({"ready": ready, "conditions": conditions}, status_code=status)

    async def _conditions(self, worker: int) -> list[dict[str, Any]]:
        try:
            told = json.loads((await self._get(worker, "/readyz", PROBE_S)).body)
            return [
                {"name": f"{c['name']} (worker {worker})", "ok": c["ok"], "detail": c["detail"]}
                for c in told["conditions"]
            ]
        except (OSError, ValueError, LookupError, TypeError):
            detail = "does not answer"
            return [{"name": f"worker {worker}", "ok": False, "detail": detail}]

    async def _metrics(self, _: Scope) -> Response:
        await asyncio.gather(*(self._look(worker) for worker in range(len(self._sockets))))
        pages = [self._gone, *self._pages]
        body = await asyncio.to_thread(lambda: summed.written(summed.summed(pages)))
        body += (
            f"# HELP {_RESTARTS} Workers that ended by themselves and were started again.\n"
            f"# TYPE {_RESTARTS} counter\n{_RESTARTS} {sum(self._lives)}.0\n"
        ).encode()
        return Response(body, headers={"content-type": CONTENT_TYPE_LATEST})

    async def _look(self, worker: int) -> None:
        life = self._lives[worker]
        try:
            answer = await self._get(worker, "/metrics", SCRAPE_S)
            page = await asyncio.to_thread(summed.read, answer.body.decode())
        except (OSError, ValueError):
            log.warning("worker's metrics not read", extra={"of": worker})
            return
        if life == self._lives[worker]:  # else it is a page of a process that was counted out
            self._pages[worker] = page

    async def _breakers(self, scope: Scope) -> Response:
        """Tell the worst of the states that the workers have of a target: each has its own."""

        def worst(found: Sequence[Mapping[str, str]]) -> Mapping[str, str]:
            states: dict[str, str] = {}
            for target, state in (item for one in found for item in one.items()):
                states[target] = min(states.get(target, state), state, key=WORST_FIRST.index)
            return states

        return await self._told_by_all(scope, worst)

    async def _cache(self, scope: Scope) -> Response:
        """Tell what all workers together keep and did: each has answers of its own."""
        return await self._told_by_all(scope, together)

    async def _told_by_all(self, scope: Scope, join: Callable[[Sequence[Any]], Any]) -> Response:
        """Answer with what all have told, joined; with the answer of one that refuses as it is."""
        found = await self._ask_all(scope, b"")
        refused = [answer for answer in found if answer.status != HTTPStatus.OK]
        if not found or refused:
            return _as_it_is(refused[0]) if refused else _nobody()
        told = join([json.loads(answer.body) for answer in found])
        return JSONResponse(told, headers={"cache-control": "no-store"})

    async def _passed_on(self, scope: Scope, body: bytes | None) -> Response:
        """Have one worker answer; of what changes something beside the shared keys, all.

        Because what a worker keeps for itself is nobody else's to change.
        """
        if body is None:
            return report(413, "request_too_large", f"The body is over {MAX_BODY_BYTES} bytes.")
        path = scope["path"]
        shared = not path.startswith("/admin/") or path.startswith("/admin/keys")
        if shared or scope["method"] in {"GET", "HEAD"}:
            return await self._passed_to_one(scope, body)
        found = await self._ask_all(scope, body)
        refused = [answer for answer in found if answer.status >= HTTPStatus.BAD_REQUEST]
        return _as_it_is((refused or found)[0]) if found else _nobody()

    async def _passed_to_one(self, scope: Scope, body: bytes) -> Response:
        first = next(self._turn)
        for step in range(len(self._sockets)):
            worker = (first + step) % len(self._sockets)
            try:
                return _as_it_is(await self._forward(worker, scope, body))
            except (FileNotFoundError, ConnectionRefusedError):
                continue  # it has seen nothing of it, so another one may
            except OSError as error:
                _failed(worker, error)
                break
        return _nobody()

    async def _ask_all(self, scope: Scope, body: bytes) -> list[Answer]:
        """Return the answers of the workers that are there; one that begins has nothing to say."""
        numbers = range(len(self._sockets))
        found = await asyncio.gather(
            *(self._forward(number, scope, body) for number in numbers), return_exceptions=True
        )
        answers = []
        for number, answer in zip(numbers, found, strict=True):
            if isinstance(answer, Answer):
                answers.append(answer)
            elif isinstance(answer, OSError):
                _failed(number, answer)
            else:
                raise answer
        return answers

    async def _forward(self, worker: int, scope: Scope, body: bytes) -> Answer:
        target = scope["raw_path"].decode("latin-1")
        if scope["query_string"]:
            target += "?" + scope["query_string"].decode("latin-1")
        headers = [(name, value) for name, value in scope["headers"] if name not in _HOP_BY_HOP]
        return await ask(
            self._sockets[worker],
            scope["method"],
            target,
            timeout_s=CALL_S,
            max_bytes=MAX_ANSWER_BYTES,
            headers=headers,
            body=body,
        )

    async def _get(self, worker: int, target: str, timeout_s: float) -> Answer:
        return await ask(
            self._sockets[worker], "GET", target, timeout_s=timeout_s, max_bytes=MAX_ANSWER_BYTES
        )


def _as_it_is(answer: Answer) -> Response:
    response = Response(answer.body, status_code=answer.status)
    for name, value in answer.headers:
        if name not in _HOP_BY_HOP:
            response.headers.append(name.decode("latin-1"), value.decode("latin-1"))
    return response


def _failed(worker: int, error: OSError) -> None:
    # Not its text, which names the path: what is sent to the wrong place is sometimes a key.
    log.warning("worker's admin failed", extra={"of": worker, "reason": type(error).__name__})


def _nobody() -> Response:
    answer = report(503, "gateway_unavailable", "No worker answers now.", kind="server_error")
    answer.headers["retry-after"] = "1"
    return answer
