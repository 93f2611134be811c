"""Configurations that tests write, and why one is refused.

Knows: the loader. Must not know: what a test expects it to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from extproc.config import ConfigError, load

Write = Callable[..., Path]  # text and, where it matters, the file's name
LOCAL = "providers: {local: {dialect: openai, endpoint: 'http://127.0.0.1:1/v1'}}\n"


def refusal(paths: list[Path] | None, env: Mapping[str, str] | None = None) -> str:
    """Return why a configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        load(paths, env or {})
    return str(caught.value)
