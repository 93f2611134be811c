"""The admin routes of the response cache, behind the guard that all admin routes have."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from extproc.admin.app import create_app
from extproc.admin.cache import CacheAdmin
from extproc.admin.keys import KeyAdmin
from extproc.admin.readiness import Readiness
from extproc.answers import PurgeFailed
from extproc.schema import SecretRef
from extproc.stores.flights import Flights
from extproc.stores.redis_answers import RemoteStats
from tests.kept import MemoryBench

TOKEN = "a-token-of-32-characters-or-more"
NO_STORE: Any = None
NO_COUNTS = {"hits": 0, "misses": 0, "evicted": 0, "expired": 0, "purged": 0, "declined": 0}


class Scene:
    """A store, flights and the errors that were counted."""

    def __init__(self) -> None:
        self.bench = MemoryBench()
        self.flights = Flights()
        self.failed: list[str] = []
        self.shared: RemoteStats | None = None

    def app(self) -> Any:
        async def ready() -> Readiness:
            return Readiness(())

        store = self.bench.store
        shared = self.shared
        caching = CacheAdmin(
            cache=store,
            stats=store.stats,
            flights=self.flights.stats,
            failed=self.failed.append,
            shared=None if shared is None else lambda: shared,
        )
        return create_app(
            ready=ready,
            metrics=lambda: (b"", "text/plain"),
            version="1",
            keys=KeyAdmin(NO_STORE, {"free"}, lambda: 0.0, os.urandom, lambda _op: None),
            caching=caching,
            token=SecretRef(env="TOKEN"),
            env={"TOKEN": TOKEN},
        )

    async def ask(self, method: str, query: str = "", token: str = TOKEN) -> httpx.Response:
        transport = httpx.ASGITransport(self.app())
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
            return await client.request(method, f"/admin/cache{query}", headers=headers)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    return Scene()


async def test_an_empty_cache(scene: Scene) -> None:
    """No ratio of nothing."""
    answer = await scene.ask("GET")
    assert answer.status_code == 200
    assert answer.json() == {
        "kept": {**NO_COUNTS, "entries": 0, "bytes": 0, "max_bytes": 64 * 2**20, "hit_ratio": None},
        "shared": None,
        "in_flight": {
            "flights": 0,
            "waiting": 0,
            "led": 0,
            "landed": 0,
            "alone": 0,
            "elected": 0,
        },
    }


async def test_what_it_holds_and_did(scene: Scene) -> None:
    """Of its own, of the shared store, and of calls that wait."""
    scene.shared = RemoteStats(hits=1, misses=2, failed=3)
    made = scene.bench.put("a")
    for name in ("a", "a", "a", "b"):
        await scene.bench.get(name)
    calls = [
        asyncio.ensure_future(scene.flights.join(b"a", n, lease_s=9.0, patience_s=9.0))
        for n in ("1", "2")
    ]
    await asyncio.sleep(0)
    found = (await scene.ask("GET")).json()
    assert found["kept"]["hit_ratio"] == 0.75
    assert (found["kept"]["entries"], found["kept"]["bytes"]) == (1, made.weight)
    assert found["shared"] == {"hits": 1, "misses": 2, "failed": 3}
    assert (found["in_flight"]["flights"], found["in_flight"]["waiting"]) == (1, 1)
    scene.flights.finish(b"a", "1", made)
    await asyncio.gather(*calls)


@pytest.mark.parametrize(
    ("query", "left"),
    [
        pytest.param("", [], id="everything"),
        pytest.param("?tenant=acme", ["beta small"], id="a tenant"),
        pytest.param("?model=small", ["acme large"], id="a model"),
        pytest.param("?tenant=acme&model=large", ["acme small", "beta small"], id="both"),
        pytest.param("?tenant=", ["acme large", "acme small", "beta small"], id="an empty name"),
        pytest.param(
            "?tenant=a%26b%20%C3%BC", ["acme large", "acme small", "beta small"], id="odd"
        ),
    ],
)
async def test_a_purge(scene: Scene, query: str, left: list[str]) -> None:
    """What is named and nothing else."""
    names = ["acme large", "acme small", "beta small"]
    for name in names:
        tenant, _, model = name.partition(" ")
        scene.bench.put(name, tenant=tenant, model=model)
    answer = await scene.ask("DELETE", query)
    assert answer.status_code == 200
    assert set(answer.json()) == {"tenant", "model"}
    assert [name for name in names if await scene.bench.get(name)] == left


@pytest.mark.parametrize("query", ["?tenat=acme", "?tenant=acme&modell=small"])
async def test_a_misspelt_name_purges_nothing(scene: Scene, query: str) -> None:
    """It would otherwise be a purge of everything."""
    scene.bench.put("a")
    answer = await scene.ask("DELETE", query)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert await scene.bench.get("a")


async def test_a_shared_store_that_was_not_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503, counted, and worth another try."""

    async def fails(**_: Any) -> None:
        raise PurgeFailed

    monkeypatch.setattr(scene.bench.store, "purge", fails)
    answer = await scene.ask("DELETE")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "store_unavailable"
    assert scene.failed == ["purge"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_nobody_passes_without_the_token(scene: Scene, method: str) -> None:
    """The guard is before these routes too."""
    scene.bench.put("a")
    answer = await scene.ask(method, token="another")
    assert answer.status_code == 401
    assert await scene.bench.get("a")
