"""One HTTP/1.1 exchange over a Unix socket: what Envoy's admin interface and our workers' speak.

Knows: the socket and HTTP/1.1 (h11). Must not know: who answers, what is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import h11

_CHUNK_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; header names in lower case."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


async def ask(
    socket_path: Path,
    method: str,
    target: str,
    *,
    timeout_s: float,
    max_bytes: int,
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: bytes = b"",
) -> Answer:
    """Send one request on a connection of its own and return the answer, whatever its status.

    `headers` without host, connection and length. Raises OSError for everything that goes wrong:
    FileNotFoundError and ConnectionRefusedError before anything was sent, TimeoutError,
    ConnectionError for an answer that is not HTTP or too large.
    """
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_unix_connection(socket_path)
        try:
            connection = h11.Connection(h11.CLIENT)
            ours = [
                (b"host", b"local"),
                (b"connection", b"close"),
                (b"content-length", b"%d" % len(body)),
            ]
            try:
                events = [
                    h11.Request(method=method, target=target, headers=[*headers, *ours]),
                    h11.Data(body),
                    h11.EndOfMessage(),
                ]
            except h11.LocalProtocolError:
                # Without its text, which quotes a header that may be a credential.
                raise ConnectionError("a request that HTTP/1.1 cannot carry") from None
            writer.write(b"".join(connection.send(event) or b"" for event in events))
            return await _answer(connection, reader, f"{method} {target}", max_bytes)
        finally:
            writer.close()


async def _answer(
    connection: h11.Connection, reader: asyncio.StreamReader, asked: str, max_bytes: int
) -> Answer:
    # Because Envoy's admin interface answers HTTP/1.0 with 426, the body may come chunked.
    status, body = 0, bytearray()
    headers: tuple[tuple[bytes, bytes], ...] = ()
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(_CHUNK_BYTES))
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = tuple((bytes(name), bytes(value)) for name, value in event.headers)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > max_bytes:
                    raise ConnectionError(f"{asked}: answer over {max_bytes} bytes")
            elif isinstance(event, h11.EndOfMessage):
                return Answer(status, headers, bytes(body))
    except h11.RemoteProtocolError as error:
        raise ConnectionError(f"{asked}: {error}") from None
