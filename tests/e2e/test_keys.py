"""Keys at the running gateway: how soon a change counts everywhere, and that none is ever seen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.collector import Collector, collecting
from tests.redis_server import RedisServer

from .stack import TRANSPORTS, Stack, wait_for

PROMISED_S = 1.0
TOKEN = "canary-admin-token-4d1f"
SECRETS = {"ADMIN_TOKEN": TOKEN, "PROVIDER_KEY": "sk-canary-provider-93ac17e0b6"}
CHAT = "/v1/chat/completions"
BODY = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
Start = Callable[..., Stack]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """Start a Redis that a test may kill."""
    server = RedisServer()
    server.start()
    yield server
    server.stop()


def status(stack: Stack, key: str) -> int:
    """Ask for the models with a key."""
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(f"{stack.base}/v1/models", headers=headers).status_code


def took(what: str, probe: Callable[[], bool]) -> float:
    """Return how long it takes until the probe is true."""
    started = time.monotonic()
    wait_for(what, probe)
    return time.monotonic() - started


def admin(stack: Stack, method: str, path: str, **more: Any) -> httpx.Response:
    """Call the admin API with its token."""
    url = f"http://127.0.0.1:{stack.admin_port}{path}"
    headers = {"authorization": f"Bearer {TOKEN}"} | more.pop("headers", {})
    return httpx.request(method, url, headers=headers, **more)


def guarded(config: dict[str, Any]) -> None:
    """Give the admin API its token and provider a its key."""
    config["admin"]["token"] = {"env": "ADMIN_TOKEN"}
    config["providers"]["a"]["api_key"] = {"env": "PROVIDER_KEY"}
    config["observability"] = {"log_level": "debug"}


# On one transport, because keys come another way.
@pytest.mark.parametrize("transport", TRANSPORTS[:1])
def test_a_change_counts_on_every_replica_within_a_second(
    fresh_stack: Start, redis: RedisServer
) -> None:
    """Create, rotate and revoke over one replica's API; both follow, and outlive Redis."""

    def shared(config: dict[str, Any]) -> None:
        guarded(config)
        config["state"] |= {"store": "redis", "redis": {"url": redis.url}}

    one, two = (fresh_stack(change=shared, env=SECRETS) for _ in range(2))
    made = admin(one, "POST", "/admin/keys", json={"name": "ci", "tier": "free"}).json()
    key = made["key"]
    assert took("the key on both", lambda: status(one, key) == status(two, key) == 200) < PROMISED_S
    rotated = admin(
        two, "POST", f"/admin/keys/{made['key_id']}/rotate", json={"grace": "0s"}
    ).json()
    assert (
        took("the old key's end", lambda: status(one, key) == status(two, key) == 401) < PROMISED_S
    )
    key = rotated["key"]
    wait_for("the new key on both", lambda: status(one, key) == status(two, key) == 200)
    listed = json.loads(one.command("keys", "list", "--json"))
    assert {k["key_id"]: k["state"] for k in listed} == {
        made["key_id"]: "revoked",
        rotated["key_id"]: "active",
    }
    other = one.create_key("survivor")
    one.command("keys", "revoke", rotated["key_id"])
    assert took("the end of both", lambda: status(one, key) == status(two, key) == 401) < PROMISED_S
    wait_for("the survivor on both", lambda: status(two, other) == 200)
    redis.kill()
    wait_for(
        "the outage to be noticed",
        lambda: 'op="read",store="keys"' in two.admin_get("/metrics").text,
    )
    assert status(one, other) == status(two, other) == 200
    assert status(one, key) == status(two, key) == 401
    answer = admin(one, "GET", "/admin/keys")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")


def test_keys_are_seen_nowhere(fresh_stack: Start) -> None:
    """Send keys and tokens the right and every wrong way; find them in no output and no file."""
    with collecting() as collector:
        _search(fresh_stack, collector)


def _search(fresh_stack: Start, collector: Collector) -> None:
    def traced(config: dict[str, Any]) -> None:
        guarded(config)
        config["observability"]["otlp_endpoint"] = collector.endpoint

    stack = fresh_stack(change=traced, env=SECRETS)
    made = admin(stack, "POST", "/admin/keys", json={"name": "ci", "tier": "free"}).json()
    good, wrong = made["key"], "sk_" + "Zq7" * 14 + "x"
    wait_for("the key", lambda: status(stack, good) == 200)
    spoiled = f"{good[:-1]}~"
    seen: list[httpx.Response] = []
    with httpx.Client(base_url=stack.base) as http:

        def send(key: str, body: Any = BODY, path: str = CHAT, **headers: str) -> httpx.Response:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            every = {"authorization": f"Bearer {key}"} | named
            seen.append(http.post(path, json=body, headers=every))
            return seen[-1]

        assert send(good).status_code == 200
        assert send(good, {**BODY, "stream": True}).status_code == 200
        for key in (wrong, spoiled, good + good, f"{good} {wrong}"):
            assert send(key).status_code == 401
        assert send(good, x_api_key=wrong).status_code == 401
        assert send(good, authorization=good).status_code == 401
        assert send(good, authorization=f"Basic {good}").status_code == 401
        assert send(good, {**BODY, "model": good}).status_code == 404
        assert send(good, {**BODY, "temperature": good}).status_code in {200, 400}
        assert send(good, {**BODY, "messages": good}).status_code == 400
        assert send(good, path=f"/v1/{good}").status_code == 404
        assert send(good, path=f"{CHAT}?key={good}&api_key={wrong}").status_code == 200
        assert send(good, x_request_id=f"{good} x").status_code == 200
        assert send(good, x_request_id=good).status_code == 200
        assert send(good, traceparent=good, tracestate=f"a={wrong}").status_code == 200
        assert send(good, x_llm_provider=good).status_code >= 400
        assert send(good, x_llm_strategy=wrong).status_code >= 400
        assert send(good, x_llm_timeout_ms=good).status_code >= 400
        assert send(good, x_sim_status="500").status_code == 500
        assert send(good, {**BODY, "model": "doomed"}).status_code == 502
    seen += [
        admin(stack, "GET", f"/admin/keys/{good}"),
        admin(stack, "POST", "/admin/keys", json={"name": "x", "tier": good}),
        admin(stack, "POST", "/admin/keys", json={good: 1}),
        admin(stack, "GET", "/admin/keys", headers={"authorization": f"Bearer {TOKEN}x"}),
        admin(stack, "GET", "/admin/keys"),
        stack.admin_get(f"/{good}"),
    ]
    rotated = admin(stack, "POST", f"/admin/keys/{made['key_id']}/rotate").json()["key"]
    wait_for("the new key", lambda: status(stack, rotated) == 200)
    admin(stack, "POST", f"/admin/keys/{made['key_id']}/revoke")
    wait_for("the revocation", lambda: status(stack, good) == 401)
    wait_for("the bill", lambda: stack.rows("SELECT * FROM outcomes WHERE model = 'doomed'"))
    transport = httpx.HTTPTransport(uds=str(stack.state / "envoy" / "envoy-admin.sock"))
    with httpx.Client(transport=transport) as envoy:
        inside = [envoy.get(f"http://envoy{path}").text for path in ("/stats", "/config_dump")]
    places = {
        "an answer": "".join(f"{dict(answer.headers)}{answer.text}" for answer in seen),
        "metrics": stack.admin_get("/metrics").text,
        "Envoy's statistics": inside[0],
        "Envoy's configuration": inside[1],
        "what `keys list` prints": stack.command("keys", "list", "--json"),
    }
    stack.stop()
    for file in [*stack.directory.glob("*.log"), *stack.state.rglob("*")]:
        if file.is_file():
            places[str(file.relative_to(stack.directory))] = file.read_bytes().decode("latin-1")
    places["traces"] = collector.raw.decode("latin-1")  # all of them: the processor has ended
    assert made["key_id"] in places["traces"]
    assert len(places["processor.log"]) > 100
    for secret in (good, wrong, spoiled, rotated, *SECRETS.values()):
        for place, text in places.items():
            assert secret not in text, f"{secret[:12]}... in {place}"
            assert secret[-12:] not in text, f"the end of {secret[:12]}... in {place}"
