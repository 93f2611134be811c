"""The scripted processor and the scripted providers around Envoy.

Knows: gRPC, raw HTTP/1.1 and the processor's contract. Must not know: what a test asserts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from extproc.pb import als_pb2, ext_proc_pb2
from extproc.wire.headers import read_pairs

OVERWRITE = 2  # HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


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
    answer: Answer = field(default_factory=lambda: http_answer(200, b"{}"))
    answers: list[Answer] = field(default_factory=list)  # used up first
    serving: set[asyncio.Task[None]] = field(default_factory=set)
    server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen on a port of the kernel's choice."""
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=2**26)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close every connection, answered or not."""
        assert self.server is not None
        self.server.close()
        for task in self.serving:
            task.cancel()
        await asyncio.gather(*self.serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer_all(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                request = await read_request(reader)
                self.seen.append(request)
                answer = self.answers.pop(0) if self.answers else self.answer
                await answer(request, writer)
                await writer.drain()


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
    """Return the metadata the processor writes for (provider, model) attempts, by namespace."""
    groups = [
        {"name": f"attempt-{n}", "clusters": [{"cluster_name": name, "weight": 1}]}
        for n, (name, _) in enumerate(attempts, 1)
    ]
    call = {"record": "r", "suffix": "/chat/completions", **more}
    written = {"llm": {"priority_groups": groups}, "llm.call": call}
    models = [model for _, model in attempts]
    if len(set(models)) == 1:
        written["llm.served"] = {"model": models[0]}
    else:
        start = body.find(b'"' + models[0].encode() + b'"')
        stop = start + len(models[0]) + 2
        call |= {"models": models, "model_start": start, "model_stop": stop}
    return written


@dataclass
class Processor:
    """The scripted processor. `plans` gives the metadata for a body, `denies` an early answer."""

    plans: Callable[[bytes], dict[str, Any]] = lambda body: plan(("a", "m"), body=body)
    denies: Callable[[dict[str, str]], Any] = lambda _headers: None
    timeout_ms: int = 10_000
    first_byte_ms: int | None = None
    retries: int | None = None  # one less than there are groups
    heads: list[dict[str, str]] = field(default_factory=list)
    bodies: list[int] = field(default_factory=list)
    entries: list[Any] = field(default_factory=list)
    server: Any = None

    async def start(self, address: str) -> int:
        """Serve on a gRPC address; returns the port of a TCP one."""
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
        port: int = self.server.add_insecure_port(address)
        await self.server.start()
        return port

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
            head = dict(read_pairs(request.request_headers.headers))
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
        groups = len(metadata["llm"]["priority_groups"])
        retries = groups - 1 if self.retries is None else self.retries
        _set(common.header_mutation, "x-envoy-max-retries", str(retries))
        _set(common.header_mutation, "x-envoy-upstream-rq-timeout-ms", str(self.timeout_ms))
        if self.first_byte_ms is not None:
            limit = "x-envoy-upstream-rq-per-try-timeout-ms"
            _set(common.header_mutation, limit, str(self.first_byte_ms))
        reply.dynamic_metadata.update(metadata)
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
