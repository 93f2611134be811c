"""What changes under a running Envoy: the processor, and the bundle itself."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from extproc.bundle.render import write

from .harness import Gateway, configured, rejected, running, until
from .scripted import Processor, Provider, Request, plan

SOCKET = "extproc.sock"
BACK_WITHIN_S = 2.0


async def restart(gateway: Gateway) -> None:
    """Start the processor again where it was."""
    (gateway.directory / SOCKET).unlink(missing_ok=True)
    await gateway.processor.start(f"unix:{gateway.directory / SOCKET}")


async def test_calls_wait_for_a_processor_that_restarts(tmp_path: Path) -> None:
    """What arrives while nobody listens is answered once somebody does, within two seconds."""
    async with running(tmp_path) as gateway:
        assert (await gateway.chat()).status_code == 200
        await gateway.processor.stop()
        calls = [asyncio.create_task(gateway.chat()) for _ in range(5)]

        async def trying() -> bool:
            stats = await gateway.admin("/stats?filter=processor.upstream_cx_connect_fail")
            return not stats.strip().endswith(": 0")

        await until("a refused connection", trying)
        started = time.monotonic()
        await restart(gateway)
        answers = await asyncio.gather(*calls)
        assert [answer.status_code for answer in answers] == [200] * 5
        assert time.monotonic() - started < BACK_WITHIN_S


async def test_a_processor_that_stays_away_is_a_503(tmp_path: Path) -> None:
    """After a bounded wait, with nothing sent to a provider."""
    async with running(tmp_path) as gateway:
        await gateway.processor.stop()
        answer = await gateway.chat()
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "gateway_unavailable"
        assert gateway.providers["a"].seen == []


async def test_streams_outlive_the_processor_and_their_bill_waits_for_it(tmp_path: Path) -> None:
    """The entry of a call that ends while the processor is away is not lost."""
    gate = asyncio.Event()

    async def slow(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
        writer.write(b"content-length: 2\r\n\r\n{")
        await writer.drain()
        await gate.wait()
        writer.write(b"}")

    async with running(tmp_path) as gateway:
        gateway.providers["a"].answer = slow
        call = asyncio.create_task(gateway.chat(x_request_id="outlives"))
        await until("the provider's request", lambda: gateway.providers["a"].seen)
        await gateway.processor.stop()
        gate.set()
        assert (await call).content == b"{}"

        async def logged() -> bool:
            stats = await gateway.admin("/stats?filter=grpc_access_log.grpc_entries_flushed")
            return stats.strip().endswith(": 1")

        await until("the log to be sent", logged)
        await restart(gateway)
        assert (await gateway.entry("outlives")).response.response_code.value == 200


async def test_a_new_bundle_is_taken_up_by_a_running_envoy(tmp_path: Path) -> None:
    """A provider added to the configuration is called without a restart, and one taken out not."""
    other = Provider()
    await other.start()
    try:
        async with running(tmp_path) as gateway:
            endpoint = f"http://127.0.0.1:{other.port}/v1"
            new = {
                "server": {"port": 0},
                "providers": {"new": {"dialect": "openai", "endpoint": endpoint}},
            }
            write(configured(tmp_path, new), tmp_path)

            async def known() -> bool:
                gateway.processor.plans = lambda body: plan(("new", "m"), body=body)
                return (await gateway.chat()).status_code == 200

            await until("the new provider", known)
            gateway.processor.plans = lambda body: plan(("a", "m"), body=body)

            async def gone() -> bool:
                return (await gateway.chat()).status_code == 503

            await until("the old provider to be gone", gone)
            assert await rejected(gateway) == []
    finally:
        await other.stop()


async def test_the_processor_may_be_elsewhere(tmp_path: Path) -> None:
    """Over TCP, by name."""
    elsewhere = Processor()
    port = await elsewhere.start("localhost:0")
    try:
        async with running(
            tmp_path, server={"processor_address": f"localhost:{port}"}, processor=elsewhere
        ) as gateway:
            assert await rejected(gateway) == []
            answer = await gateway.chat(x_request_id="far")
            assert answer.status_code == 200
            await gateway.entry("far")
    finally:
        await elsewhere.stop()


async def test_more_connections_than_configured_are_turned_away(tmp_path: Path) -> None:
    """The limit is the whole gateway's; the admin socket does not count."""
    async with running(tmp_path, server={"max_connections": 2}) as gateway:
        async with gateway.client() as one, gateway.client() as two:
            assert (await one.get("/healthz")).status_code == 200
            assert (await two.get("/healthz")).status_code == 200
            with pytest.raises(httpx.TransportError):
                async with gateway.client() as three:
                    await three.get("/healthz")
            assert (await gateway.admin("/ready")).strip() == "LIVE"
            assert (await two.get("/healthz")).status_code == 200
