"""Ask Envoy's admin interface, on its Unix socket, how Envoy is.

Knows: the socket, HTTP/1.1 as Envoy's admin speaks it, the names of the bundle. Must not know: who
asks, how the bundle is made. Sources: Envoy's "Administration interface" (`/ready`, `/listeners`,
`/clusters`), which lists a listener or cluster only once it is warm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import h11
import msgspec

from extproc.schema import PROCESSOR_NAME

LISTENER: Final = "gateway"
TIMEOUT_S: Final = 1.0  # a probe's default; Envoy answers in a millisecond
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024  # a cluster is about 2 KB for each of its hosts
_CHUNK_BYTES: Final = 65_536
_OK: Final = 200


async def admin_request(socket_path: Path, method: str, target: str) -> str:
    """Send one request to Envoy's admin interface and return the body of a 200.

    Bounded by TIMEOUT_S and MAX_ANSWER_BYTES. Raises OSError for everything that goes wrong:
    FileNotFoundError without a socket, TimeoutError, ConnectionError for an answer that is not
    HTTP, too large, or of another status.
    """
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await asyncio.open_unix_connection(socket_path)
        try:
            status, body = await _exchange(reader, writer, method, target)
        finally:
            writer.close()
    text = body.decode(errors="replace")
    if status != _OK:
        raise ConnectionError(f"{method} {target}: {status} {text[:100].strip()}")
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


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, target: str
) -> tuple[int, bytes]:
    connection = h11.Connection(h11.CLIENT)
    # Because the admin interface answers HTTP/1.0 with 426, the body may come chunked.
    headers = [("host", "envoy"), ("connection", "close"), ("content-length", "0")]
    request = h11.Request(method=method, target=target, headers=headers)
    writer.write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    status, body = 0, bytearray()
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(_CHUNK_BYTES))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_ANSWER_BYTES:
                    raise ConnectionError(
                        f"{method} {target}: answer over {MAX_ANSWER_BYTES} bytes"
                    )
            elif isinstance(event, h11.EndOfMessage):
                return status, bytes(body)
    except h11.RemoteProtocolError as error:
        raise ConnectionError(f"{method} {target}: {error}") from None


async def _names(socket_path: Path, target: str, member: str) -> set[str]:
    text = await admin_request(socket_path, "GET", target)
    try:
        answer: Any = msgspec.json.decode(text)
        return {entry["name"] for entry in answer.get(member, ())}
    except (msgspec.MsgspecError, AttributeError, LookupError, TypeError):
        raise ConnectionError(f"GET {target}: not the JSON it should be") from None
