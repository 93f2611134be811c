"""The bundle as files: rendering is pure, writing is atomic.

Knows: which file holds what. Must not know: what is in them.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from extproc.bundle.bootstrap import bootstrap
from extproc.bundle.clusters import clusters
from extproc.bundle.listener import listener
from extproc.bundle.messages import as_dict, as_yaml, resources
from extproc.bundle.places import TLS_FILE, secret_file
from extproc.bundle.routes import routes
from extproc.bundle.secrets import certificate, credential
from extproc.domain import DIALECTS, cluster_of
from extproc.schema import Config

SECRETS: Final = "secrets"
FILE_MODE: Final = 0o644
SECRET_MODE: Final = 0o600  # they name variables and files only, but need not be read by others


def render(config: Config, base: Path = Path()) -> dict[str, str]:
    """Return file name -> text.

    `base` is what relative paths in the configuration are relative to, as seen from the bundle.
    Files stand in the order in which they may be replaced under a running Envoy: what is named
    before what names it.
    """
    files = {}
    for name, provider in config.providers.items():
        if provider.api_key is None:
            continue
        # One for each cluster, because Envoy refuses a second one that waits for the same secret.
        for cluster in (cluster_of(name, provider.dialect, caller) for caller in DIALECTS):
            files[secret_file(cluster)] = resources([credential(cluster, provider.api_key, base)])
    if config.server.tls is not None:
        files[TLS_FILE] = resources([certificate(config.server.tls, base)])
    files["cds.yaml"] = resources(clusters(config, base))
    files["rds.yaml"] = resources([routes(config)])
    files["lds.yaml"] = resources([listener(config)])
    files["bootstrap.yaml"] = as_yaml(as_dict(bootstrap(config)))
    return files


def write(config: Config, directory: Path) -> None:
    """Write the bundle; a running Envoy takes up each file whole, or not at all."""
    files = render(config, base=Path.cwd())
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(name.startswith(SECRETS) for name in files):
        (directory / SECRETS).mkdir(mode=0o700, exist_ok=True)
    for name, text in files.items():
        _replace(directory / name, text, SECRET_MODE if name.startswith(SECRETS) else FILE_MODE)
    for stale in {*directory.glob(f"{SECRETS}/*.yaml"), directory / TLS_FILE}:
        if str(stale.relative_to(directory)) not in files:
            stale.unlink(missing_ok=True)


def _replace(path: Path, text: str, mode: int) -> None:
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(scratch).chmod(mode)
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
