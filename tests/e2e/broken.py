"""A provider that is broken below HTTP, or says 429 as the real ones do: a thread with a socket.

Knows: TCP and the ways to fail. Must not know: what a test asserts.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from datetime import UTC, datetime, timedelta
from typing import Self

LINGER_NONE = struct.pack("ii", 1, 0)  # closing sends a reset
LIMITED = (
    b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\ncontent-type: application/json\r\n"
    b"%b\r\n{}"
)
OPENAIS = (
    b"x-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-requests: 1m0s\r\n"
    b"x-ratelimit-remaining-tokens: 900\r\nx-ratelimit-reset-tokens: 10ms\r\n"
)
ANTHROPICS = (
    b"anthropic-ratelimit-requests-remaining: 49\r\n"
    b"anthropic-ratelimit-requests-reset: %(soon)b\r\n"
    b"anthropic-ratelimit-output-tokens-remaining: 0\r\n"
    b"anthropic-ratelimit-output-tokens-reset: %(later)b\r\n"
)


class Broken:
    """Accepts, reads a little, and fails in its way; `count` is how often, `seen` what it read."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.seen: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def count(self) -> int:
        """Return how often it was asked."""
        return len(self.seen)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._server.accept()
            except OSError:
                return
            with peer, contextlib.suppress(ConnectionError):
                self.seen.append(peer.recv(65536))
                if self.how == "reset":
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
                elif self.how == "garbage":
                    peer.sendall(b"this is neither HTTP nor TLS\r\n\r\n")
                elif self.how == "limited":
                    peer.sendall(LIMITED % OPENAIS)
                elif self.how == "limited-claude":
                    told = {b"soon": _moment(1), b"later": _moment(60)}
                    peer.sendall(LIMITED % (ANTHROPICS % told))


def _moment(seconds: float) -> bytes:
    """Return the moment so far from now by RFC 3339."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
