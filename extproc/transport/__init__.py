"""Transports: they carry bytes between Envoy and the services, and know nothing else.

A transport serves three services: ext_proc (`Streams.open().receive`), the access log
(`Logs.receive`) and grpc.health.v1. `grpcio` is the reference, for TCP and remote processors;
`lane` is for the Unix socket of a sidecar.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol, TypeAlias

EXT_PROC: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
ACCESS_LOG: Final = "envoy.service.accesslog.v3.AccessLogService"
HEALTH: Final = "grpc.health.v1.Health"
SILENT: Final = "nothing came for too long"
# Headers and framing beside the largest body; the other entries of the log beside a kept answer.
MESSAGE_OVERHEAD_BYTES: Final = 256 * 1024


Say: TypeAlias = Callable[[bytes], Awaitable[None]]


class Exchange(Protocol):
    """One ext_proc stream."""

    @property
    def ended(self) -> bool: ...

    @property
    def patience_s(self) -> float | None:
        """How long the peer may be silent after the last reply; None: for ever."""

    def overdue(self) -> bytes:
        """Return the last message, for a peer that was silent so long; the RPC is ABORTED then."""

    def receive(self, raw: bytes, say: Say) -> Coroutine[Any, Any, bytes]:
        """Answer a message; what is given to `say` meanwhile is sent before the answer."""

    def close(self) -> None: ...


class Streams(Protocol):
    """Opens an exchange per stream."""

    def open(self) -> Exchange: ...


class Logs(Protocol):
    """Takes access-log messages."""

    def receive(self, raw: bytes) -> None: ...


class Transport(Protocol):
    """A running server."""

    async def start(self) -> None: ...

    async def set_serving(self, serving: bool) -> None:
        """Answer health checks with SERVING or NOT_SERVING."""

    @property
    def detached(self) -> bool:
        """Say whether every access-log stream there was has gone: no entry can come any more."""

    @property
    def log_streams(self) -> int:
        """Count the access-log streams that are open: at least one means Envoy is attached."""

    async def stop(self, grace_s: float) -> None:
        """Refuse new streams, let open ones end within the grace, then close."""
