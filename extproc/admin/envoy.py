"""Ask Envoy's admin interface, on its Unix socket, how Envoy is.

Knows: the socket, Envoy's admin interface, the names of the bundle. Must not know: who asks, how
the bundle is made. Sources: Envoy's "Administration interface" (`/ready`, `/listeners`,
`/clusters`), which lists a listener or cluster only once it is warm.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import msgspec

from extproc.admin.local_http import ask
from extproc.schema import PROCESSOR_NAME

LISTENER: Final = "gateway"
TIMEOUT_S: Final = 1.0  # a probe's default; Envoy answers in a millisecond
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024  # a cluster is about 2 KB for each of its hosts
_OK: Final = 200


async def admin_request(socket_path: Path, method: str, target: str) -> str:
    """Send one request to Envoy's admin interface and return the body of a 200.

    Bounded by TIMEOUT_S and MAX_ANSWER_BYTES. Raises OSError for everything that goes wrong:
    FileNotFoundError without a socket, TimeoutError, ConnectionError for an answer that is not
    HTTP, too large, or of another status.
    """
    answer = await ask(socket_path, method, target, timeout_s=TIMEOUT_S, max_bytes=MAX_ANSWER_BYTES)
    text = answer.body.decode(errors="replace")
    if answer.status != _OK:
        raise ConnectionError(f"{method} {target}: {answer.status} {text[:100].strip()}")
    return text


async def envoy_config_status(
    socket_path: Path, providers: Collection[str] = (), *, required: bool = True
) -> tuple[bool, str]:
    """Say whether Envoy is live with the gateway's listener and clusters warm, and what is missing.

    `providers` are the clusters the current configuration needs beside the processor's. Without a
    socket the answer is False, or True where Envoy is not `required` to be on this machine.
    """
    try:
        await admin_request(socket_path, "GET", "/ready")
        listeners = await _names(socket_path, "/listeners?format=json", "listener_statuses")
        clusters = await _names(socket_path, "/clusters?format=json", "cluster_statuses")
    except FileNotFoundError:
        return (False, f"no admin socket at {socket_path}") if required else (True, "not here")
    except TimeoutError:
        return False, f"no answer within {TIMEOUT_S:g} s"
    except OSError as error:
        return False, str(error)
    missing = [f"listener {LISTENER}"] if LISTENER not in listeners else []
    needed = [PROCESSOR_NAME, *sorted(providers)]
    missing += [f"cluster {name}" for name in needed if name not in clusters]
    if missing:
        return False, f"not warm: {', '.join(missing)}"
    return True, f"live, {LISTENER} and {len(needed)} clusters warm"


async def _names(socket_path: Path, target: str, member: str) -> set[str]:
    text = await admin_request(socket_path, "GET", target)
    try:
        answer: Any = msgspec.json.decode(text)
        return {entry["name"] for entry in answer.get(member, ())}
    except (msgspec.MsgspecError, AttributeError, LookupError, TypeError):
        raise ConnectionError(f"GET {target}: not the JSON it should be") from None
