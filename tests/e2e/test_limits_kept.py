"""Limits on the real Envoy that outlive a processor, and that two gateways share."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.redis_server import RedisServer

from .stack import Stack, wait_for
from .test_limits import CHAT, GOOD, all_at_once, key_of


async def test_killed_it_forgets_nothing(fresh_stack: Callable[..., Stack]) -> None:
    """`kill -9` again and again during load: nothing is let in twice."""

    def change(config: dict[str, Any]) -> None:
        config["tiers"] = {"counted": {"requests_per_day": 60, "concurrent_requests": 50}}

    stack = fresh_stack(change=change)
    headers = key_of(stack, "killed", "counted")
    admitted = 0
    async with httpx.AsyncClient(base_url=stack.base, headers=headers, timeout=30) as client:
        for _ in range(2):
            load = [asyncio.create_task(client.post(CHAT, json=GOOD)) for _ in range(15)]
            await asyncio.wait(load, return_when=asyncio.FIRST_COMPLETED)
            stack.processor.signal(signal.SIGKILL)
            await asyncio.to_thread(stack.processor.wait)
            stack.processor.start()
            answers = await asyncio.gather(*load)
            admitted += sum(answer.status_code == 200 for answer in answers)
            assert {answer.status_code for answer in answers} <= {200, 503}
            await asyncio.to_thread(stack.wait_ready)
        assert len(stack.sim_log("a")) >= admitted > 0
        statuses: list[int] = []
        while len(statuses) < 60 and 429 not in statuses:
            statuses.append((await client.post(CHAT, json=GOOD)).status_code)
        assert set(statuses) == {200, 429}
        assert admitted + statuses.count(200) <= 60
        assert len(stack.sim_log("a")) <= 60


@pytest.fixture
def shared_redis() -> Iterator[RedisServer]:
    """Start a Redis for gateways to share."""
    server = RedisServer()
    server.start()
    yield server
    server.stop()


async def test_two_gateways_on_one_redis_are_one_limit(
    fresh_stack: Callable[..., Stack], shared_redis: RedisServer
) -> None:
    """Each has an Envoy and a processor of its own; together they let in what one would."""

    def change(config: dict[str, Any]) -> None:
        config["state"] |= {"store": "redis", "redis": {"url": shared_redis.url, "replicas": 2}}
        config["auth"] = {"anonymous_tier": "shared"}
        config["tiers"] = {"shared": {"requests_per_day": 11, "tokens_per_day": 100_000}}

    both = [fresh_stack(change=change) for _ in range(2)]
    halves = await asyncio.gather(
        *(all_at_once(stack, {}, 20, stream=bool(n)) for n, stack in enumerate(both))
    )
    statuses = sorted(status for half in halves for status in half)
    assert statuses == [200] * 11 + [429] * 29

    def settled() -> bool:
        used = shared_redis.client.hget("{llm-edge}:a:key:anonymous", "u2")
        return int(used) == sum(
            row["prompt_tokens"] + row["output_tokens_sent"]
            for stack in both
            for row in stack.sim_log("a")
        )

    wait_for("both to settle the truth", settled)
    assert shared_redis.client.keys("{llm-edge}:r:*") == []
