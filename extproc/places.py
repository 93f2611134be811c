"""Where things are in the state directory: one page for the paths several parts share.

Knows: names of files. Must not know: what is in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from extproc.schema import REDIS_SOCKET, Config


def worker_socket(worker: int) -> str:
    """Name the Unix socket on which one of several workers decides about calls."""
    return f"processor-{worker}.sock"


def log_socket(worker: int) -> str:
    """Name the one on which it is told how its calls ended."""
    return f"log-{worker}.sock"


@dataclass(frozen=True, slots=True)
class Places:
    """Paths of one installation. Envoy runs in `envoy`, so its bundle names all else relatively."""

    state: Path

    @classmethod
    def of(cls, config: Config) -> Places:
        """Return the places of a configuration."""
        return cls(config.state.dir)

    @property
    def envoy(self) -> Path:
        """Directory of the rendered bundle and of Envoy's sockets."""
        return self.state / "envoy"

    @property
    def processor_socket(self) -> Path:
        """Unix socket the processor listens on where it is one process."""
        return self.envoy / "extproc.sock"

    def worker_socket(self, worker: int) -> Path:
        """Unix socket one of several workers listens on."""
        return self.envoy / worker_socket(worker)

    def log_socket(self, worker: int) -> Path:
        """Unix socket of a worker's log entries; it outlives the worker."""
        return self.envoy / log_socket(worker)

    def worker_admin_socket(self, worker: int) -> Path:
        """Unix socket of a worker's admin interface, for the process that speaks for all."""
        return self.state / f"admin-{worker}.sock"

    @property
    def envoy_admin_socket(self) -> Path:
        """Unix socket of Envoy's admin interface."""
        return self.envoy / "envoy-admin.sock"

    @property
    def ledger(self) -> Path:
        """SQLite file of settled calls."""
        return self.state / "ledger.db"

    @property
    def redis(self) -> Path:
        """Directory of the data of a Redis of our own."""
        return self.state / "redis"

    @property
    def redis_socket(self) -> Path:
        """Unix socket of it, where `State.redis_url` says."""
        return self.state / REDIS_SOCKET

    @property
    def limits(self) -> Path:
        """Journal of what limits have been used."""
        return self.state / "limits.journal"
