"""One admin port for several workers, each a real application on a socket of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from extproc.admin import summed
from extproc.admin import workers as module
from extproc.admin.app import create_app
from extproc.admin.cache import CacheAdmin
from extproc.admin.explain import Explaining
from extproc.admin.keys import KeyAdmin
from extproc.admin.readiness import Readiness
from extproc.admin.server import AdminServer, start_local
from extproc.admin.workers import WorkersAdmin
from extproc.schema import SecretRef
from extproc.stores.flights import Flights
from extproc.stores.sqlite_keys import SqliteKeys
from extproc.telemetry.metrics import Metrics
from tests.kept import MemoryBench

TOKEN = "canary-7d20"
ADMIN = {"authorization": f"Bearer {TOKEN}"}
NOW = 1_000_000.0


class Worker:
    """One worker's admin interface and what is behind it."""

    def __init__(self, path: Path, keys: SqliteKeys) -> None:
        self.path = path
        self.conditions = [("processor", True, "serving")]
        self.states: dict[str, Any] = {}
        self.purged: list[str] = []
        self.refuses = False
        self.counts = Metrics(models=(), served_models=(), providers=("p",))
        self.bench = MemoryBench()
        self.app = create_app(
            ready=self._ready,
            metrics=self.counts.expose,
            version="1",
            keys=KeyAdmin(keys, {"free"}, lambda: NOW, bytes, lambda _: None),
            explaining=Explaining(self._explain, lambda: self.states),
            caching=CacheAdmin(
                cache=self.bench.store,
                stats=self.bench.store.stats,
                flights=Flights().stats,
                failed=lambda _: None,
            ),
            token=SecretRef(env="T"),
            env={"T": TOKEN},
        )
        self._purging(self.app)
        self.server: AdminServer | None = None

    def _purging(self, app: FastAPI) -> None:
        """Add something that changes what a worker keeps for itself."""

        @app.post("/admin/purge", status_code=202)
        async def purge(request: Request) -> dict[str, str]:
            if self.refuses:
                raise RuntimeError("no")
            self.purged.append((await request.body()).decode())
            return {"of": self.path.name}

    async def _ready(self) -> Readiness:
        return Readiness(tuple(self.conditions))

    async def _explain(self, *_: Any) -> dict[str, Any]:
        return {"of": self.path.name}

    async def start(self) -> None:
        """Serve."""
        self.server = await start_local(self.app, self.path)

    async def stop(self) -> None:
        """End, and leave the socket behind as a killed one would."""
        if self.server is not None:
            await self.server.close()
        self.server = None


class Pair:
    """Two workers and the port that speaks for both."""

    def __init__(self, directory: Path) -> None:
        self.keys = SqliteKeys(directory)
        paths = [directory / "admin-0.sock", directory / "admin-1.sock"]
        self.workers = [Worker(path, self.keys) for path in paths]
        self.app = WorkersAdmin(paths, "1.2")
        transport = httpx.ASGITransport(app=self.app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://admin")

    async def counters(self) -> dict[str, float]:
        """Return the admissions of both by phase."""
        page = summed.read((await self.http.get("/metrics")).text)
        name = "llm_edge_admission_seconds"
        return {
            phase: page[name].samples.get(f'{name}_count{{phase="{phase}"}}', 0.0)
            for phase in ("headers", "body")
        }


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    made = Pair(tmp_path)
    for worker in made.workers:
        await worker.start()
    yield made
    await made.http.aclose()
    await asyncio.gather(*(worker.stop() for worker in made.workers))
    made.keys.close()


async def test_who_has_no_token_gets_nowhere(pair: Pair) -> None:
    """The workers' own guard answers, whichever is asked, and its answer is passed on whole."""
    for path in ("/admin/keys", "/admin/breakers", "/admin/none"):
        for headers, status in (({}, 401), ({"authorization": "Bearer x"}, 401)):
            answer = await pair.http.get(path, headers=headers)
            assert (answer.status_code, answer.headers["cache-control"]) == (status, "no-store")
            assert answer.headers["www-authenticate"] == "Bearer"
    refused = await pair.http.post("/admin/purge", content=b"x")
    assert refused.status_code == 401
    assert [worker.purged for worker in pair.workers] == [[], []]


async def test_a_body_without_end_is_not_read(pair: Pair) -> None:
    """As at a worker's own port: 413, and no worker sees it."""
    answer = await pair.http.post("/admin/purge", content=b"x" * 100_000, headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert [worker.purged for worker in pair.workers] == [[], []]


async def test_a_secret_in_the_wrong_place_is_not_logged(
    pair: Pair, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that fails is told of without what was asked of it."""
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 1)
    with caplog.at_level(logging.DEBUG):
        answer = await pair.http.get(f"/admin/keys/{TOKEN}?key={TOKEN}", headers=ADMIN)
    assert answer.status_code == 503
    ours = [record for record in caplog.records if record.name.startswith("extproc")]
    assert [record.message for record in ours] == ["worker's admin failed"]
    assert TOKEN not in str([record.__dict__ for record in ours])


async def test_alive_is_who_speaks_for_them(pair: Pair) -> None:
    """A worker that starts again is no reason to start all of them again."""
    for worker in pair.workers:
        await worker.stop()
    answer = await pair.http.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "version": "1.2"})


def refuse(pair: Pair) -> None:
    pair.workers[1].conditions = [("envoy", False, "not warm")]


def drain(pair: Pair) -> None:
    pair.app.draining = True


async def end(pair: Pair) -> None:
    await pair.workers[1].stop()


@pytest.mark.parametrize(
    ("change", "ready", "told"),
    [
        pytest.param(lambda _: None, True, ("processor (worker 1)", True, "serving"), id="all are"),
        pytest.param(refuse, False, ("envoy (worker 1)", False, "not warm"), id="one is not"),
        pytest.param(end, False, ("worker 1", False, "does not answer"), id="one is gone"),
        pytest.param(drain, False, ("workers", False, "draining"), id="all are asked to go"),
    ],
)
async def test_ready_is_when_every_one_is(
    pair: Pair, change: Callable[[Pair], Any], ready: bool, told: tuple[str, bool, str]
) -> None:
    """Condition by condition, each with whose it is."""
    done = change(pair)
    if done is not None:
        await done
    answer = await pair.http.get("/readyz")
    assert answer.status_code == (200 if ready else 503)
    assert answer.json()["ready"] is ready
    conditions = [tuple(c.values()) for c in answer.json()["conditions"]]
    assert told in conditions
    assert ("processor (worker 0)", True, "serving") in conditions


async def test_metrics_are_the_sum_and_never_fall(pair: Pair) -> None:
    """One ends and its next life counts from nothing: the sum goes on from where it was."""
    one, two = pair.workers
    one.counts.admission("headers", 0.1)
    two.counts.admission("headers", 0.1)
    two.counts.admission("body", 0.1)
    answer = await pair.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "llm_edge_worker_restarts_total 0.0\n" in answer.text
    assert await pair.counters() == {"headers": 2, "body": 1}
    await two.stop()
    assert await pair.counters() == {"headers": 2, "body": 1}  # as it was last told
    pair.app.ended(1)
    assert await pair.counters() == {"headers": 2, "body": 1}
    two.counts = Metrics(models=(), served_models=(), providers=("p",))
    two.app = Worker(two.path, pair.keys).app
    await two.start()
    one.counts.admission("body", 0.1)
    assert await pair.counters() == {"headers": 2, "body": 2}
    assert "llm_edge_worker_restarts_total 1.0\n" in (await pair.http.get("/metrics")).text


async def test_a_page_that_comes_too_late_counts_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker ends while its page is read: it was counted out already."""
    pair.workers[0].counts.admission("headers", 0.1)
    assert await pair.counters() == {"headers": 1, "body": 0}
    reading, go = asyncio.Event(), asyncio.Event()

    async def slowly(work: Any, *words: Any) -> Any:
        if work is summed.read:
            reading.set()
            await go.wait()
        return work(*words)

    monkeypatch.setattr(module.asyncio, "to_thread", slowly)
    scrape = asyncio.create_task(pair.counters())
    await reading.wait()
    pair.app.ended(0)
    go.set()
    assert await scrape == {"headers": 1, "body": 0}


async def test_what_is_kept_of_the_gone_is_bounded(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than grow without end it is forgotten, as when all of them start again."""
    monkeypatch.setattr(summed, "MAX_KEPT", 10)
    pair.workers[0].counts.admission("headers", 0.1)
    assert await pair.counters() == {"headers": 1, "body": 0}
    pair.app.ended(0)
    await pair.workers[0].stop()
    assert await pair.counters() == {"headers": 0, "body": 0}


async def test_keys_are_one_workers_business(pair: Pair) -> None:
    """Their store is shared, so one is asked: a key is not made twice."""
    made = await pair.http.post("/admin/keys", json={"name": "k", "tier": "free"}, headers=ADMIN)
    assert made.status_code == 201
    assert len(pair.keys.list()) == 1
    for _ in range(4):  # at one after the other
        listed = await pair.http.get("/admin/keys", headers=ADMIN)
        assert [key["key_id"] for key in listed.json()["keys"]] == [made.json()["key_id"]]


async def test_another_answers_for_one_that_is_gone(pair: Pair) -> None:
    """Until nobody does: 503, which will pass."""
    await pair.workers[0].stop()
    for _ in range(4):
        assert (await pair.http.get("/openapi.json")).status_code == 200
    await pair.workers[1].stop()
    for method, path in (("GET", "/docs"), ("GET", "/admin/breakers"), ("POST", "/admin/purge")):
        answer = await pair.http.request(method, path, headers=ADMIN)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["code"] == "gateway_unavailable"


async def test_what_each_keeps_is_changed_at_each(pair: Pair) -> None:
    """And one that fails is told of, though the others have done it."""
    answer = await pair.http.post("/admin/purge", content=b"all", headers=ADMIN)
    assert (answer.status_code, answer.json()) == (202, {"of": "admin-0.sock"})
    assert [worker.purged for worker in pair.workers] == [["all"], ["all"]]
    pair.workers[1].refuses = True
    answer = await pair.http.post("/admin/purge", content=b"again", headers=ADMIN)
    assert answer.status_code == 500
    assert [worker.purged for worker in pair.workers] == [["all", "again"], ["all"]]


async def test_of_breakers_the_worst_is_told(pair: Pair) -> None:
    """Each worker has its own view of a target."""
    pair.workers[0].states = {"p/a": "closed", "p/b": "open", "p/c": "half-open"}
    pair.workers[1].states = {"p/a": "half-open", "p/b": "closed", "p/d": "closed"}
    answer = await pair.http.get("/admin/breakers", headers=ADMIN)
    assert answer.json() == {"p/a": "half-open", "p/b": "open", "p/c": "half-open", "p/d": "closed"}


async def test_caches_are_added_up(pair: Pair) -> None:
    """What each keeps and did, the ratio of both; a purge is for each."""
    for worker, hits in zip(pair.workers, (1, 2), strict=True):
        worker.bench.put("a")
        for name in ("a",) * hits + ("b",):
            await worker.bench.get(name)
    told = (await pair.http.get("/admin/cache", headers=ADMIN)).json()
    assert (told["kept"]["entries"], told["kept"]["hits"], told["kept"]["misses"]) == (2, 3, 2)
    assert told["kept"]["hit_ratio"] == 0.6
    assert told["shared"] is None
    assert set(told["in_flight"].values()) == {0}
    assert (await pair.http.get("/admin/cache")).status_code == 401
    answer = await pair.http.delete("/admin/cache?tenant=acme", headers=ADMIN)
    assert (answer.status_code, answer.json()) == (200, {"tenant": "acme", "model": None})
    assert [await worker.bench.get("a") for worker in pair.workers] == [None, None]


async def test_paths_and_queries_arrive_as_they_were(pair: Pair) -> None:
    """Escapes included: the worker decides what they mean."""
    answer = await pair.http.get("/admin/keys/a%2Fb%20c?x=%26&y", headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert (await pair.http.get("/none")).json()["error"]["message"].startswith("Not Found")
    head = await pair.http.head("/healthz")
    assert (head.status_code, head.headers["allow"], head.content) == (405, "GET", b"")


async def test_whether_one_is_up_can_be_asked(pair: Pair) -> None:
    """As its supervisor does while it starts."""
    assert await pair.app.answers(0)
    await pair.workers[0].stop()
    assert not await pair.app.answers(0)
