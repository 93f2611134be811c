"""One real Envoy on a rendered bundle, with a scripted processor and scripted providers.

Knows: processes and sockets. Must not know: what a test asserts. Everything but Envoy runs on the
test's own loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from extproc.bundle.render import write
from extproc.checks import envoy_binary
from extproc.config import load
from extproc.schema import Config

from .scripted import Processor, Provider

PATIENCE_S = 20.0
POLL_S = 0.02
TAIL_BYTES = 8000
CHAT = "/v1/chat/completions"


@dataclass
class Gateway:
    """A running Envoy with its processor and providers."""

    directory: Path
    process: asyncio.subprocess.Process
    processor: Processor
    providers: dict[str, Provider]
    port: int = 0

    async def admin(self, target: str) -> str:
        """Ask Envoy's admin socket."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.directory / "envoy-admin.sock"))
        async with httpx.AsyncClient(transport=transport) as client:
            return (await client.get(f"http://envoy{target}", timeout=PATIENCE_S)).text

    def client(self, **words: Any) -> httpx.AsyncClient:
        """Return an HTTP client of the gateway."""
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE_S, **words
        )

    async def chat(self, body: bytes = b'{"model":"m"}', **headers: str) -> httpx.Response:
        """Send one chat completion."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client() as client:
            return await client.post(CHAT, content=body, headers=fields)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes and return all that comes back until Envoy closes.

        After an answer whose length is told the client ends too: Envoy waits a second for that.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        try:
            async with asyncio.timeout(PATIENCE_S):
                try:
                    answer = await reader.readuntil(b"\r\n\r\n")
                    if length := re.search(rb"\r\ncontent-length: (\d+)\r\n", answer):
                        answer += await reader.readexactly(int(length[1]))
                        writer.write_eof()
                    return answer + await reader.read()
                except asyncio.IncompleteReadError as error:
                    return (b"" if error.expected is None else answer) + error.partial
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def entry(self, request_id: str) -> Any:
        """Return the access-log entry of a request."""

        def found() -> list[Any]:
            return [
                one
                for one in self.processor.entries
                if one.request.request_id == request_id and not one.request.request_headers
            ]

        return (await until("an access-log entry", found))[0]

    async def metadata(self, request_id: str, namespace: str) -> dict[str, Any]:
        """Return one namespace of the dynamic metadata that a request was logged with."""
        entry = await self.entry(request_id)
        fields = entry.common_properties.metadata.filter_metadata
        return MessageToDict(Struct.FromString(fields.get(namespace, b"")))

    async def seen(self, request_id: str) -> dict[str, Any]:
        """Return what the probe told of an answer, without what it did not."""
        told = (await self.metadata(request_id, "llm.stream")).get("seen")
        if told is None:
            return {}
        first, events, in_bytes, done, usage = told.split(" ", 4)
        numbers = {"events": int(events), "bytes": int(in_bytes), "done": int(done)}
        found: dict[str, Any] = {name: number for name, number in numbers.items() if number}
        if first != "-":
            found["ttfc_ms"] = int(first)
        return {**found, "usage": usage} if usage else found

    def log(self) -> str:
        """Return the end of Envoy's log."""
        return (self.directory / "envoy.log").read_bytes()[-TAIL_BYTES:].decode(errors="replace")


async def until(what: str, probe: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """Poll until the probe, plain or a coroutine function, gives something true."""
    deadline = time.monotonic() + patience_s
    while True:
        found = probe()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s for {what}"
        await asyncio.sleep(POLL_S)  # the pace of a poll


def configured(directory: Path, written: Mapping[str, Any]) -> Config:
    """Load a configuration as an operator's file."""
    file = directory / "llm-edge.yaml"
    file.write_text(yaml.safe_dump(dict(written)))
    return load([file], {})


@contextlib.asynccontextmanager
async def running(
    directory: Path,
    *,
    names: Sequence[str] = ("a",),
    server: Mapping[str, Any] | None = None,
    providers: Mapping[str, Mapping[str, Any]] | None = None,
    env: Mapping[str, str] | None = None,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
    processor: Processor | None = None,
) -> AsyncIterator[Gateway]:
    """Start scripted providers, the scripted processor and Envoy; stop them all at the end.

    `providers` are others than the scripted ones, `extra` is more about those. A `processor` that
    is given is running already.
    """
    scripted = {name: Provider() for name in names}
    for provider in scripted.values():
        await provider.start()
    written = {
        name: {
            "dialect": "openai",
            "endpoint": f"http://127.0.0.1:{one.port}/v1",
            **(extra or {}).get(name, {}),
        }
        for name, one in scripted.items()
    }
    targets = [{"provider": name, "model": "m"} for name in written]
    config = configured(
        directory,
        {
            "server": {"port": 0, **(server or {})},
            "providers": {**written, **(providers or {})},
            "models": {"m": {"targets": targets}} if targets else {},
        },
    )
    write(config, directory)
    if processor is None:
        processor = Processor()
        await processor.start(f"unix:{directory / 'extproc.sock'}")
    with (directory / "envoy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(str(envoy_binary()), "-c", "bootstrap.yaml", "--concurrency", "1"),
            *("--use-dynamic-base-id", "--disable-hot-restart", "-l", "warning"),
            cwd=directory,
            env={**os.environ, **(env or {})},
            stdout=log,
            stderr=log,
        )
    gateway = Gateway(directory, process, processor, scripted)
    try:
        await until("Envoy's listener", lambda: _listening(gateway))
        yield gateway
    except BaseException:
        print(gateway.log())
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), PATIENCE_S)
        except TimeoutError:
            process.kill()
            await process.wait()
        await processor.stop()
        for provider in scripted.values():
            await provider.stop()


async def _listening(gateway: Gateway) -> bool:
    assert gateway.process.returncode is None, f"Envoy ended\n{gateway.log()}"
    try:
        if (await gateway.admin("/ready")).strip() != "LIVE":
            return False
        statuses = json.loads(await gateway.admin("/listeners?format=json"))
    except (httpx.TransportError, json.JSONDecodeError):
        return False
    for one in statuses.get("listener_statuses", []):
        gateway.port = one["local_address"]["socket_address"]["port_value"]
        return True
    return False


async def rejected(gateway: Gateway) -> list[str]:
    """Name the discovery services whose files Envoy refused."""
    stats = await gateway.admin("/stats?filter=update_rejected")
    return [line for line in stats.splitlines() if not line.endswith(": 0")]
