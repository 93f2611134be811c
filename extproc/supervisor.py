"""`llm-edge run`: Envoy, the processor and simulated providers on one machine, as one command.

Knows: processes, the bundle and the admin ports. Must not know: requests.
Order: the processor is up before Envoy listens, and outlives it when stopping, because Envoy's
last access-log entries are the bill; a Redis of our own is up before all and outlives all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import urlopen

import click

from extproc.admin.envoy import admin_request
from extproc.bundle.render import write
from extproc.checks import envoy_binary, missing_redis, missing_secrets
from extproc.children import Child, keep
from extproc.embedded import redis_binary, redis_command
from extproc.keyring import open_key_store
from extproc.places import Places
from extproc.policies.keys import KeyRequest
from extproc.schema import Config
from extproc.stores.keys import KeyStoreError

log: Final = logging.getLogger(__name__)

START_S: Final = 30.0  # Envoy and Python on a loaded two-core machine need about three
POLL_S: Final = 0.05
LAST_ENTRIES_S: Final = 0.25  # Envoy drops what it has not flushed: five access-log flushes
DRAIN_EXTRA_S: Final = 5.0
DEV_KEY_S: Final = 86_400.0


async def run_everything(config: Config, files: Sequence[Path], env: Mapping[str, str]) -> int:
    """Run until Ctrl-C or SIGTERM, which drains; a second one stops. Returns the exit code."""
    binary = envoy_binary()
    absent = [*missing_secrets(config, env), *missing_redis(config)]
    if binary is None:
        absent.append("envoy: not found (install llm-edge-agent[local])")
    if binary is None or absent:
        for problem in absent:
            click.echo(problem, err=True)
        return 1
    places = Places.of(config)
    places.envoy.mkdir(mode=0o700, parents=True, exist_ok=True)
    write(config, places.envoy)
    redis = _redis(config, places)
    children = _children(config, files, env, binary, places)
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked() -> None:
        (hurry if stop.is_set() else stop).set()

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, asked)
    keepers: list[asyncio.Task[None]] = []
    key_id = None
    try:
        for child in redis:
            await child.start()
            keepers.append(asyncio.create_task(keep(child, stop, _ended)))
            await _answers(config, stop)
        key_id, key = _dev_key(config)  # before the processor reads its keys
        for child in children:
            await child.start()
            keepers.append(asyncio.create_task(keep(child, stop, _ended)))
        if not await _ready(config, stop):
            if not stop.is_set():
                click.echo("llm-edge run: did not get ready; see the messages above", err=True)
            return 0 if stop.is_set() else 1
        _greet(config, key)
        await stop.wait()
        await _drain(config, places, hurry)
        return 0
    finally:
        stop.set()
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        await _stop(config, children, hurry)
        if key_id is not None:
            with contextlib.closing(open_key_store(config.state)) as keys:
                keys.revoke(key_id, now=time.time())
        for child in redis:
            await child.stop(DRAIN_EXTRA_S)


async def _stop(config: Config, children: Sequence[Child], hurry: asyncio.Event) -> None:
    """Stop them, Envoy first: its last entries settle the bill."""
    patience_s = 0.5 if hurry.is_set() else config.server.drain_seconds + DRAIN_EXTRA_S
    # Less than a supervisor of several workers is with them it must not be.
    patience_s += 3.0 if config.server.workers > 1 else 0.0
    for child in reversed(children):
        await child.stop(patience_s)


def _redis(config: Config, places: Places) -> list[Child]:
    """Return the Redis to start: none where limits are in memory or in another's."""
    binary = redis_binary()
    if binary is None or config.state.store != "redis" or config.state.redis is not None:
        return []
    places.redis.mkdir(mode=0o700, exist_ok=True)
    return [Child("redis", redis_command(binary, places))]


async def _answers(config: Config, stop: asyncio.Event) -> None:
    """Wait until Redis has read its data, for START_S at most: whoever asks next is told why."""
    deadline = time.monotonic() + START_S
    with contextlib.closing(open_key_store(config.state)) as keys:
        while time.monotonic() < deadline and not stop.is_set():
            with contextlib.suppress(KeyStoreError):
                await asyncio.to_thread(keys.changed)
                return
            await asyncio.sleep(POLL_S)


def _children(
    config: Config, files: Sequence[Path], env: Mapping[str, str], binary: Path, places: Places
) -> list[Child]:
    python = [sys.executable, "-m", "extproc.cli"]
    chosen = [word for file in files for word in ("--config", str(file))]
    children = []
    for name, provider in config.providers.items():
        if provider.simulated:
            port = str(urlsplit(provider.endpoint).port or 80)
            words = ["simulate", "--port", port, "--name", name, "--dialect", provider.dialect]
            children.append(Child(f"simulated provider {name}", [*python, *words]))
    told = dict(env)
    if config.state.store == "redis":
        told["LLM_AGENT__STATE__REDIS__URL"] = config.state.redis_url
    children.append(Child("processor", [*python, "serve", *chosen], env=told))
    envoy = [str(binary), "-c", "bootstrap.yaml", "-l", "warning"]
    envoy += ["--concurrency", str(os.cpu_count() or 1), "--use-dynamic-base-id"]
    envoy += ["--drain-time-s", str(int(config.server.drain_seconds))]
    children.append(Child("envoy", envoy, cwd=places.envoy, env=env))
    return children


def _ended(child: Child, code: int) -> None:
    click.echo(f"llm-edge run: {child.name} ended with {code}; starting it again", err=True)


async def _ready(config: Config, stop: asyncio.Event) -> bool:
    """Poll the processor's `/readyz`, which speaks for Envoy too."""
    url = f"http://{_reachable(config.admin.host)}:{config.admin.port}/readyz"
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and not stop.is_set():
        with contextlib.suppress(OSError):
            await asyncio.to_thread(_get, url)
            return True
        await asyncio.sleep(POLL_S)
    return False


def _get(url: str) -> None:
    with urlopen(url, timeout=1):  # noqa: S310 (our own admin port)
        return


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 (compared, not bound)


def _dev_key(config: Config) -> tuple[str | None, str]:
    """Make a key for this run: shown once, dead after a day or when the run ends."""
    tier = "enterprise" if "enterprise" in config.tiers else next(iter(config.tiers), "free")
    now = time.time()
    with contextlib.closing(open_key_store(config.state)) as keys:
        record, key = keys.create(
            KeyRequest("llm-edge-run", tier, tenant="local", expires_at=now + DEV_KEY_S),
            now=now,
            token=os.urandom(32),
        )
    return record.key_id, key


def _greet(config: Config, key: str) -> None:
    scheme = "https" if config.server.tls else "http"
    base = f"{scheme}://{_reachable(config.server.host)}:{config.server.port}"
    model = next(iter(config.models), "gpt-4o-mini")
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    click.echo(f"\nllm-edge is ready on {base} (Ctrl-C drains, a second one stops). Try:\n")
    click.echo(
        f"curl -s {base}/v1/chat/completions -H 'authorization: Bearer {key}'"
        f" -H 'content-type: application/json' -d '{body}'\n"
    )


async def _drain(config: Config, places: Places, hurry: asyncio.Event) -> None:
    """Close the listener to new connections and wait for the open requests."""
    click.echo("llm-edge run: draining (again to stop at once)", err=True)
    with contextlib.suppress(OSError):
        await admin_request(places.envoy_admin_socket, "POST", "/drain_listeners?graceful")
    deadline = time.monotonic() + config.server.drain_seconds
    while time.monotonic() < deadline and not hurry.is_set():
        try:
            stats = await admin_request(
                places.envoy_admin_socket, "GET", "/stats?filter=gateway.downstream_rq_active"
            )
        except OSError:
            return
        if stats.strip().endswith(": 0"):
            await asyncio.sleep(LAST_ENTRIES_S)
            return
        await asyncio.sleep(POLL_S)
