"""`llm-edge prices`: prices and context windows from a local file, as a configuration file.

Knows: click, files and YAML. Must not know: the format of the price map.
"""

from __future__ import annotations

from pathlib import Path

import click
import yaml

from extproc.commands.options import BadInput, Failed, config_option, load_config
from extproc.pricemap import NotAPriceMap, fragment, read


@click.group()
def prices() -> None:
    """Prices of the configured models."""


@prices.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@config_option
@click.option("--overwrite", is_flag=True, help="Replace what the configuration says already.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write; name it after the others with --config. Default: standard output.",
)
def import_(file: Path, config_paths: tuple[Path, ...], overwrite: bool, out: Path | None) -> None:
    """Read LiteLLM's model_prices_and_context_window.json from FILE into a configuration file.

    Of every configured target it takes prices, the context window and what the model cannot do.
    """
    config = load_config(config_paths)
    try:
        known = read(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: {error}") from None
    except NotAPriceMap as error:
        raise BadInput(f"{file}: {error}") from None
    found, missing = fragment(config, known, overwrite=overwrite)
    for one in missing:
        click.echo(f"not in {file.name}: {one}", err=True)
    text = yaml.safe_dump(found, sort_keys=False)
    try:
        if out is None:
            click.echo(text, nl=False)
        else:
            out.write_text(text)
    except OSError as error:
        raise Failed(f"{out}: {error.strerror}") from None
    click.echo(f"{len(found['models'])} of {len(config.models)} models take something", err=True)
