"""A real Redis for the tests of stores, emptied before each of them, and every ledger in turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.ledgers import Bench, MemoryBench, RedisBench, on_the_tests_clock, without_waiting
from tests.redis_server import RedisServer


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """Start Redis once."""
    server = RedisServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """Return the shared Redis with nothing in it."""
    shared_redis.client.flushall()
    return shared_redis


@pytest.fixture(params=["memory", "redis"])
async def bench(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    """Return each ledger in turn."""
    made: Bench
    if request.param == "memory":
        made = MemoryBench()
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        on_the_tests_clock(monkeypatch)
        made = RedisBench(server)
    await made.start()
    yield made
    await made.stop()
    assert made.errors.failures == []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse at once what would wait for a slot."""
    without_waiting(monkeypatch)


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """Start a Redis that a test may break."""
    server = RedisServer()
    server.start()
    yield server
    if server.process is not None and server.process.poll() is None:
        server.resume()
    server.stop()
