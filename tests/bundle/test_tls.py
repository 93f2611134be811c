"""HTTPS on both sides, with HTTP/2 and credentials towards the provider."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded

from .harness import rejected, running, until
from .scripted import plan


@dataclass
class Authority:
    """A certificate authority made for one test."""

    directory: Path
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def __post_init__(self) -> None:
        """Write the authority's own certificate."""
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        made = self._builder(self.name, self.key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.file = self.directory / "ca.pem"
        self.file.write_bytes(_pem(made.sign(self.key, hashes.SHA256())))

    def issue(self, name: str, *hosts: x509.GeneralName) -> tuple[Path, Path]:
        """Write a server certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._builder(subject, key).add_extension(
            x509.SubjectAlternativeName(hosts), critical=False
        )
        chain, secret = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        chain.write_bytes(_pem(made.sign(self.key, hashes.SHA256())))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return chain, secret

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@dataclass
class H2Provider:
    """A provider that speaks HTTP/2 over TLS; `answers` sends on one stream and ends it."""

    answers: Callable[[H2Connection, int], None]
    seen: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        connection = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                for event in connection.receive_data(data):
                    if isinstance(event, RequestReceived):
                        self.seen.append(dict(event.headers))  # type: ignore[arg-type]
                    elif isinstance(event, DataReceived):
                        connection.acknowledge_received_data(
                            event.flow_controlled_length, event.stream_id
                        )
                    elif isinstance(event, StreamEnded):
                        self.answers(connection, event.stream_id)
                writer.write(connection.data_to_send())
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def https_provider(authority: Authority, provider: H2Provider) -> AsyncIterator[None]:
    """Serve on 127.0.0.1 as `localhost`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("provider", x509.DNSName("localhost")))
    context.set_alpn_protocols(["h2"])
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0, ssl=context)
    provider.port = server.sockets[0].getsockname()[1]
    yield
    server.close()


def streaming(chunks: list[bytes], end: str) -> Callable[[H2Connection, int], None]:
    """Send chunks and end with the last, with an empty frame, or with trailers."""

    def answer(connection: H2Connection, number: int) -> None:
        head = [(":status", "200"), ("content-type", "text/event-stream")]
        connection.send_headers(number, head)
        for chunk in chunks[:-1]:
            connection.send_data(number, chunk)
        connection.send_data(number, chunks[-1], end_stream=end == "last")
        if end == "empty":
            connection.send_data(number, b"", end_stream=True)
        elif end == "trailers":
            connection.send_headers(number, [("x-trailer", "1")], end_stream=True)

    return answer


USAGE_EVENT = b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'


@pytest.mark.parametrize("end", ["last", "empty", "trailers"])
async def test_https_to_the_provider_with_the_operators_key(tmp_path: Path, end: str) -> None:
    """Verified by name, over HTTP/2, with the key of an environment variable."""
    content, done = b'data: {"choices":[{"a":1}]}\n\n', b"data: [DONE]\n\n"
    chunks = [content[:9], content[9:] + USAGE_EVENT[:30], USAGE_EVENT[30:] + done]
    authority, provider = Authority(tmp_path), H2Provider(streaming(chunks, end))
    async with https_provider(authority, provider):
        configured = {
            "dialect": "openai",
            "endpoint": f"https://localhost:{provider.port}/base/v1",
            "ca_file": str(authority.file),
            "api_key": {"env": "UPSTREAM_KEY"},
        }
        async with running(
            tmp_path, names=(), providers={"s": configured}, env={"UPSTREAM_KEY": "sk-operator"}
        ) as gateway:
            assert await rejected(gateway) == []
            gateway.processor.plans = lambda body: plan(("s", "m"), body=body, strip_usage=True)
            answer = await gateway.chat(authorization="Bearer sk-caller")
            assert answer.content == content + done
            probe = await gateway.seen(answer.headers["x-request-id"])
            assert probe["done"] == 1
            assert probe["usage"] == '"usage":{"prompt_tokens":1}'
            head = provider.seen[0]
            assert head["authorization"] == "Bearer sk-operator"
            assert head[":authority"] == f"localhost:{provider.port}"
            assert head[":path"] == "/base/v1/chat/completions"
            assert head[":scheme"] == "https"


async def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    """No byte of the request goes to a server that is not who it should be."""
    authority, provider = Authority(tmp_path), H2Provider(streaming([b"x"], "last"))
    async with https_provider(authority, provider):
        configured = {
            "dialect": "openai",
            "endpoint": f"https://127.0.0.1:{provider.port}/v1",
            "ca_file": str(authority.file),
        }
        async with running(tmp_path, names=(), providers={"s": configured}) as gateway:
            gateway.processor.plans = lambda body: plan(("s", "m"), body=body)
            answer = await gateway.chat()
            assert answer.status_code == 502
            assert answer.json()["error"]["code"] == "upstream_error"
            assert provider.seen == []


@pytest.mark.parametrize("ending", ["", "\n"], ids=["bare", "with a line end"])
async def test_a_key_in_a_file_is_used_and_taken_up_when_it_changes(
    tmp_path: Path, ending: str
) -> None:
    """Rotating an operator's key is replacing a file."""
    key = tmp_path / "keys" / "a"
    key.parent.mkdir()
    key.write_text("sk-first" + ending)
    provider: dict[str, Any] = {"api_key": {"file": str(key)}}
    async with running(tmp_path, extra={"a": provider}) as gateway:
        seen = gateway.providers["a"].seen

        async def sent() -> str:
            await gateway.chat()
            return seen[-1].headers["authorization"]

        assert await sent() == "Bearer sk-first"
        fresh = key.with_name("new")
        fresh.write_text("sk-second" + ending)
        fresh.replace(key)

        async def changed() -> bool:
            return await sent() == "Bearer sk-second"

        await until("the new key", changed)


async def test_a_missing_key_is_the_operators_fault_not_the_callers(tmp_path: Path) -> None:
    """A variable that is not set: nothing is sent without a key, and the caller's is not blamed."""
    provider: dict[str, Any] = {"api_key": {"env": "LLM_EDGE_TEST_UNSET"}}
    async with running(tmp_path, extra={"a": provider}) as gateway:
        answer = await gateway.chat(authorization="Bearer sk-caller")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "no_healthy_provider"
        assert gateway.providers["a"].seen == []
        assert await rejected(gateway) == [
            "sds.a+anthropic.update_rejected: 1",
            "sds.a.update_rejected: 1",
        ]


async def test_https_for_callers(tmp_path: Path) -> None:
    """HTTP/2 and HTTP/1.1 on one port, the certificate by file."""
    authority = Authority(tmp_path)
    host = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    chain, key = authority.issue("gateway", host)
    server = {"tls": {"cert_file": str(chain), "key_file": str(key)}}
    async with running(tmp_path, server=server) as gateway:
        assert await rejected(gateway) == []
        for protocol, line in (("h2", None), ("http/1.1", b"HTTP/1.1 200 OK")):
            context = ssl.create_default_context(cafile=str(authority.file))
            context.set_alpn_protocols([protocol])
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, ssl=context)
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == protocol
            if line is not None:
                writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                answer = await reader.read()
                assert answer.startswith(line)
                assert json.loads(answer.rpartition(b"\r\n\r\n")[2]) == {"status": "ok"}
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
