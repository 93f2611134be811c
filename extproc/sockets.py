"""Unix sockets of ours: who may open the file is who may connect.

Knows: paths and their modes. Must not know: who listens, what is said.
"""

from __future__ import annotations

import socket
from pathlib import Path


def listening(path: Path) -> socket.socket:
    """Bind a socket that only this user may connect to. Raises OSError.

    It takes connections from its first listener on; what a killed process left there is removed.
    """
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(str(path))
        path.chmod(0o600)
    except OSError:
        made.close()
        raise
    return made
