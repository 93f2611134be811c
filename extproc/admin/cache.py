"""`GET` and `DELETE /admin/cache`: what the response cache does, and making it forget.

Knows: FastAPI and the callables it is given. Must not know: which stores there are, or who is let
in here. The numbers are this process's own, but for a shared store's purge, which is everybody's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from extproc.admin.report import ErrorReport, report
from extproc.answers import PurgeFailed
from extproc.ports import ResponseCache
from extproc.stores.flight_stats import FlightStats
from extproc.stores.held import AnswerStats
from extproc.stores.redis_answers import RemoteStats

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CacheAdmin:
    """What the routes need, called on the event loop; `shared` is None without a shared store.

    `failed` is called with the operation when the store could not be had.
    """

    cache: ResponseCache
    stats: Callable[[], AnswerStats]
    flights: Callable[[], FlightStats]
    failed: Callable[[str], None]
    shared: Callable[[], RemoteStats] | None = None


class Kept(BaseModel):
    """What this process keeps: sizes in bytes with 1 KiB added per entry, counts since its start.

    `evicted` made room for others; `declined` was too large, over or purged when it came.
    """

    entries: int
    bytes: int
    max_bytes: int
    hits: int
    misses: int
    hit_ratio: Annotated[float | None, Field(description="Null before the first lookup.")]
    evicted: int
    expired: int
    purged: int
    declined: int


class Shared(BaseModel):
    """What this process asked of the shared store: always after a miss of its own."""

    hits: int
    misses: int
    failed: int


class InFlight(BaseModel):
    """Calls that go upstream for others too, and what became of those that wait for them.

    `flights` and `waiting` are of this moment. `landed` got another call's answer; `elected` is how
    often one that waited had to go upstream after a failure; `alone` went upstream unshared.
    """

    flights: int
    waiting: int
    led: int
    landed: int
    alone: int
    elected: int


class CacheReport(BaseModel):
    """The response cache of this process."""

    kept: Kept
    shared: Shared | None
    in_flight: InFlight


class Scope(BaseModel):
    """Whose answers: a tenant's, a model's (its public name), one's of the other, or all."""

    # Forbidden, because a misspelt name would otherwise mean everything.
    model_config = ConfigDict(extra="forbid")

    tenant: str | None = None
    model: str | None = None


def together(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what several processes told as one report: everything is a sum, but for the ratio."""
    found = [CacheReport.model_validate(one) for one in reports]
    shared = [one.shared for one in found if one.shared is not None]
    kept = _sums([one.kept for one in found])
    return {
        "kept": kept | {"hit_ratio": _ratio(kept["hits"], kept["misses"])},
        "shared": _sums(shared) if shared else None,
        "in_flight": _sums([one.in_flight for one in found]),
    }


def _sums(parts: Sequence[BaseModel]) -> dict[str, Any]:
    names = [name for name in type(parts[0]).model_fields if name != "hit_ratio"]
    return {name: sum(getattr(part, name) for part in parts) for name in names}


def _ratio(hits: int, misses: int) -> float | None:
    return hits / (hits + misses) if hits + misses else None


def install(app: FastAPI, admin: CacheAdmin) -> None:
    """Add both routes, and the error of a store that could not be told."""
    app.include_router(_router(admin))

    def down(_request: Request, _error: Exception) -> Response:
        admin.failed("purge")
        log.warning("cache not purged everywhere")
        message = "This process forgot, but the shared store cannot be told now: try again."
        answer = report(503, "store_unavailable", message, kind="server_error")
        answer.headers["retry-after"] = "1"
        return answer

    app.add_exception_handler(PurgeFailed, down)


def _router(admin: CacheAdmin) -> APIRouter:
    router = APIRouter(
        prefix="/admin/cache",
        tags=["cache"],
        dependencies=[Depends(HTTPBearer(auto_error=False, description="`admin.token`"))],
        responses={s: {"model": ErrorReport} for s in (400, 401, 403, "4XX", 503)},
    )

    @router.get("")
    async def show() -> CacheReport:
        """Return what this process keeps and what it did since its start."""
        stats = admin.stats()
        ratio = _ratio(stats.hits, stats.misses)
        return CacheReport(
            kept=Kept(**msgspec.structs.asdict(stats), hit_ratio=ratio),
            shared=admin.shared and Shared(**msgspec.structs.asdict(admin.shared())),
            in_flight=InFlight(**msgspec.structs.asdict(admin.flights())),
        )

    @router.delete("")
    async def purge(scope: Annotated[Scope, Query()]) -> Scope:
        """Forget what was stored until now; every process follows within a second.

        Without a tenant and a model: everything. An answer on its way when this is called is
        forgotten as well.
        """
        await admin.cache.purge(tenant=scope.tenant, model=scope.model)
        log.info("cache purged", extra={"tenant": scope.tenant, "model": scope.model})
        return scope

    return router
