"""Addresses of a processor: `unix:PATH` or `host:port`. Pure.

Knows: which of them stay on this machine. Must not know: sockets or who listens.
"""

from __future__ import annotations

import ipaddress
from typing import Final

UNIX: Final = "unix:"


def is_local(address: str) -> bool:
    """Say whether nobody outside this machine can reach it: a Unix socket or loopback."""
    if address.startswith(UNIX):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
