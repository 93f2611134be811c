"""One real Envoy on a rendered bundle, with a scripted processor and scripted providers.

Knows: processes, sockets and raw HTTP/1.1. Must not know: what a test asserts. Everything runs on
the test's own loop but Envoy.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import yaml

from extproc.bundle.render import write
from extproc.checks import envoy_binary
from extproc.config import load
from extproc.domain import ENDPOINTS
from extproc.pb import als_pb2, ext_proc_pb2
from extproc.schema import Config

PATIENCE_S = 20.0
POLL_S = 0.02
TAIL_BYTES = 8000
OVERWRITE = 2  # HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
CHAT = "/v1/chat/completions"


@dataclass
class Request:
    """One request as a provider got it; header names lower-case, the last of a name wins."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


def http_answer(status: int, body: bytes, **headers: str) -> Answer:
    """Answer with a whole document."""

    async def answer(_request: Request, writer: asyncio.StreamWriter) -> None:
        fields = {"content-type": "application/json", "content-length": str(len(body))}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        writer.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + body)

    return answer


def stream_answer(pieces: Sequence[bytes], *, ends: bool = True, **headers: str) -> Answer:
    """Answer with an event stream, each piece a write of its own and a chunk of HTTP/1.1."""

    async def answer(_request: Request, writer: asyncio.StreamWriter) -> None:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = (
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
        )
        writer.write(f"{head}{lines}\r\n".encode())
        for piece in pieces:
            if piece:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
        if ends:
            writer.write(b"0\r\n\r\n")

    return answer


@dataclass
class Provider:
    """A scripted provider: `answer` for every request, everything received in `seen`."""

    port: int = 0
    seen: list[Request] = field(default_factory=list)
    answer: Answer = http_answer(200, b"{}")
    answers: list[Answer] = field(default_factory=list)  # used up first

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it closes or an answer closes it."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                request = await read_request(reader)
                self.seen.append(request)
                answer = self.answers.pop(0) if self.answers else self.answer
                await answer(request, writer)
                await writer.drain()
        writer.close()


async def read_request(reader: asyncio.StreamReader) -> Request:
    """Read one HTTP/1.1 request."""
    line, headers = _head(await reader.readuntil(b"\r\n\r\n"))
    method, path, _ = line.split(" ", 2)
    return Request(method, path, headers, await _body(reader, headers))


def _head(raw: bytes) -> tuple[str, dict[str, str]]:
    line, *fields = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (one.partition(":") for one in fields)
    return line, {name.lower(): value.strip() for name, _, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
        return body
    return await reader.readexactly(int(headers.get("content-length", "0")))


def plan(*attempts: tuple[str, str], body: bytes = b"", **more: Any) -> dict[str, Any]:
    """Return the metadata the processor writes for (provider, model) attempts."""
    span = body.find(b'"' + attempts[0][1].encode() + b'"') if attempts else -1
    return {
        "id": "id-1",
        "models": [model for _, model in attempts],
        "suffix": "/chat/completions",
        "endpoint": "chat",
        "model_start": span,
        "model_stop": span + len(attempts[0][1]) + 2,
        "priority_groups": [
            {"name": f"attempt-{n}", "clusters": [{"cluster_name": name, "weight": 1}]}
            for n, (name, _) in enumerate(attempts, 1)
        ],
        **more,
    }


@dataclass
class Processor:
    """The scripted processor. `plans` gives the metadata for a body, `denies` an early answer."""

    plans: Callable[[bytes], dict[str, Any]] = lambda body: plan(("a", "m"), body=body)
    denies: Callable[[dict[str, str]], Any] = lambda _headers: None
    timeout_ms: int = 10_000
    heads: list[dict[str, str]] = field(default_factory=list)
    bodies: list[int] = field(default_factory=list)
    entries: list[Any] = field(default_factory=list)
    server: Any = None

    async def start(self, address: str) -> None:
        """Serve on a gRPC address."""
        generic = grpc.method_handlers_generic_handler
        process = grpc.stream_stream_rpc_method_handler(self._process)
        entries = grpc.stream_unary_rpc_method_handler(self._entries)
        self.server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        self.server.add_generic_rpc_handlers(
            (
                generic("envoy.service.ext_proc.v3.ExternalProcessor", {"Process": process}),
                generic(
                    "envoy.service.accesslog.v3.AccessLogService", {"StreamAccessLogs": entries}
                ),
            )
        )
        self.server.add_insecure_port(address)
        await self.server.start()

    async def stop(self) -> None:
        """Vanish."""
        if self.server is not None:
            await self.server.stop(0)
            self.server = None

    async def _process(self, _request: Any, context: Any) -> None:
        while (raw := await context.read()) is not grpc.aio.EOF:
            request = ext_proc_pb2.ProcessingRequest.FromString(raw)
            reply = self._reply(request)
            await context.write(reply.SerializeToString())
            if reply.WhichOneof("response") != "request_headers":
                return

    def _reply(self, request: Any) -> Any:
        reply = ext_proc_pb2.ProcessingResponse()
        if request.WhichOneof("request") == "request_headers":
            pairs = request.request_headers.headers.headers
            head = {one.key: one.raw_value.decode() for one in pairs}
            self.heads.append(head)
            immediate = self.denies(head)
            if immediate is not None:
                reply.immediate_response.CopyFrom(immediate)
            else:
                reply.request_headers.SetInParent()
            return reply
        body = request.request_body.body
        self.bodies.append(len(body))
        metadata = self.plans(body)
        common = reply.request_body.response
        common.clear_route_cache = True
        attempts = len(metadata["priority_groups"])
        _set(common.header_mutation, "x-envoy-max-retries", str(attempts - 1))
        _set(common.header_mutation, "x-envoy-upstream-rq-timeout-ms", str(self.timeout_ms))
        reply.dynamic_metadata.update({"llm": metadata})
        return reply

    async def _entries(self, entries: AsyncIterator[bytes], _context: Any) -> bytes:
        async for raw in entries:
            message = als_pb2.StreamAccessLogsMessage.FromString(raw)
            self.entries.extend(message.http_logs.log_entry)
        return b""


def deny(status: int, body: bytes, details: str = "llm_edge", **headers: str) -> Any:
    """Return an ImmediateResponse."""
    immediate = ext_proc_pb2.ImmediateResponse(body=body, details=details)
    immediate.status.code = status
    for name, value in headers.items():
        _set(immediate.headers, name.replace("_", "-"), value)
    return immediate


def _set(mutation: Any, key: str, value: str) -> None:
    option = mutation.set_headers.add()
    option.append_action = OVERWRITE
    option.header.key, option.header.raw_value = key, value.encode()


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
        """Send bytes and return all that comes back until Envoy closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await reader.read()
        finally:
            writer.close()

    async def entry(self, count: int = 1) -> Any:
        """Return the access-log entry number `count`."""
        await until("an access-log entry", lambda: len(self.processor.entries) >= count)
        return self.processor.entries[count - 1]

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
    processor_address: str | None = None,
) -> AsyncIterator[Gateway]:
    """Start scripted providers, the scripted processor and Envoy; stop them all at the end."""
    scripted = {name: Provider() for name in names}
    servers = []
    for provider in scripted.values():
        serving = await asyncio.start_server(provider.serve, "127.0.0.1", 0, limit=2**26)
        provider.port = serving.sockets[0].getsockname()[1]
        servers.append(serving)
    written = {
        name: {"dialect": "openai", "endpoint": f"http://127.0.0.1:{one.port}/v1"}
        for name, one in scripted.items()
    }
    config = configured(
        directory,
        {
            "server": {"port": 0, **(server or {})},
            "providers": {**written, **(providers or {})},
        },
    )
    write(config, directory)
    processor = Processor()
    await processor.start(processor_address or f"unix:{directory / 'extproc.sock'}")
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
        for serving in servers:
            serving.close()


async def _listening(gateway: Gateway) -> bool:
    assert gateway.process.returncode is None, f"Envoy ended\n{gateway.log()}"
    try:
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


__all__ = ["CHAT", "ENDPOINTS", "Gateway", "Request", "deny", "plan", "running", "until"]
