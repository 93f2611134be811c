"""The reference transport: grpc.aio, raw bytes handlers, Unix socket or TCP.

Knows: gRPC. Must not know: what the bytes mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from extproc.service import ProtocolError
from extproc.transport import (
    ACCESS_LOG,
    EXT_PROC,
    MESSAGE_OVERHEAD_BYTES,
    SILENT,
    Logs,
    Streams,
)

log: Final = logging.getLogger(__name__)


class GrpcioTransport:
    """grpc.aio server on `address` (`unix:PATH` or `host:port`)."""

    def __init__(self, address: str, streams: Streams, logs: Logs, max_body_bytes: int) -> None:
        self._address = address
        self._streams = streams
        self._logs = logs
        self._log_streams = 0
        self._attached = False
        limit = max_body_bytes + MESSAGE_OVERHEAD_BYTES
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.max_concurrent_streams", 1_000_000),  # Envoy's listener sets the bound
                ("grpc.so_reuseport", 0),
            ]
        )
        generic = grpc.method_handlers_generic_handler
        process = grpc.stream_stream_rpc_method_handler(self._process)
        entries = grpc.stream_unary_rpc_method_handler(self._entries)
        self._health = health.aio.HealthServicer()
        self._server.add_generic_rpc_handlers(
            (
                generic(EXT_PROC, {"Process": process}),
                generic(ACCESS_LOG, {"StreamAccessLogs": entries}),
            )
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    @property
    def detached(self) -> bool:
        """Say whether every access-log stream there was has gone: no entry can come any more."""
        return self._attached and not self._log_streams

    @property
    def log_streams(self) -> int:
        """Count the open access-log streams."""
        return self._log_streams

    async def start(self) -> None:
        """Bind and serve. Raises OSError when the address cannot be had."""
        try:
            bound = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise OSError(f"cannot bind {self._address}") from error
        if not bound and not self._address.startswith("unix:"):
            raise OSError(f"cannot bind {self._address}")
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        """Answer health checks with SERVING or NOT_SERVING, overall and per service."""
        serves = health_pb2.HealthCheckResponse
        status = serves.SERVING if serving else serves.NOT_SERVING
        for service in ("", EXT_PROC, ACCESS_LOG):
            await self._health.set(service, status)

    async def stop(self, grace_s: float) -> None:
        """Refuse new RPCs, let open ones end within the grace, then cancel them."""
        await self._server.stop(grace_s)

    async def _process(self, _: Any, context: Any) -> None:
        exchange = self._streams.open()
        try:
            while not exchange.ended:
                raw = await _read(context, exchange.patience_s)
                if raw is None:
                    await context.write(exchange.overdue())
                    await context.abort(grpc.StatusCode.ABORTED, SILENT)
                if raw is grpc.aio.EOF:
                    return
                reply = await exchange.receive(raw, context.write)
                await context.write(reply)
        except ProtocolError as error:
            log.warning("stream refused", extra={"reason": str(error)})
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            exchange.close()

    async def _entries(self, entries: AsyncIterator[bytes], _: Any) -> bytes:
        self._log_streams += 1
        self._attached = True
        try:
            with contextlib.suppress(grpc.aio.UsageError):
                async for raw in entries:
                    self._logs.receive(raw)
        finally:
            self._log_streams -= 1
        return b""


async def _read(context: Any, patience_s: float | None) -> Any:
    """Return the next message, None where none came in time."""
    if patience_s is None:
        return await context.read()
    reading = asyncio.ensure_future(context.read())
    try:
        done, _ = await asyncio.wait((reading,), timeout=patience_s)
        return await reading if done else None
    finally:
        reading.cancel()
