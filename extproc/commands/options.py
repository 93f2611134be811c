"""What subcommands share on the command line: `--config`, durations and exit codes.

Knows: click and the configuration loader. Must not know: any subcommand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from extproc.config import Config, ConfigError, load, parse_duration

_F = TypeVar("_F", bound=Callable[..., Any])


class Failed(click.ClickException):
    """End the command with code 1: it was asked for rightly and did not work."""

    exit_code = 1


class BadInput(click.ClickException):
    """End the command with code 2: bad usage or bad configuration."""

    exit_code = 2


def duration(text: str) -> float:
    """Return the seconds of a duration such as `90d`: a click type."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def config_option(command: _F) -> _F:
    """Add `--config FILE`, any number of times; the command receives `config_paths`."""
    return click.option(
        "--config",
        "config_paths",
        multiple=True,
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Configuration file; later ones override earlier ones. Default: llm-edge.yaml.",
    )(command)


def load_config(paths: Sequence[Path]) -> Config:
    """Load the configuration for the process environment; BadInput where it is not runnable."""
    try:
        return load(paths or None, os.environ)
    except ConfigError as error:
        raise BadInput(str(error)) from None
