"""The lane: gRPC for the Envoy of the same machine, on the one event loop.

Knows: sockets and how a server starts, drains and stops. Must not know: HTTP/2 or what bytes mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from extproc.addresses import UNIX, is_local
from extproc.sockets import listening
from extproc.transport import MESSAGE_OVERHEAD_BYTES, Logs, Streams
from extproc.transport.bounds import Bounds
from extproc.transport.peer import PARTING_S, Peer

LAST_LOGS_S: Final = 0.2  # four access-log flushes: entries of calls that have just ended


class LaneTransport:
    """Serves on `address`, `unix:PATH` or `host:port` of the loopback interface.

    Raises ValueError for any other address: there is no TLS here. `also` is a listening socket that
    others have bound, served besides. `clock` (seconds) is what floods are measured by.
    """

    def __init__(
        self,
        address: str,
        streams: Streams,
        logs: Logs,
        max_body_bytes: int,
        *,
        also: socket.socket | None = None,
        bounds: Bounds = Bounds(),  # noqa: B008 (frozen)
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not is_local(address):
            raise ValueError(f"the lane serves Unix sockets and loopback, not {address}")
        self.streams = streams
        self.logs = logs
        self.max_message_bytes = max_body_bytes + MESSAGE_OVERHEAD_BYTES
        self.bounds = bounds
        self.serving = False
        self._address = address
        self._also = also
        self._clock = clock
        self._peers: set[Peer] = set()
        self._log_streams = 0
        self._attached = False
        self._exchanges = 0
        self._idle = asyncio.Event()
        self._alone = asyncio.Event()
        self._alone.set()
        self._stopping = False
        self._servers: list[asyncio.Server] = []

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
        loop = asyncio.get_running_loop()
        if self._address.startswith(UNIX):
            made = listening(Path(self._address.removeprefix(UNIX)))
            self._servers.append(await loop.create_unix_server(self._peer, sock=made))
        else:
            host, _, port = self._address.rpartition(":")
            self._servers.append(await loop.create_server(self._peer, host.strip("[]"), int(port)))
        if self._also is not None:
            self._servers.append(await loop.create_unix_server(self._peer, sock=self._also))

    async def set_serving(self, serving: bool) -> None:
        """Answer health checks with SERVING or NOT_SERVING."""
        self.serving = serving
        for peer in list(self._peers):
            peer.tell_watchers()

    async def stop(self, grace_s: float) -> None:
        """Refuse new streams, let open ones end within the grace, then close."""
        for server in self._servers:
            server.close()
        for peer in list(self._peers):
            peer.refuse_new()
        self._stopping = True
        deadline = asyncio.get_running_loop().time() + grace_s
        await asyncio.sleep(min(grace_s, LAST_LOGS_S))
        self.quiet()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._idle.wait()
        for peer in list(self._peers):
            peer.finish()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3 * PARTING_S):
                await self._alone.wait()

    # What the connections report.

    def joined(self, peer: Peer) -> None:
        """Count a connection in."""
        self._peers.add(peer)
        self._alone.clear()

    def left(self, peer: Peer) -> None:
        """Count a connection out."""
        self._peers.discard(peer)
        self.quiet()
        if not self._peers:
            self._alone.set()

    def exchanges(self, change: int) -> None:
        """Count the open ext_proc streams."""
        self._exchanges += change
        if self._stopping:
            self.quiet()

    def quiet(self) -> None:
        """Note whether anything is under way: an open exchange, a reply that waits for a window."""
        if self._exchanges or any(peer.queued for peer in self._peers):
            self._idle.clear()
        else:
            self._idle.set()

    def log_streams_changed(self, change: int) -> None:
        """Count the open access-log streams."""
        self._log_streams += change
        self._attached = True

    def _peer(self) -> Peer:
        return Peer(self, self._clock)
