"""The `llm-edge` command: names and arguments of every subcommand.

Knows: click and where each command's work lives. Must not know: how that work is done. Imports
sit inside functions so that `llm-edge --help` and small commands do not pay for gRPC and Envoy.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import sys
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click

from extproc import __version__
from extproc.commands.options import BadInput, Failed, config_option, load_config

_ELSEWHERE: Final = {
    "bundle": "extproc.commands.bundle",
    "explain": "extproc.commands.explain",
    "keys": "extproc.commands.keys",
    "prices": "extproc.commands.prices",
    "token": "extproc.commands.token",
    "usage": "extproc.commands.usage",
}


NO_REDIS: Final = (
    "state.redis: write {url: redis://HOST:PORT/0} for state.store: redis;"
    " `llm-edge run` alone starts a Redis of its own"
)


class _Commands(click.Group):
    """A group that imports a subcommand's module when it is called for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _ELSEWHERE:
            found: click.Command = getattr(import_module(_ELSEWHERE[cmd_name]), cmd_name)
            return found
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="llm-edge")
def main() -> None:
    """LLM gateway as an Envoy external-processing sidecar."""


@main.command()
@config_option
def run(config_paths: tuple[Path, ...]) -> None:
    """Run Envoy, the processor and, without a provider key, a simulated provider."""
    from extproc.stores.keys import KeyStoreError
    from extproc.supervisor import run_everything

    try:
        sys.exit(_loop(run_everything(load_config(config_paths), config_paths, os.environ)))
    except (OSError, KeyStoreError) as error:
        raise Failed(str(error)) from None


@main.command()
@config_option
@click.option("--worker", type=int, hidden=True)  # these two: how workers are started
@click.option("--log-socket", type=int, hidden=True)
def serve(
    config_paths: tuple[Path, ...], *, worker: int | None = None, log_socket: int | None = None
) -> None:
    """Serve the gRPC services and the admin port alone (the sidecar container)."""
    from extproc.stores.keys import KeyStoreError
    from extproc.telemetry.logs import configure

    config = load_config(config_paths)
    if config.state.store == "redis" and config.state.redis is None:
        raise BadInput(NO_REDIS)
    configure(config.observability.log_level, config.observability.log_format, worker)
    try:
        if config.server.workers > 1 and (worker is None or log_socket is None):
            # Its own modules alone, because what speaks for the workers needs none of theirs.
            from extproc.workers import serve_workers

            sys.exit(_loop(serve_workers(config, config_paths, os.environ)))
        from extproc.loading import load

        server = load("extproc.server")
        which = None
        if worker is not None and log_socket is not None:
            which = server.Worker(worker, socket.socket(fileno=log_socket))
        _loop(server.serve(config, os.environ, which))
    except (OSError, sqlite3.Error, KeyStoreError) as error:
        raise Failed(str(error)) from None
    except ValueError as error:  # an issuer of tokens, or a secret, that cannot be used
        raise BadInput(str(error)) from None


@main.command()
@config_option
def check(config_paths: tuple[Path, ...]) -> None:
    """Check the configuration, the secrets and the bundle, without starting anything."""
    from extproc.checks import problems

    found = problems(load_config(config_paths), os.environ)
    for problem in found:
        click.echo(problem, err=True)
    if found:
        sys.exit(1)
    click.echo("configuration, secrets and bundle are good")


@main.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def doctor(config_paths: tuple[Path, ...], *, as_json: bool) -> None:
    """Look at this machine: Envoy, secrets, directories, ports, key store, clock, limits."""
    from extproc.doctor import examine

    found = list(examine(load_config(config_paths), os.environ, now=time.time()))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        for finding in found:
            click.echo(f"{finding.verdict:<5} {finding.name:<10} {finding.detail}")
    if any(finding.verdict == "fail" for finding in found):
        sys.exit(1)


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), default=9101, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--dialect", type=click.Choice(["openai", "anthropic"]), default="openai", show_default=True
)
@click.option("--name", default="simulated", show_default=True)
def simulate(port: int, host: str, dialect: str, name: str) -> None:
    """Run one simulated provider in the foreground."""
    from extproc.simulator.server import serve as serve_simulated

    serve_simulated(host, port, dialect=dialect, name=name)


def _loop(main_coroutine: Any) -> Any:
    import uvloop

    return uvloop.run(main_coroutine)


if __name__ == "__main__":
    main()
