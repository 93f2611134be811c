"""Names that several parts of the bundle share: clusters, namespaces, files.

Knows: names, and how an address is written. Must not know: what they are used for.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from envoy_data_plane.envoy.config.core.v3 import Address, Pipe, SocketAddress

from extproc.schema import PROCESSOR_NAME
from extproc.schema_fields import SecretRef

PROCESSOR: Final = PROCESSOR_NAME  # cluster of ext_proc and, of a single process, the access log
PROCESSOR_SOCKET: Final = "extproc.sock"
NO_PLAN: Final = "llm.no-plan"  # no cluster: a request without a plan must go nowhere
PLAN: Final = "llm"  # dynamic metadata the processor writes for the router
LIMITS: Final = "llm.limits"  # and for the route: the caller's limits, and others, by header name
CALL: Final = "llm.call"  # and for the filters, with the record for settlement
SERVED: Final = "llm.served"  # and, where targets differ in it, the provider filter: the model
RECORD_KEY: Final = "record"  # only planned calls carry it
# Headers between the provider's filters and the log of failed attempts; callers see neither.
MODEL_HEADER: Final = "x-upstream-model"  # which target of a provider was tried
WORKER_HEADER: Final = "x-upstream-worker"  # and, of several, which worker planned it
RESETS_HEADER: Final = "x-llm-resets"  # when the provider's limits are reset
ROUTES: Final = "gateway"
TLS_FILE: Final = "tls.yaml"
TLS_SECRET: Final = "tls"  # noqa: S105 (a name)


def log_cluster(worker: int) -> str:
    """Name the cluster of one of several workers' log entries; no provider's name has a dot."""
    return f"llm.log-{worker}"


@dataclass(frozen=True, slots=True)
class Upstream:
    """A provider's endpoint taken apart. `authority` is what goes in the Host header."""

    https: bool
    host: str
    port: int
    base_path: str
    authority: str

    @property
    def is_address(self) -> bool:
        """Say whether the host needs no name resolution."""
        return is_ip(self.host)


def upstream(endpoint: str) -> Upstream:
    """Take `http(s)://host[:port][/path]` apart."""
    parts = urlsplit(endpoint)
    https = parts.scheme == "https"
    return Upstream(
        https=https,
        host=parts.hostname or "",
        port=parts.port or (443 if https else 80),
        base_path=parts.path.rstrip("/"),
        authority=parts.netloc.lower(),
    )


def is_ip(host: str) -> bool:
    """Say whether the host is an IP literal."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def tcp(host: str, port: int) -> Address:
    """Return a TCP address; `host` may be a name where Envoy resolves it."""
    return Address(socket_address=SocketAddress(address=host, port_value=port))


def pipe(path: str) -> Address:
    """Return a Unix socket relative to the bundle's directory."""
    return Address(pipe=Pipe(path=path))


def secret_file(cluster: str) -> str:
    """Return where the credential of a provider's cluster is described."""
    return f"secrets/{cluster}.yaml"


def operator_path(path: Path, base: Path) -> str:
    """Return an operator's path as Envoy, which runs in the bundle's directory, must say it."""
    return str(path if path.is_absolute() else base / path)


def secret_path(reference: SecretRef, base: Path) -> str:
    """Return the file of a file secret."""
    assert reference.file is not None
    return operator_path(reference.file, base)
