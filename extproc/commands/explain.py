"""`llm-edge explain`: what would become of a request with this configuration, and why.

Knows: click, the configuration, and the state that a gateway keeps: keys and limits. Must not know:
how calls are planned, or a running gateway: of the providers' health it knows nothing, so all of
them are well.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from extproc.commands.options import BadInput, Failed, config_option, load_config
from extproc.config import Config
from extproc.domain import Head, KeyRecord, Principal
from extproc.explain import explain as explain_call
from extproc.explain import principal_of
from extproc.gateway import Gateway
from extproc.identity import Authenticator
from extproc.keyring import open_key_store
from extproc.places import Places
from extproc.policies.estimate import Estimator
from extproc.policies.health import Health
from extproc.policies.keys import UnknownKeyError
from extproc.ports import Ledger, SilentObserver
from extproc.snapshot import compile_snapshot
from extproc.snapshot_cache import cache_secret
from extproc.stores.keys import KeyStoreError
from extproc.stores.memory import MemoryLedger
from extproc.stores.redis_ledger import RedisLedger


@click.command()
@click.argument("request", type=click.Path(path_type=Path, dir_okay=False))
@config_option
@click.option("--key", "key_id", metavar="KEY_ID", help="Whose call it is; see `keys list`.")
@click.option("--path", default="/v1/chat/completions", show_default=True)
@click.option("--header", "headers", multiple=True, metavar="NAME: VALUE", help="May be repeated.")
def explain(
    request: Path,
    config_paths: tuple[Path, ...],
    *,
    key_id: str | None,
    path: str,
    headers: tuple[str, ...],
) -> None:
    """Say what would become of the request body in REQUEST; nothing is called or charged.

    Prints JSON: who calls, every candidate with its verdict and score, the plan, its cost, the key
    its answer is kept under or why it is not, and how each limit stands.
    """
    config = load_config(config_paths)
    try:
        body = request.read_bytes()
    except OSError as error:
        raise BadInput(f"{request}: {error.strerror}") from None
    head = Head("POST", path, "", _headers(headers), ends=False)
    told = asyncio.run(_explained(config, _principal(config, key_id), head, body))
    click.echo(json.dumps(told, indent=2))
    if "refusal" in told:
        raise SystemExit(1)


def _headers(written: tuple[str, ...]) -> dict[str, str]:
    pairs = [one.partition(":") for one in written]
    for name, colon, _ in pairs:
        if not colon or not name.strip():
            raise BadInput("--header: write NAME: VALUE")
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _explained(
    config: Config, principal: Principal, head: Head, body: bytes
) -> dict[str, Any]:
    ledger = _ledger(config)
    await ledger.start()
    try:
        return await explain_call(_gateway(config, ledger, time.time()), principal, head, body)
    finally:
        await ledger.close()


def _ledger(config: Config) -> MemoryLedger | RedisLedger:
    """Open the limits' state to look at it: a gateway on this machine goes on writing its own."""
    redis = config.state.redis
    if config.state.store == "redis" and redis is not None:
        return RedisLedger(
            redis.url,
            timeout_s=redis.timeout_ms / 1000,
            replicas=redis.replicas,
            clock=time.time,
            observer=SilentObserver(),
        )
    path = Places.of(config).limits
    try:
        return MemoryLedger.as_written(time.time, SilentObserver(), path)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None


def _gateway(config: Config, ledger: Ledger, now: float) -> Gateway:
    return Gateway(
        snapshot=compile_snapshot(config, now, _secret(config)),
        identity=Authenticator(tiers=config.tiers),
        observer=SilentObserver(),
        ledger=ledger,
        estimator=Estimator(),
        health=Health(),
        clock=lambda: now,
        steady=lambda: now,
        new_id=lambda: "explained",
        draw=random.random,
    )


def _secret(config: Config) -> bytes:
    """Return what keys the digests: without it the key that is told would be of no gateway."""
    try:
        return cache_secret(config.cache, os.environ)
    except (OSError, ValueError) as error:
        raise BadInput(str(error)) from None


def _principal(config: Config, key_id: str | None) -> Principal:
    try:
        record = _record(config, key_id) if key_id is not None else None
        return principal_of(record, config.auth.anonymous_tier)
    except UnknownKeyError:
        raise BadInput(f"--key: there is no key {key_id!r}") from None
    except LookupError:
        message = "--key: name a key; this configuration lets nobody in without one"
        raise BadInput(message) from None
    except KeyStoreError as error:
        raise Failed(str(error)) from None


def _record(config: Config, key_id: str) -> KeyRecord:
    with closing(open_key_store(config.state)) as store:
        return store.get(key_id)
