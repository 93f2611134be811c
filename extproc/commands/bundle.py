"""`llm-edge bundle`: the Envoy configuration for a gateway configuration, as files.

Knows: click and the renderer. Must not know: what the files hold.
"""

from __future__ import annotations

from pathlib import Path

import click

from extproc.bundle.render import write
from extproc.commands.options import Failed, config_option, load_config


@click.command()
@config_option
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory to write; Envoy is started in it with `envoy -c bootstrap.yaml`.",
)
def bundle(config_paths: tuple[Path, ...], out: Path) -> None:
    """Render the Envoy configuration: bootstrap, listeners, routes, clusters, secrets."""
    config = load_config(config_paths)
    try:
        write(config, out)
    except OSError as error:
        raise Failed(str(error)) from None
    click.echo(f"wrote the Envoy configuration to {out}")
