"""Composition root of the processor: builds everything, serves, drains.

Knows: every part. Must not know: what any part decides.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from extproc.accesslog import AccessLog
from extproc.admin.envoy import envoy_config_status
from extproc.admin.readiness import Readiness
from extproc.domain import Head
from extproc.explain import explain, principal_of
from extproc.gateway import Gateway
from extproc.identity import Authenticator
from extproc.inflight import InFlight
from extproc.keyring import Keyring, open_key_store
from extproc.places import Places
from extproc.policies.breaker import Rules
from extproc.policies.estimate import Estimator
from extproc.policies.health import Health
from extproc.schema import Config
from extproc.service import Processor
from extproc.snapshot import compile_snapshot
from extproc.snapshot_cache import cache_secret
from extproc.stores.journal import Journal
from extproc.stores.keys import KeyStore
from extproc.stores.memory import MemoryLedger
from extproc.stores.open_answers import AnswerStores
from extproc.stores.redis_ledger import RedisLedger
from extproc.stores.usage_log import SqliteUsageLog
from extproc.telemetry.metrics import Metrics
from extproc.transport import Transport
from extproc.transport.lane import LaneTransport

if TYPE_CHECKING:
    from extproc.admin.server import AdminServer
    from extproc.telemetry.tracing import Tracing

log: Final = logging.getLogger(__name__)

HOUSEKEEPING_S: Final = 1.0
DRAIN_POLL_S: Final = 0.1
LAG_PROBE_S: Final = 0.5
LAST_ENTRIES_S: Final = 0.2  # four access-log flushes: entries of calls that just ended
CHANCE_BYTES: Final = 9  # of an id
IDS_AT_ONCE: Final = 400  # what chance is read for
GC_ALLOCATIONS: Final = 50_000  # generation 0: at 700 a request pays for several collections


@dataclass(frozen=True, slots=True)
class Worker:
    """Which of `server.workers` this process is; log entries of its calls come to `log_socket`."""

    number: int
    log_socket: socket.socket


class Server:
    """One processor process: services, admin port, ledger and keys."""

    def __init__(
        self, config: Config, env: Mapping[str, str], worker: Worker | None = None
    ) -> None:
        """Take the configuration; `worker` where this is one of several."""
        self._config = config
        self._env = env
        self._worker = worker
        self._places = Places.of(config)
        self._draining = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Bind everything. Raises OSError, sqlite3.Error or KeyStoreError when something cannot
        be had, ValueError for a secret that is missing or too short."""
        config, places, worker = self._config, self._places, self._worker
        secret = cache_secret(config.cache, self._env)
        places.envoy.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.metrics = Metrics(
            models=frozenset(config.models),
            served_models=frozenset(t.model for m in config.models.values() for t in m.targets),
            providers=frozenset(config.providers),
        )
        identity = Authenticator.from_config(
            config.auth,
            None,
            self._env,
            tiers=config.tiers,
            on_error=self._jwks_error,
        )
        store = open_key_store(config.state)
        self._keys = Keyring(store, identity, self.metrics)
        await self._keys.poll()
        self._usage_log = SqliteUsageLog(places.ledger, self.metrics)
        self._inflight = InFlight(time.time)
        written = config.breaker
        health = Health(Rules(written.failures, written.window, written.open_min, written.open_max))
        self.metrics.watch_breakers(health.worst)
        self._ledger = self._open_ledger()
        await self._ledger.start()
        self._answers = AnswerStores.of(config, self.metrics)
        if self._answers is not None:
            await self._answers.start()
        self._tracing = self._open_tracing()
        gateway = Gateway(
            snapshot=compile_snapshot(config, time.time(), secret),
            identity=identity,
            observer=self.metrics,
            ledger=self._ledger,
            estimator=Estimator(),
            health=health,
            clock=time.time,
            steady=time.monotonic,
            new_id=_new_ids(0 if worker is None else worker.number),
            draw=random.random,
            tracer=self._tracing,
            caching=self._answers.caching if self._answers is not None else None,
        )
        # A message is one body, or a batch of log entries that ends with one answer that is kept.
        limit = max(config.server.max_request_bytes, config.cache.max_entry_bytes)
        streams = Processor(gateway, self._inflight)
        logs = AccessLog(gateway, self._usage_log, self._inflight)
        self._transport: Transport
        kind = config.server.transport
        if kind == "grpcio" or (kind == "auto" and config.server.processor_address):
            # Not at the top, because sidecars need no gRPC library, which takes 0.06 s to load.
            from extproc.transport.grpcio import GrpcioTransport  # noqa: PLC0415

            self._transport = GrpcioTransport(self._address(), streams, logs, limit)
        else:
            also = None if worker is None else worker.log_socket
            self._transport = LaneTransport(self._address(), streams, logs, limit, also=also)
        await self._transport.start()
        self._admin = await self._open_admin(gateway, store)
        await self._transport.set_serving(True)
        steps = (self._keys.watch, self._keys.note_use, self._housekeeping, self._probe_lag)
        for step in steps:
            self._tasks.append(asyncio.create_task(self._forever(step)))
        # Because what was built above lives as long as the process: no collection need visit it.
        gc.collect()
        gc.freeze()
        gc.enable()  # off since `extproc.loading`
        gc.set_threshold(GC_ALLOCATIONS, 20, 20)
        log.info("serving", extra={"address": self._address(), "admin_port": self._admin.port})

    @property
    def admin_port(self) -> int:
        """Return the bound admin port."""
        return self._admin.port

    async def drain(self, patience_s: float) -> None:
        """Stop taking part: health first, then wait for calls in flight, then settle and close."""
        self._draining = True
        await self._transport.set_serving(False)
        emptied = asyncio.create_task(self._inflight.empty())
        deadline = time.monotonic() + patience_s
        while not emptied.done() and time.monotonic() < deadline and not self._transport.detached:
            await asyncio.wait([emptied], timeout=DRAIN_POLL_S)
        emptied.cancel()
        if len(self._inflight):
            log.warning("drained without every entry", extra={"in_flight": len(self._inflight)})
        await self._transport.stop(LAST_ENTRIES_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Bounded: a disk that is full must not keep the process from leaving.
        await asyncio.to_thread(self._usage_log.close)
        await self._keys.close()
        await self._ledger.close()
        if self._answers is not None:
            await self._answers.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        await self._admin.close()

    async def readiness(self) -> Readiness:
        """Say whether traffic may come: the processor serves and Envoy is attached and warm."""
        conditions = [
            ("processor", not self._draining, "draining" if self._draining else "serving"),
            ("keys", self._keys.loaded, "read" if self._keys.loaded else "never read yet"),
        ]
        if self._config.server.processor_address is None:
            ok, detail = await envoy_config_status(
                self._places.envoy_admin_socket, frozenset(self._config.providers)
            )
            conditions.append(("envoy", ok, detail))
        return Readiness(tuple(conditions))

    def _open_ledger(self) -> MemoryLedger | RedisLedger:
        redis = self._config.state.redis
        if self._config.state.store == "redis" and redis is not None:
            return RedisLedger(
                redis.url,
                timeout_s=redis.timeout_ms / 1000,
                replicas=redis.replicas * self._config.server.workers,
                clock=time.time,
                observer=self.metrics,
                cluster=redis.cluster,
            )
        return MemoryLedger(time.time, self.metrics, Journal(self._places.limits))

    def _open_tracing(self) -> Tracing | None:
        written = self._config.observability
        if written.otlp_endpoint is None:
            return None
        # Not at the top, because few need the SDK and its exporter: 2 MB and 0.2 s.
        from extproc.telemetry.tracing import Tracing  # noqa: PLC0415

        return Tracing(written.otlp_endpoint, written.trace_ratio, self.metrics)

    async def _explain(
        self, gateway: Gateway, store: KeyStore, key_id: str | None, head: Head, body: bytes
    ) -> dict[str, Any]:
        record = None if key_id is None else await asyncio.to_thread(store.get, key_id)
        principal = principal_of(record, self._config.auth.anonymous_tier)
        return await explain(gateway, principal, head, body)

    async def _open_admin(self, gateway: Gateway, store: KeyStore) -> AdminServer:
        # In a thread and not at the top: FastAPI takes 0.2 s to load; calls are served meanwhile.
        await asyncio.to_thread(import_module, "extproc.admin.port")
        from extproc.admin.port import Shown, open_port  # noqa: PLC0415

        shown = Shown(
            ready=self.readiness,
            metrics=self.metrics.expose,
            failed=self.metrics.store_error,
            store=store,
            answers=self._answers,
            explain=partial(self._explain, gateway, store),
            breakers=gateway.health.states,
        )
        worker = self._worker
        path = None if worker is None else self._places.worker_admin_socket(worker.number)
        return await open_port(shown, self._config, self._env, path)

    def _address(self) -> str:
        if self._worker is not None:
            return f"unix:{self._places.worker_socket(self._worker.number)}"
        return self._config.server.processor_address or f"unix:{self._places.processor_socket}"

    def _jwks_error(self, op: str) -> None:
        self.metrics.store_error("jwks", op)

    async def _forever(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except Exception:  # a watcher that dies unseen is worse than one that complains
                log.exception("background step failed")
                await asyncio.sleep(HOUSEKEEPING_S)

    async def _housekeeping(self) -> None:
        await asyncio.sleep(HOUSEKEEPING_S)
        if self._answers is not None:
            self._answers.sweep()
        if self._ledger.sweep():
            self.metrics.store_error("ledger", "expired")
        try:
            await asyncio.to_thread(self._ledger.sync)
        except OSError:
            # Failure mode: open. A power cut would lose what is not on the disk, a kill nothing.
            self.metrics.store_error("journal", "sync")
        overdue = self._inflight.expire()
        if overdue:
            self.metrics.store_error("accesslog", "lost")
            log.warning("calls without a log entry", extra={"count": overdue})

    async def _probe_lag(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + LAG_PROBE_S
        await asyncio.sleep(LAG_PROBE_S)
        self.metrics.loop_lag(max(0.0, loop.time() - due))


def _new_ids(worker: int) -> Callable[[], str]:
    """Return what makes ids of the worker, 48 bits of time and 72 of chance, in order of time.

    The worker is first, because `record.beginning` is what Envoy tells whose call it was by. Chance
    is read for many at once, because the kernel takes as long for each as all else here.
    """
    begins = f"{worker:02x}"
    chances: list[str] = []

    def new_id() -> str:
        if not chances:
            read = os.urandom(IDS_AT_ONCE * CHANCE_BYTES).hex()
            chances.extend(
                [read[at : at + 2 * CHANCE_BYTES] for at in range(0, len(read), 2 * CHANCE_BYTES)]
            )
        return f"{begins}{time.time_ns() // 1_000_000:012x}{chances.pop()}"

    return new_id


async def serve(config: Config, env: Mapping[str, str], worker: Worker | None = None) -> None:
    """Run the processor until SIGTERM or SIGINT, then drain; a second signal stops at once.

    A worker whose supervisor is gone leaves without waiting for its calls: others take its place.
    """
    server = Server(config, env, worker)
    stop = asyncio.Event()
    patience_s = config.server.drain_seconds

    def asked() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    def orphaned() -> None:
        nonlocal patience_s
        if not os.read(sys.stdin.fileno(), 1):  # nobody ever writes there
            loop.remove_reader(sys.stdin.fileno())
            patience_s = 0.0
            asked()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, asked)
    if worker is not None:
        loop.add_reader(sys.stdin.fileno(), orphaned)
    await server.start()
    if worker is None:
        sys.stdout.write(f"ready admin=http://{config.admin.host}:{server.admin_port}\n")
        sys.stdout.flush()
    await stop.wait()
    await server.drain(patience_s)
