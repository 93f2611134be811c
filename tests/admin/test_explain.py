"""The admin routes of explanations and breakers, on an application of their own."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from extproc.admin.explain import Explaining, install
from extproc.domain import Head
from extproc.explain import explain
from tests.calls import ALICE, gateway


async def answer(key_id: str | None, head: Head, body: bytes) -> dict[str, Any]:
    """Explain with a gateway that knows one key."""
    if key_id != "key_alice":
        raise LookupError(key_id)
    return await explain(gateway(), ALICE, head, body)


async def ask(method: str, path: str, **words: Any) -> httpx.Response:
    """Send one request to the routes alone."""
    app = FastAPI()
    install(app, Explaining(answer, lambda: {"a/m": "open"}))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
        return await client.request(method, path, **words)


def question(**more: Any) -> dict[str, Any]:
    """Return a question about Alice's chat."""
    body = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}
    return {"key_id": "key_alice", "body": body, **more}


async def test_a_call_is_explained_with_its_headers() -> None:
    """Names of headers in any case."""
    found = await ask("POST", "/admin/explain", json=question(headers={"X-LLM-Timeout-MS": "1234"}))
    assert found.status_code == 200
    assert found.json()["plan"]["timeout_ms"] == 1234
    assert found.json()["identity"]["tenant"] == "acme"


async def test_a_call_that_would_be_refused_is_an_answer_too() -> None:
    """The question was good."""
    found = await ask("POST", "/admin/explain", json=question(path="/v1/nowhere"))
    assert found.status_code == 200
    assert found.json()["refusal"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        pytest.param(question(key_id="key_0"), 404, id="an unknown key"),
        pytest.param(question(key_id=None), 404, id="nobody, where nobody is let in"),
        pytest.param(question(more=1), 422, id="an unknown member"),
        pytest.param({"key_id": "key_alice"}, 422, id="no body"),
    ],
)
async def test_a_bad_question(asked: dict[str, Any], status: int) -> None:
    """Is refused, and explains nothing."""
    assert (await ask("POST", "/admin/explain", json=asked)).status_code == status


async def test_breakers_are_listed_by_target() -> None:
    """As metrics have them by provider."""
    assert (await ask("GET", "/admin/breakers")).json() == {"a/m": "open"}
