"""The admin API of keys: what it does, what it refuses, and that a key is shown once."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from extproc.admin.app import create_app
from extproc.admin.keys import KeyAdmin
from extproc.admin.readiness import Readiness
from extproc.policies.auth import authenticate_key
from extproc.schema_fields import SecretRef
from extproc.stores.keys import KeyStoreError
from extproc.stores.sqlite_keys import SqliteKeys

NOW = 1_800_000_000.0
TOKEN = {"authorization": "Bearer the-token"}


class Scene:
    """An admin application on a store in a directory, with fixed randomness and time."""

    def __init__(self, state: Path) -> None:
        self.store = SqliteKeys(state)
        self.seed = 0
        self.failures: list[str] = []

    def token(self, size: int) -> bytes:
        self.seed += 1
        return bytes([self.seed]) * size

    def app(self) -> FastAPI:
        async def ready() -> Readiness:
            return Readiness(())

        return create_app(
            ready=ready,
            metrics=lambda: (b"", "text/plain"),
            version="1",
            keys=KeyAdmin(
                self.store, {"free", "pro"}, lambda: NOW, self.token, self.failures.append
            ),
            token=SecretRef(env="TOKEN"),
            env={"TOKEN": "the-token"},
        )


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path / "state")
    with closing(made.store):
        yield made


@pytest.fixture
async def api(scene: Scene) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(scene.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://admin", headers=TOKEN
    ) as client:
        yield client


async def test_every_route_is_guarded(scene: Scene) -> None:
    """Let nobody without the token reach any route under /admin, whatever the method."""
    app = scene.app()
    schema = app.openapi()
    routes = [
        (method.upper(), path.replace("{key_id}", "key_1"))
        for path, methods in schema["paths"].items()
        for method in methods
        if path.startswith("/admin")
    ]
    assert len(routes) == 5
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://admin"
    ) as client:
        for method, path in routes:
            answer = await client.request(method, path, json={"name": "x", "tier": "free"})
            assert answer.status_code == 401, (method, path)
    assert scene.store.list() == ()


async def test_a_key_is_shown_at_its_creation_and_never_again(
    scene: Scene, api: httpx.AsyncClient
) -> None:
    """Return the key once, uncached, and everything but the key from then on."""
    asked = {
        "name": "Team A",
        "tier": "pro",
        "models": ["b", "a"],
        "endpoints": ["chat"],
        "tags": ["team:search"],
        "expires": "90d",
    }
    made = await api.post("/admin/keys", json=asked)
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    document = made.json()
    key = document.pop("key")
    assert re.fullmatch(r"sk_[A-Za-z0-9_-]{43}", key)
    assert document == {
        "key_id": document["key_id"],
        "name": "Team A",
        "tenant": "team-a",
        "tier": "pro",
        "state": "active",
        "models": ["a", "b"],
        "endpoints": ["chat"],
        "tags": ["team:search"],
        "created_at": NOW,
        "expires_at": NOW + 90 * 86_400,
        "revoked_at": None,
        "last_used_at": None,
    }
    scene.store.write_used({document["key_id"]: NOW + 1})
    document["last_used_at"] = NOW + 1
    one = await api.get(f"/admin/keys/{document['key_id']}")
    every = await api.get("/admin/keys")
    assert one.json() == document
    assert every.json() == {"keys": [document]}
    assert key not in one.text + every.text
    assert authenticate_key(key, scene.store.directory(), NOW).tenant == "team-a"


async def test_rotate_and_revoke(scene: Scene, api: httpx.AsyncClient) -> None:
    """Bring out a new key while the old one retires, then end the old one at once."""
    first = (await api.post("/admin/keys", json={"name": "ci", "tier": "free"})).json()
    path = f"/admin/keys/{first['key_id']}"
    second = await api.post(f"{path}/rotate", json={"grace": "1h", "expires": "30d"})
    assert second.status_code == 201
    assert second.json()["key"] != first["key"]
    assert second.json()["expires_at"] == NOW + 30 * 86_400
    old = (await api.get(path)).json()
    assert (old["state"], old["revoked_at"]) == ("retiring", NOW + 3_600)
    third = await api.post(f"/admin/keys/{second.json()['key_id']}/rotate")  # without a body
    assert third.status_code == 201
    middle = (await api.get(f"/admin/keys/{second.json()['key_id']}")).json()
    assert middle["revoked_at"] == NOW + 86_400
    ended = await api.post(f"{path}/revoke")
    assert (ended.status_code, ended.json()["state"]) == (200, "revoked")
    dead = await api.post(f"{path}/rotate", json={})
    assert (dead.status_code, dead.json()["error"]["code"]) == (409, "conflict")
    assert len(scene.store.list()) == 3


WRONG: dict[str, tuple[Any, str | None, str]] = {
    "not JSON": (b"{", None, "JSON"),
    "no body": (b"", None, "required"),
    "no object": ([], None, "a JSON object"),
    "no name": ({"tier": "free"}, "name", "required"),
    "an empty name": ({"name": "", "tier": "free"}, "name", "1 to 100"),
    "a name that is no text": ({"name": 5, "tier": "free"}, "name", "string"),
    "an unknown tier": ({"name": "a", "tier": "gold"}, "tier", "legal: free, pro"),
    "an unknown field": ({"name": "a", "tier": "free", "digest": "x"}, None, "Unknown field"),
    "a tenant of an issuer's form": (
        {"name": "a", "tier": "free", "tenant": "i:t"},
        "tenant",
        "1 to 63",
    ),
    "no models at all": ({"name": "a", "tier": "free", "models": []}, "models", "at least one"),
    "a model that is no text": (
        {"name": "a", "tier": "free", "models": [1]},
        "models.0",
        "string",
    ),
    "an unknown endpoint": (
        {"name": "a", "tier": "free", "endpoints": ["x"]},
        "endpoints",
        "chat, completions",
    ),
    "a bad tag": ({"name": "a", "tier": "free", "tags": ["a b"]}, "tags", "up to 16"),
    "an end that is no duration": (
        {"name": "a", "tier": "free", "expires": "soon"},
        "expires",
        "ms, s, m, h or d",
    ),
    "an end in seconds": (
        {"name": "a", "tier": "free", "expires": 90},
        "expires",
        "such as 90d",
    ),
    "an end that is now": ({"name": "a", "tier": "free", "expires": "0s"}, "expires", "100 years"),
}


@pytest.mark.parametrize(("asked", "param", "says"), WRONG.values(), ids=WRONG.keys())
async def test_bad_input_names_the_field_and_changes_nothing(
    scene: Scene, api: httpx.AsyncClient, asked: Any, param: str | None, says: str
) -> None:
    """Answer 400 in the house shape with what is legal."""
    content = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    sent = {"content-type": "application/json"}
    answer = await api.post("/admin/keys", content=content, headers=sent)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error",) * 2
    assert error["param"] == param
    assert says in error["message"]
    assert scene.store.list() == ()


async def test_json_sent_as_a_form_is_explained(api: httpx.AsyncClient) -> None:
    """Tell who forgot the content type, as `curl -d` does, what is missing."""
    sent = {"content-type": "application/x-www-form-urlencoded"}
    answer = await api.post("/admin/keys", content=b'{"name": "a"}', headers=sent)
    assert answer.status_code == 400
    assert "content-type: application/json" in answer.json()["error"]["message"]


async def test_what_is_sent_is_not_repeated(
    scene: Scene, api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Repeat no key that somebody sends to the wrong place, in no answer and no log line."""
    caplog.set_level(logging.DEBUG)
    key = (await api.post("/admin/keys", json={"name": "ci", "tier": "free"})).json()["key"]
    answers = [
        await api.get(f"/admin/keys/{key}"),
        await api.post(f"/admin/keys/{key}/rotate"),
        await api.post(f"/admin/keys/{key}/revoke"),
        await api.delete(f"/admin/keys/{key}"),
        await api.get(f"/{key}"),
        *[await api.post("/admin/keys", json={"name": "a", "tier": "free", f: key}) for f in ("tier", "models", "tags", "expires", key)],
        await api.post("/admin/keys", content=key.encode()),
        await api.get("/admin/keys", headers={"authorization": f"Bearer {key}"}),
    ]  # fmt: skip
    assert [answer.status_code for answer in answers[:5]] == [404, 404, 404, 405, 404]
    assert all(answer.status_code >= 400 for answer in answers)
    assert key not in "".join(answer.text for answer in answers)
    told = [record for record in caplog.records if record.name.startswith("extproc")]
    assert [record.message for record in told] == ["key changed"]
    assert key not in "".join(str(vars(record)) for record in told)


async def test_a_store_that_is_down_is_503(
    scene: Scene, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Say so with the time to try again, count it, and tell nothing of the inside."""

    def down(*_: Any, **__: Any) -> Any:
        raise KeyStoreError("/secret/place: disk on fire")

    for name in ("create", "list", "get", "rotate", "revoke"):
        monkeypatch.setattr(scene.store, name, down)
    answers = [
        await api.post("/admin/keys", json={"name": "a", "tier": "free"}),
        await api.get("/admin/keys"),
        await api.get("/admin/keys/key_1"),
        await api.post("/admin/keys/key_1/rotate"),
        await api.post("/admin/keys/key_1/revoke"),
    ]
    for answer in answers:
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["code"] == "store_unavailable"
        assert "secret" not in answer.text
    assert scene.failures == ["admin"] * 5


async def test_documentation(scene: Scene, api: httpx.AsyncClient) -> None:
    """Document every operation with its token, its answers and what a duration looks like."""
    schema = (await api.get("/openapi.json")).json()
    operations = {
        (method, path): operation
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
        if path.startswith("/admin")
    }
    assert set(operations) == {
        ("post", "/admin/keys"),
        ("get", "/admin/keys"),
        ("get", "/admin/keys/{key_id}"),
        ("post", "/admin/keys/{key_id}/rotate"),
        ("post", "/admin/keys/{key_id}/revoke"),
    }
    for operation in operations.values():
        assert operation["security"] == [{"HTTPBearer": []}]
        assert {"401", "403", "503"} <= set(operation["responses"])
        assert "422" not in operation["responses"]
    assert schema["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert schema["components"]["schemas"]["NewKey"]["properties"]["expires"]["anyOf"][0] == {
        "type": "string",
        "examples": ["24h", "90d"],
    }
    assert "/admin/keys" not in (await api.get("/healthz")).text
    assert (await api.get("/docs")).status_code == 200
