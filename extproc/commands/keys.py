"""`llm-edge keys`: create, list, rotate and revoke API keys.

Knows: the key store and the terminal. Must not know: requests or a running server; that notices
changes of the store by itself. A key goes to standard output alone, once; all else to stderr.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from extproc.commands.options import BadInput, Failed, config_option, duration, load_config
from extproc.config import Config
from extproc.domain import KeyRecord
from extproc.keyring import open_key_store
from extproc.policies.auth import KEY_TOKEN_BYTES
from extproc.policies.keys import DeadKeyError, KeyRequest, UnknownKeyError, describe, state_of
from extproc.stores.keys import KeyStore, KeyStoreError

_HEAD: Final = (
    *("KEY ID", "NAME", "TENANT", "TIER", "STATE", "MODELS", "ENDPOINTS", "TAGS"),
    *("LAST USED", "ENDS"),
)


@click.group()
@config_option
@click.pass_context
def keys(ctx: click.Context, config_paths: tuple[Path, ...]) -> None:
    """Create, list, rotate and revoke API keys."""
    ctx.obj = config_paths


@keys.command()
@config_option
@click.option("--tier", required=True, help="A tier of the configuration: the key's limits.")
@click.option("--name", required=True, help="What the key is for.")
@click.option("--tenant", help="Share limits and cache with the tenant's keys. Default: its own.")
@click.option("--models", metavar="A,B", help="Models the key may use. Default: every one.")
@click.option("--endpoints", metavar="A,B", help="Endpoints it may use, for example chat.")
@click.option("--tags", metavar="A,B", help="Marks to find it by, for example team:search.")
@click.option("--expires", type=duration, help="Lifetime, for example 90d. Default: no end.")
@click.pass_context
def create(
    ctx: click.Context,
    config_paths: tuple[Path, ...],
    *,
    tier: str,
    name: str,
    tenant: str | None,
    models: str | None,
    endpoints: str | None,
    tags: str | None,
    expires: float | None,
) -> None:
    """Create a key and print it; it cannot be shown again."""
    config = _config(ctx, config_paths)
    if tier not in config.tiers:
        raise BadInput(f"--tier: no tier {tier!r}; legal: {', '.join(sorted(config.tiers))}")
    allowed = _names(models)
    now = time.time()
    with _store(config) as store:
        request = KeyRequest(
            name=name,
            tier=tier,
            tenant=tenant,
            models=allowed,
            endpoints=_names(endpoints),
            tags=_names(tags) or frozenset(),
            expires_at=None if expires is None else now + expires,
        )
        record, plaintext = store.create(
            request, now=now, token=secrets.token_bytes(KEY_TOKEN_BYTES)
        )
    _print_key(record, plaintext)
    if missing := sorted((allowed or frozenset()) - config.models.keys()):
        click.echo(f"note: not configured yet: {', '.join(missing)}", err=True)


@keys.command(name="list")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON array; times in unix seconds.")
@click.pass_context
def list_(ctx: click.Context, config_paths: tuple[Path, ...], *, as_json: bool) -> None:
    """List every key, dead ones too, without the keys themselves."""
    now = time.time()
    with _store(_config(ctx, config_paths)) as store:
        records = store.list()
    if as_json:
        click.echo(json.dumps([describe(record, now) for record in records], indent=2))
        return
    rows = [_HEAD, *(_row(record, now) for record in records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@keys.command()
@config_option
@click.argument("key_id")
@click.option(
    "--grace",
    type=duration,
    default="24h",
    show_default=True,
    help="How long the old key still works; 0s ends it now.",
)
@click.option("--expires", type=duration, help="Lifetime of the new key. Default: the old end.")
@click.pass_context
def rotate(
    ctx: click.Context,
    config_paths: tuple[Path, ...],
    key_id: str,
    grace: float,
    expires: float | None,
) -> None:
    """Print a new key with the attributes of KEY_ID, which ends after the grace period."""
    now = time.time()
    with _store(_config(ctx, config_paths)) as store:
        record, plaintext = store.rotate(
            key_id,
            grace_s=grace,
            expires_at=None if expires is None else now + expires,
            now=now,
            token=secrets.token_bytes(KEY_TOKEN_BYTES),
        )
    _print_key(record, plaintext)


@keys.command()
@config_option
@click.argument("key_id")
@click.pass_context
def revoke(ctx: click.Context, config_paths: tuple[Path, ...], key_id: str) -> None:
    """End a key at once."""
    with _store(_config(ctx, config_paths)) as store:
        record = store.revoke(key_id, now=time.time())
    click.echo(f"{record.key_id} is revoked")


def _config(ctx: click.Context, paths: Sequence[Path]) -> Config:
    """Load the files named before the subcommand, then those named after it."""
    return load_config([*(ctx.obj or ()), *paths])


@contextmanager
def _store(config: Config) -> Iterator[KeyStore]:
    """Open the key store and turn its errors into exit codes."""
    try:
        with closing(open_key_store(config.state)) as store:
            yield store
    except UnknownKeyError as error:
        raise Failed(f"no key {error.args[0]!r}; see: llm-edge keys list") from None
    except DeadKeyError as error:
        raise Failed(f"{error.args[0]} is expired or revoked: create a new key") from None
    except ValueError as error:
        raise BadInput(str(error)) from None
    except KeyStoreError as error:
        raise Failed(str(error)) from None


def _names(text: str | None) -> frozenset[str] | None:
    return None if text is None else frozenset(n for part in text.split(",") if (n := part.strip()))


def _print_key(record: KeyRecord, plaintext: str) -> None:
    click.echo(
        f"{record.key_id}  name {record.name}  tenant {record.tenant}  tier {record.tier}  "
        f"ends {_date(record.expires_at)}\nKeep the key: it is not stored and not shown again.",
        err=True,
    )
    click.echo(plaintext)


def _row(record: KeyRecord, now: float) -> tuple[str, ...]:
    ends = [time_s for time_s in (record.expires_at, record.revoked_at) if time_s is not None]
    return (
        record.key_id,
        record.name,
        record.tenant,
        record.tier,
        state_of(record, now),
        "all" if record.models is None else ",".join(sorted(record.models)),
        "all" if record.endpoints is None else ",".join(sorted(record.endpoints)),
        ",".join(sorted(record.tags)) or "-",
        _date(record.last_used_at),
        _date(min(ends, default=None)),
    )


def _date(time_s: float | None) -> str:
    if time_s is None:
        return "never"
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
