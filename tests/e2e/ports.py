"""Ports for what a test starts. Knows: the kernel. Must not know: who listens where."""

from __future__ import annotations

import socket

_given: set[int] = set()
_held: list[socket.socket] = []  # until the tests are over


def free_port() -> int:
    """Ask the kernel for a port nobody has."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given:  # because the kernel may offer one again before it is bound
            _given.add(port)
            return port


def held_port() -> int:
    """Take a port for whoever listens on it later: bound here, so that the kernel gives it nobody.

    Linux lets another socket of this machine listen there that, as this one, may reuse addresses.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _held.append(held)
    port: int = held.getsockname()[1]
    return port
