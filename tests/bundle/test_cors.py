"""Web pages of the configured origins, and no others, may call the gateway: on a real Envoy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from extproc.bundle.cors import CORS, EXPOSED_HEADERS
from extproc.bundle.render import render
from extproc.config import load

from .harness import CHAT, Gateway, configured, running
from .scripted import deny, http_answer, plan

pytestmark = pytest.mark.asyncio(loop_scope="module")
PAGE = "https://app.example"
LOCAL = "http://localhost:3000"
ALLOW = "access-control-allow-origin"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """Start Envoy for the pages of two origins."""
    directory = tmp_path_factory.mktemp("cors")
    server = {"cors": {"allow_origins": [PAGE, LOCAL]}}
    async with running(directory, server=server) as gateway:
        yield gateway


async def preflight(gateway: Gateway, origin: str, path: str = CHAT, **more: str) -> httpx.Response:
    """Ask as a browser does before it sends a call with a key."""
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    async with gateway.client() as client:
        return await client.options(path, headers=asked)


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/v1/models/x", "/v1/messages"])
@pytest.mark.parametrize("origin", [PAGE, LOCAL])
async def test_a_preflight_is_answered_without_a_key(
    gateway: Gateway, origin: str, path: str
) -> None:
    """Envoy answers; the processor, which would ask for a key, is not asked."""
    answer = await preflight(gateway, origin, path)
    assert answer.status_code == 200
    assert answer.headers[ALLOW] == origin
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].split(", ")
    assert {"authorization", "x-api-key", "*"} <= set(allowed)
    assert answer.headers["access-control-max-age"] == "600"
    assert "access-control-allow-credentials" not in answer.headers
    assert gateway.processor.heads == []


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://app.example",
        "https://app.example:444",
        "https://app.example.evil.example",
        "https://sub.app.example",
        "null",
        "*",
    ],
)
async def test_another_origin_is_told_nothing(gateway: Gateway, origin: str) -> None:
    """A page of another origin may neither ask first nor read an answer."""
    assert ALLOW not in (await preflight(gateway, origin)).headers
    assert gateway.processor.heads == []
    assert ALLOW not in (await gateway.chat(origin=origin)).headers


async def test_a_page_may_read_our_headers(gateway: Gateway) -> None:
    """What we say of a call is readable, and the provider's own rule is not passed on."""
    theirs = {
        "access_control_allow_origin": "*",
        "access_control_allow_credentials": "true",
        "access_control_expose_headers": "leak",
    }
    gateway.providers["a"].answer = http_answer(200, b"{}", **theirs)
    answer = await gateway.chat(origin=PAGE)
    assert answer.status_code == 200
    assert answer.headers[ALLOW] == PAGE
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert exposed == list(EXPOSED_HEADERS)
    ours = {name for name in answer.headers if name.startswith(("x-llm-", "x-request-id"))}
    assert ours == {"x-llm-provider", "x-llm-model", "x-llm-attempts", "x-request-id"}
    assert ours <= set(exposed)
    assert "access-control-allow-credentials" not in answer.headers
    assert "origin" not in gateway.providers["a"].seen[0].headers


async def test_a_page_may_read_refusals(gateway: Gateway) -> None:
    """The processor's and Envoy's own errors are readable like answers."""
    gateway.processor.denies = lambda _: deny(401, b"{}")
    assert await allowed_and_status(gateway) == (PAGE, 401)
    gateway.processor.denies = lambda _: None
    gateway.processor.plans = lambda body: plan(("unknown", "m"), body=body)
    assert await allowed_and_status(gateway) == (PAGE, 503)


async def allowed_and_status(gateway: Gateway) -> tuple[str | None, int]:
    """Send one call of a page and return who may read the answer, and its status."""
    answer = await gateway.chat(origin=PAGE)
    return answer.headers.get(ALLOW), answer.status_code


async def test_an_options_request_that_is_no_preflight_is_not_let_in(gateway: Gateway) -> None:
    """Without the headers of a preflight it is a request like any other: there is no such route."""
    async with gateway.client() as client:
        answer = await client.options(CHAT, headers={"origin": PAGE})
    assert answer.status_code == 404
    assert gateway.processor.heads == []


async def test_a_star_lets_every_page_in(tmp_path: Path) -> None:
    """And still without the browser's own credentials."""
    server: Mapping[str, object] = {"cors": {"allow_origins": ["*"]}}
    async with running(tmp_path, server=server) as gateway:
        answer = await preflight(gateway, "https://any.example")
        assert (answer.status_code, answer.headers[ALLOW]) == (200, "https://any.example")
        assert "access-control-allow-credentials" not in answer.headers


async def test_without_origins_there_is_no_filter(tmp_path: Path) -> None:
    """The default bundle knows nothing of it."""
    off = render(load(None, {}))
    assert CORS not in off["lds.yaml"] + off["rds.yaml"]
    on = render(configured(tmp_path, {"server": {"cors": {"allow_origins": [PAGE]}}}))
    assert CORS in on["lds.yaml"]
    assert PAGE in on["rds.yaml"]
