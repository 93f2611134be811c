"""2,000 mixed requests: the ledger against the providers' own truth."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from decimal import Decimal
from typing import Any

import httpx

from .stack import Stack

REQUESTS = 2000
PARALLEL = 48
KINDS = ("plain", "streamed", "streamed_with_usage", "aborted", "provider_error", "failover")


def request_of(
    kind: str, number: int, draw: random.Random
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the body and the headers that tell the provider how to behave."""
    tokens = draw.randint(1, 60)
    payload: dict[str, Any] = {
        "model": "failover" if kind == "failover" else "gpt-4o-mini",
        "messages": [{"role": "user", "content": "word " * draw.randint(1, 200)}],
    }
    headers = {"x-request-id": f"mixed-{number}", "x-sim-output-tokens": str(tokens)}
    if kind in {"streamed", "streamed_with_usage", "aborted"} or (
        kind == "failover" and tokens % 2
    ):
        payload["stream"] = True
    if kind == "streamed_with_usage":
        payload["stream_options"] = {"include_usage": True}
    if kind == "aborted":
        headers |= {"x-sim-output-tokens": "400", "x-sim-chunk-ms": "5"}
    if kind == "provider_error":
        headers["x-sim-status"] = str(draw.choice([400, 403, 404, 422, 429, 500, 503]))
    return payload, headers


async def play(client: httpx.AsyncClient, kind: str, number: int, draw: random.Random) -> int:
    """Send one request; an aborted one is left at a random chunk."""
    payload, headers = request_of(kind, number, draw)
    leave_at = draw.randint(0, 30) if kind == "aborted" else None
    async with client.stream(
        "POST", "/v1/chat/completions", json=payload, headers=headers
    ) as answer:
        seen = 0
        async for _ in answer.aiter_raw():
            seen += 1
            if leave_at is not None and seen > leave_at:
                break
        return answer.status_code


async def play_all(stack: Stack, key: str, kinds: list[str]) -> list[int]:
    gate = asyncio.Semaphore(PARALLEL)

    async def one(client: httpx.AsyncClient, number: int, kind: str) -> int:
        async with gate:
            return await play(client, kind, number, random.Random(number))

    limits = httpx.Limits(max_connections=PARALLEL)
    async with httpx.AsyncClient(
        base_url=stack.base,
        headers={"authorization": f"Bearer {key}"},
        limits=limits,
        timeout=60,
    ) as client:
        return await asyncio.gather(*(one(client, n, kind) for n, kind in enumerate(kinds)))


async def test_ledger_equals_the_providers_truth(stack: Stack) -> None:
    """Finished calls agree to the token, aborted ones are there once and marked, nothing is lost."""
    key = stack.create_key("mixed")
    stack.behave("b", status=503)
    draw = random.Random(20260101)
    kinds = [draw.choice(KINDS) for _ in range(REQUESTS)]
    statuses = await play_all(stack, key, kinds)

    rows = stack.rows_for("mixed", REQUESTS, patience_s=60)
    by_request = Counter(row["request_id"] for row in rows)
    assert len(rows) == REQUESTS
    assert set(by_request.values()) == {1}
    truth = {r["request_id"]: r for r in stack.sim_log("a")}
    settled, true = Counter[str](), Counter[str]()
    for row in rows:
        number = int(row["request_id"].removeprefix("mixed-"))
        kind, told = kinds[number], truth[row["request_id"]]
        assert row["status"] == statuses[number], (kind, row)
        if kind == "provider_error":
            assert row["ended"] == "failed", row
            assert (row["input"], row["output"], row["cost_pico_usd"]) == (0, 0, 0)
        elif told["finished"] and row["ended"] == "finished":
            assert row["usage_source"] == "provider", (kind, row)
            assert row["input"] == told["prompt_tokens"], (kind, row, told)
            assert row["output"] == told["output_tokens_sent"], (kind, row, told)
            cost = told["prompt_tokens"] * 150_000 + told["output_tokens_sent"] * 600_000
            assert row["cost_pico_usd"] == cost
            settled += Counter(input=row["input"], output=row["output"], pico=row["cost_pico_usd"])
            true += Counter(
                input=told["prompt_tokens"], output=told["output_tokens_sent"], pico=cost
            )
        else:
            assert kind == "aborted", (kind, row, told)
            assert row["ended"] == "partial", row
            assert row["usage_source"] == "partial", row
        assert row["attempts"] == (2 if kind == "failover" else 1), (kind, row)
    assert settled == true
    assert all(true[unit] > 0 for unit in ("input", "output", "pico"))
    aborted = [row for row in rows if row["ended"] == "partial"]
    assert len(aborted) == kinds.count("aborted")


def test_usage_command_prints_the_same_totals(stack: Stack) -> None:
    """`llm-edge usage` sums what the ledger holds, in exact dollars."""
    key = stack.create_key("reported")
    for _ in range(3):
        httpx.post(
            f"{stack.base}/v1/chat/completions",
            json={"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x"}]},
            headers={"authorization": f"Bearer {key}", "x-sim-output-tokens": "100"},
        ).raise_for_status()
    rows = stack.rows_for("reported", 3)
    printed = stack.command("usage", "--by", "tenant")
    line = next(line for line in printed.splitlines() if "reported" in line)
    assert " 300 " in line
    usd = sum(row["cost_pico_usd"] for row in rows)
    assert Decimal(line.split()[7]) == Decimal(usd) / 10**12


def test_one_request_id_twice_is_two_calls(stack: Stack) -> None:
    """Because the ledger counts by its own id, a client cannot hide calls behind one of its ids."""
    key = stack.create_key("repeats")
    for _ in range(2):
        httpx.post(
            f"{stack.base}/v1/chat/completions",
            json={"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x"}]},
            headers={"authorization": f"Bearer {key}", "x-request-id": "same"},
        ).raise_for_status()
    rows = stack.rows_for("repeats", 2)
    assert [row["request_id"] for row in rows] == ["same", "same"]
