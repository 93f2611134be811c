"""Two workers on one Redis behind one Envoy: what one process promises, both do together."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.redis_server import RedisServer

from .ports import free_port
from .stack import NAMED_TRANSPORT, Stack, start_stack, wait_for

# The configuration refuses it.
pytestmark = pytest.mark.skipif(NAMED_TRANSPORT == "grpcio", reason="workers speak over the lane")
CHAT = "/v1/chat/completions"
GOOD: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 20,
}
ADMIN = {"authorization": "Bearer of-the-admin"}
PROMISED_S = 1.0
FAILURES = 3
TOKENS = (
    40  # of a stream at 25 ms each: longer than it takes to kill a worker, shorter than its start
)
STREAMS = 16


def two(config: dict[str, Any], url: str) -> None:
    """Have two workers share a Redis, and tiers for each thing a test is about."""
    config["server"]["workers"] = 2
    config["admin"]["token"] = {"env": "ADMIN_TOKEN"}
    config["state"] |= {"store": "redis", "redis": {"url": url, "timeout_ms": 500}}
    config["breaker"] = {"failures": FAILURES, "open_min": "30s", "open_max": "30s"}
    config["tiers"] = {
        "daily": {"requests_per_day": 9},
        "bursty": {"requests_per_second": 0.001, "burst": 7},
        "single": {"concurrent_requests": 1},
        "counted": {"tokens_per_day": 10_000_000},
        "enterprise": dict.fromkeys(("requests_per_second", "burst", "concurrent_requests")),
        "cached": {},
    }
    # Of one tier alone, because what the other tests are about happens upstream.
    others = config["tiers"].keys() - {"cached"}
    config["cache"] = {"enabled": True, "tiers": {name: {"enabled": False} for name in others}}


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """Start a Redis to share."""
    server = RedisServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def pair(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Start Envoy with two threads and two workers."""
    running = start(tmp_path_factory.mktemp("pair"), redis)
    yield running
    running.stop()


def start(directory: Path, redis: RedisServer) -> Stack:
    env = {"ADMIN_TOKEN": "of-the-admin"}
    return start_stack(directory, change=lambda c: two(c, redis.url), env=env, concurrency=2)


def key_of(stack: Stack, name: str, tier: str = "enterprise") -> dict[str, str]:
    """Return the headers of a new key of a tenant of that name, once both know it."""
    wanted = {"name": name, "tier": tier, "tenant": name}
    made = httpx.post(f"http://127.0.0.1:{stack.admin_port}/admin/keys", json=wanted, headers=ADMIN)
    wait_for("the key on both", lambda: everywhere(stack, made.json()["key"], 200))
    return {"authorization": f"Bearer {made.json()['key']}"}


def everywhere(stack: Stack, key: str, expected: int) -> bool:
    """Say whether a key is answered so by whoever is asked."""
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=stack.base, headers=headers) as client:
        return {client.get("/v1/models").status_code for _ in range(12)} == {expected}


def workers(stack: Stack) -> list[psutil.Process]:
    """Return the workers in the order of their numbers."""
    found = psutil.Process(stack.processor.pid).children()
    return sorted(found, key=lambda worker: worker.cmdline())


def by_worker(rows: list[dict[str, Any]]) -> Counter[str]:
    """Count rows by who planned the call."""
    return Counter(str(row["id"])[:2] for row in rows)


def total(stack: Stack, name: str, **labels: str) -> float:
    """Return the sum of a metric's series that have these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = stack.admin_get("/metrics").text.splitlines()
    series = [line for line in lines if re.match(rf"{name}[{{ ]", line)]
    return sum(float(s.rpartition(" ")[2]) for s in series if all(w in s for w in wanted))


async def send(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    return await client.post(CHAT, json={**GOOD, **more})


async def all_at_once(stack: Stack, headers: dict[str, str], count: int, **more: Any) -> list[int]:
    """Send so many calls at once and return their statuses."""
    async with httpx.AsyncClient(base_url=stack.base, headers=headers, timeout=30) as client:
        answers = await asyncio.gather(*(send(client, **more) for _ in range(count)))
    return [answer.status_code for answer in answers]


@pytest.mark.parametrize("stream", [False, True], ids=["plain answers", "streams"])
@pytest.mark.parametrize(("tier", "limit"), [("daily", 9), ("bursty", 7)])
async def test_exactly_the_limit_is_let_in(
    pair: Stack, tier: str, limit: int, stream: bool
) -> None:
    """Forty calls at once, at whichever worker each arrives."""
    headers = key_of(pair, f"exact-{tier}-{stream}", tier)
    statuses = await all_at_once(pair, headers, 40, stream=stream)
    assert sorted(statuses) == [200] * limit + [429] * (40 - limit)


def test_one_at_a_time_is_never_refused_by_its_own_last_call(pair: Stack) -> None:
    """The slot that one worker's call held is seen free by the other before it refuses."""
    headers = key_of(pair, "single", "single")
    with httpx.Client(base_url=pair.base, headers=headers) as client:
        statuses = [client.post(CHAT, json=GOOD).status_code for _ in range(25)]
    assert statuses == [200] * 25
    assert set(by_worker(pair.rows_for("single", 25))) == {"00", "01"}


async def test_both_serve_and_the_sum_is_the_truth(pair: Stack, redis: RedisServer) -> None:
    """Ledger, counters and metrics equal what the provider says it served; nothing is waited for."""
    pair.clear_sims()
    headers = key_of(pair, "truth", "counted")
    counted = total(pair, "llm_edge_requests_total", outcome="finished")
    lost = total(pair, "llm_edge_store_errors_total")
    for stream in (False, True):
        assert await all_at_once(pair, headers, 60, stream=stream) == [200] * 60
    rows = pair.rows_for("truth", 120)
    assert len({row["id"] for row in rows}) == 120
    assert min(by_worker(rows)["00"], by_worker(rows)["01"]) >= 30  # chosen by who is less busy
    truth = [(row["prompt_tokens"], row["output_tokens_sent"]) for row in pair.sim_log("a")]
    assert sorted((row["input"], row["output"]) for row in rows) == sorted(truth)
    assert {row["ended"] for row in rows} == {"finished"}
    used = sum(sum(one) for one in truth)
    (row, *_) = rows
    name = f"{{llm-edge}}:a:key:{row['key_id']}"
    wait_for("the truth in Redis", lambda: int(redis.client.hget(name, "u2") or 0) == used)
    wait_for("no reservation", lambda: redis.client.keys("{llm-edge}:r:*") == [])

    def all_counted() -> bool:
        return total(pair, "llm_edge_requests_total", outcome="finished") == counted + 120

    wait_for("the sum of both", all_counted)
    assert total(pair, "llm_edge_store_errors_total") == lost


def test_who_planned_a_call_learns_of_its_failures(pair: Stack) -> None:
    """Each worker's breaker opens after its own failures, and the admin port tells the worst."""
    pair.clear_sims()
    headers = key_of(pair, "failing")
    pair.behave("b", status=503)
    with httpx.Client(base_url=pair.base, headers=headers) as client:
        answers = [client.post(CHAT, json={**GOOD, "model": "failover"}) for _ in range(40)]
    assert {answer.status_code for answer in answers} == {200}
    # Calls came one after the other; one may have been planned before the news of the last.
    assert 2 * FAILURES <= len(pair.sim_log("b")) <= 2 * FAILURES + 2
    told = httpx.get(f"http://127.0.0.1:{pair.admin_port}/admin/breakers", headers=ADMIN).json()
    assert told["b/first"] == "open"
    assert total(pair, "llm_edge_breaker_state", provider="b") == 2
    assert pair.admin_get("/admin/breakers").status_code == 401


def test_a_key_counts_on_both_within_a_second(pair: Stack) -> None:
    """The API is at one port; who answers there does not matter."""
    url = f"http://127.0.0.1:{pair.admin_port}/admin/keys"
    wanted = {"name": "admin", "tier": "enterprise"}
    made = httpx.post(url, json=wanted, headers=ADMIN)
    began = time.monotonic()
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    key = made.json()["key"]
    wait_for("the key on both", lambda: everywhere(pair, key, 200))
    assert time.monotonic() - began < PROMISED_S
    ended = httpx.post(f"{url}/{made.json()['key_id']}/revoke", headers=ADMIN)
    assert (ended.status_code, ended.json()["state"]) == (200, "revoked")
    began = time.monotonic()
    wait_for("its end on both", lambda: everywhere(pair, key, 401))
    assert time.monotonic() - began < PROMISED_S


def told_by_both(stack: Stack, model: str, headers: dict[str, str]) -> bool:
    """Say whether everyone who is asked knows the answer; False where nobody does."""
    only = {**headers, "cache-control": "only-if-cached"}
    with httpx.Client(base_url=stack.base, headers=only) as client:
        call = {**GOOD, "model": model}
        statuses = {client.post(CHAT, json=call).status_code for _ in range(12)}
    assert statuses <= {200, 504}
    return statuses == {200}


def test_what_one_keeps_the_other_tells_until_it_is_purged(pair: Stack) -> None:
    """One call upstream for each model; a purge of one model is everybody's within a second."""
    pair.clear_sims()
    headers = key_of(pair, "cached", "cached")
    models = ("gpt-4o-mini", "renamed")
    for model in models:
        answer = httpx.post(f"{pair.base}{CHAT}", json={**GOOD, "model": model}, headers=headers)
        assert answer.headers["cache-status"] == "llm-edge; fwd=miss; stored"
    for model in models:
        wait_for("both to know it", lambda m=model: told_by_both(pair, m, headers))

    def tellers() -> set[str]:
        return set(by_worker([row for row in pair.rows_for("cached", 3) if row["cache"]]))

    wait_for("hits of both in the ledger", lambda: tellers() == {"00", "01"})
    assert len(pair.sim_log("a")) == len(models)
    url = f"http://127.0.0.1:{pair.admin_port}/admin/cache?tenant=cached&model=renamed"
    assert httpx.delete(url, headers=ADMIN).status_code == 200
    began = time.monotonic()
    only = {**headers, "cache-control": "only-if-cached"}

    def forgotten() -> bool:
        call = {**GOOD, "model": "renamed"}
        with httpx.Client(base_url=pair.base, headers=only) as client:
            return {client.post(CHAT, json=call).status_code for _ in range(12)} == {504}

    wait_for("both to forget it", forgotten)
    assert time.monotonic() - began < PROMISED_S
    assert told_by_both(pair, "gpt-4o-mini", headers)


async def test_identical_calls_at_both_make_one_upstream_call(pair: Stack) -> None:
    """Whoever did not ask waits for the one who did, in whichever process, and pays a request."""
    pair.clear_sims()
    pair.behave("a", latency_ms=400)
    headers = await asyncio.to_thread(key_of, pair, "together", "cached")
    call = {**GOOD, "messages": [{"role": "user", "content": "all at once"}]}
    async with httpx.AsyncClient(base_url=pair.base, headers=headers, timeout=30) as client:
        answers = await asyncio.gather(*(client.post(CHAT, json=call) for _ in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len(pair.sim_log("a")) == 1
    rows = await asyncio.to_thread(pair.rows_for, "together", 40)
    assert Counter(row["cache"] for row in rows) == {"": 1, "collapsed": 39}
    waited = by_worker([row for row in rows if row["cache"]])
    assert min(waited["00"], waited["01"]) >= 5  # chosen by who is less busy


async def stream_to_the_end(client: httpx.AsyncClient, started: asyncio.Event) -> bytes:
    headers = {"x-sim-output-tokens": str(TOKENS), "x-sim-chunk-ms": "25"}
    body = {**GOOD, "stream": True, "max_tokens": TOKENS}
    got = b""
    async with client.stream("POST", CHAT, json=body, headers=headers) as answer:
        assert answer.status_code == 200
        async for chunk in answer.aiter_raw():
            got += chunk
            started.set()
    return got


async def streams_of(client: httpx.AsyncClient) -> list[asyncio.Task[bytes]]:
    """Start streams and return when all of them run."""
    started = [asyncio.Event() for _ in range(STREAMS)]
    running = [asyncio.create_task(stream_to_the_end(client, event)) for event in started]
    await asyncio.wait_for(asyncio.gather(*(event.wait() for event in started)), 20)
    return running


async def test_one_may_be_killed(pair: Stack) -> None:
    """`kill -9` of one in mid-load: the other serves, what ends meanwhile is billed all the same."""
    headers = key_of(pair, "killed")
    wrong = {"authorization": "Bearer sk_wrong"}
    restarts = total(pair, "llm_edge_worker_restarts_total")
    async with httpx.AsyncClient(base_url=pair.base, headers=headers, timeout=30) as client:
        await asyncio.gather(*(send(client) for _ in range(20)))
        before = {row["id"] for row in await asyncio.to_thread(pair.rows_for, "killed", 20)}
        counted = total(pair, "llm_edge_requests_total")
        streams = await streams_of(client)
        victim = workers(pair)[0]
        victim.send_signal(signal.SIGKILL)
        began = time.monotonic()
        answers: list[httpx.Response] = []
        refused: list[httpx.Response] = []
        while pair.admin_get("/readyz").status_code != 200 or len(answers) < 100:
            answers += await asyncio.gather(*(send(client) for _ in range(10)))
            refused.append(await client.post(CHAT, json=GOOD, headers=wrong))
            assert time.monotonic() - began < 20, pair.logs()
        assert len(workers(pair)) == 2
        assert victim.pid not in {worker.pid for worker in workers(pair)}
        for answer in (*answers, *refused):
            assert answer.status_code in {200, 401} or answer.status_code >= 500
            assert answer.status_code == 200 or "error" in answer.json()
        assert {answer.status_code for answer in refused} <= {401, 500, 503}
        served = sum(answer.status_code == 200 for answer in answers)
        assert served >= 0.9 * len(answers)  # but for what it had in hand
        for data in await asyncio.gather(*streams):
            assert data.endswith(b"data: [DONE]\n\n")
    # Its log waited for the next one: every stream is there, also those that it had planned.
    rows = await asyncio.to_thread(pair.rows_for, "killed", 20 + STREAMS + served)
    whole = [row for row in rows if row["stream"]]
    assert [(row["ended"], row["output"]) for row in whole] == [("finished", TOKENS)] * STREAMS
    assert set(by_worker(whole)) == {"00", "01"}
    assert len(rows) == len({row["id"] for row in rows}) == 20 + STREAMS + served
    assert before <= {row["id"] for row in rows}
    assert total(pair, "llm_edge_worker_restarts_total") == restarts + 1
    # What it had counted when it was last asked stays in the sum.
    assert total(pair, "llm_edge_requests_total") >= counted


async def test_terminated_both_drain_then_leave(redis: RedisServer, tmp_path: Path) -> None:
    """SIGTERM: not ready at once, each one's streams are settled, nobody is left."""
    stack = start(tmp_path, redis)
    try:
        headers = key_of(stack, "drained")
        family = workers(stack)
        async with httpx.AsyncClient(base_url=stack.base, headers=headers, timeout=30) as client:
            streams = await streams_of(client)
            stack.processor.signal(signal.SIGTERM)
            await asyncio.to_thread(
                wait_for, "not ready", lambda: stack.admin_get("/readyz").status_code == 503
            )
            assert stack.admin_get("/healthz").json()["status"] == "ok"
            for data in await asyncio.gather(*streams):
                assert data.endswith(b"data: [DONE]\n\n")
        assert await asyncio.to_thread(stack.processor.wait) == 0
        assert not any(worker.is_running() for worker in family)
        rows = stack.rows("SELECT * FROM outcomes WHERE tenant = 'drained'")
        assert [(r["ended"], r["output"]) for r in rows] == [("finished", TOKENS)] * STREAMS
        assert set(by_worker(rows)) == {"00", "01"}
        assert "without every entry" not in stack.processor.tail()
    finally:
        stack.stop()


def test_run_brings_a_redis_along(tmp_path: Path) -> None:
    """Two workers and no Redis in the configuration: one command, one signal, nothing left."""
    provider = f"http://127.0.0.1:{free_port()}/v1"
    file = tmp_path / "llm-edge.yaml"
    config = {
        "server": {"workers": 2, "port": free_port()},
        "admin": {"port": free_port()},
        "state": {"dir": str(tmp_path / "state"), "store": "redis"},
        "providers": {"s": {"dialect": "openai", "endpoint": provider, "simulated": True}},
        "models": {"gpt-4o-mini": {"targets": [{"provider": "s", "model": "gpt-4o-mini"}]}},
    }
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "extproc.cli"]
    log = tmp_path / "run.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "run", "--config", str(file)],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=out,
            stderr=out,
        )
    try:
        line = wait_for(
            "the curl line", lambda: re.search(r"^curl .*$", log.read_text(), re.MULTILINE)
        )[0]
        answer = subprocess.run(shlex.split(line), capture_output=True, text=True, check=True)
        assert '"chat.completion"' in answer.stdout, answer.stdout
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) == 6  # Redis, the provider, Envoy, the workers and who speaks for them
        listed = [*command, "keys", "list", "--config", str(file)]
        told = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
        assert "llm-edge-run" in told
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
        assert not any(child.is_running() for child in family)
        assert (tmp_path / "state" / "redis" / "appendonly.aof").stat().st_size > 0
    except BaseException:
        print(log.read_text())
        raise
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            process.wait(30)
