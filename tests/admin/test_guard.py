"""Nobody gets past `/admin` without the token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from extproc.admin.guard import MAX_BODY_BYTES, Guard
from extproc.schema_fields import SecretRef

TOKEN = "a token of some length"
ENV = {"TOKEN": TOKEN}


class Behind:
    """An application that counts who came through, and answers with the body it got."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        body = (await receive())["body"] if scope["path"] != "/healthz" else b""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def behind() -> Behind:
    return Behind()


def client(behind: Behind, token: SecretRef | None, env: dict[str, str]) -> httpx.AsyncClient:
    """Return a client of a guarded application."""
    guard: Any = Guard(behind, token=token, env=env)
    return httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://admin")


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="no token"),
        pytest.param([("authorization", f"Bearer {TOKEN}x")], id="a longer one"),
        pytest.param([("authorization", f"Bearer {TOKEN[:-1]}")], id="a shorter one"),
        pytest.param([("authorization", "Bearer ")], id="an empty one"),
        pytest.param([("authorization", "Bearer")], id="a scheme alone"),
        pytest.param([("authorization", TOKEN)], id="no scheme"),
        pytest.param([("authorization", f"Basic {TOKEN}")], id="another scheme"),
        pytest.param([("authorization", f"Bearer {TOKEN}")] * 2, id="twice"),
        pytest.param([("x-api-key", TOKEN)], id="another header"),
    ],
)
@pytest.mark.parametrize("path", ["/admin", "/admin/keys", "/%61dmin/keys", "/admin/../admin/keys"])
async def test_without_the_token_nothing_is_reached(
    behind: Behind, path: str, headers: list[tuple[str, str]]
) -> None:
    """Answer 401 in JSON before anything behind it is asked, and say how it is done."""
    async with client(behind, SecretRef(env="TOKEN"), ENV) as http:
        answer = await http.post(path, headers=headers, content=b"x")
    assert (answer.status_code, behind.paths) == (401, [])
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["cache-control"] == "no-store"
    assert TOKEN not in answer.text


@pytest.mark.parametrize(
    ("token", "says"),
    [
        pytest.param(None, "set admin.token", id="no token configured"),
        pytest.param(SecretRef(env="OTHER"), "not there", id="a variable that is not set"),
        pytest.param(SecretRef(file=Path("/nowhere")), "not there", id="a file that is not there"),
    ],
)
async def test_without_a_token_to_compare_with_it_is_off(
    behind: Behind, token: SecretRef | None, says: str
) -> None:
    """Answer 403 to everybody, whatever they send, with the reason."""
    async with client(behind, token, {**ENV, "OTHER": ""}) as http:
        for credential in ("", TOKEN, "None"):
            answer = await http.get(
                "/admin/keys", headers={"authorization": f"Bearer {credential}"}
            )
            assert (answer.status_code, behind.paths) == (403, [])
            assert says in answer.json()["error"]["message"]
            assert answer.json()["error"]["code"] == "permission_denied"


async def test_with_the_token_the_body_comes_through(behind: Behind) -> None:
    """Pass on what was sent, in one piece or many, and let nobody store the answer."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"abc"

    async with client(behind, SecretRef(env="TOKEN"), ENV) as http:
        for content in (b"abc", pieces()):
            headers = {"authorization": f"bearer {TOKEN}"}
            answer = await http.post("/admin/keys", content=content, headers=headers)
            assert answer.status_code == 200
            assert answer.text == "abc" * (1 if content == b"abc" else 3)
            assert answer.headers["cache-control"] == "no-store"


async def test_a_huge_body_is_cut_off(behind: Behind) -> None:
    """Answer 413 above the limit and take what is at it."""
    async with client(behind, SecretRef(env="TOKEN"), ENV) as http:
        for size, status in ((MAX_BODY_BYTES, 200), (MAX_BODY_BYTES + 1, 413)):
            answer = await http.post(
                "/admin/keys", content=b"x" * size, headers={"authorization": f"Bearer {TOKEN}"}
            )
            assert answer.status_code == status


async def test_a_new_token_counts_at_once(behind: Behind, tmp_path: Path) -> None:
    """Read a token file anew: a secret that was replaced opens nothing any more."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    async with client(behind, SecretRef(file=file), {}) as http:
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert (await http.get("/admin/keys", headers=headers)).status_code == 200
        file.write_text("another")
        assert (await http.get("/admin/keys", headers=headers)).status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/administration", "/"])
async def test_what_is_not_admin_is_open(behind: Behind, path: str) -> None:
    """Guard nothing else."""
    async with client(behind, None, {}) as http:
        answer = await http.get(path)
    assert answer.status_code == 200
    assert "cache-control" not in answer.headers
