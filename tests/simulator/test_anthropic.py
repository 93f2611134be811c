"""Anthropic's errors, models, counting and key check, as its own client sees them."""

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import AsyncAnthropic

from extproc.simulator.server import Simulator, start

MESSAGES = "/v1/messages"
HI = [{"role": "user", "content": "hi"}]
GOOD = {"model": "m", "max_tokens": 64, "messages": HI}
VERSION = {"anthropic-version": "2023-06-01"}


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    simulator = await start("127.0.0.1", 0, name="test", dialect="anthropic")
    yield simulator
    await simulator.close()


@pytest.fixture
async def client(sim: Simulator) -> AsyncIterator[AsyncAnthropic]:
    base_url = f"http://127.0.0.1:{sim.port}"
    async with AsyncAnthropic(base_url=base_url, api_key="sk-test", max_retries=0) as made:
        yield made


@pytest.mark.parametrize(
    ("path", "body", "begins"),
    [
        pytest.param(MESSAGES, b"{", "The request body is not valid JSON", id="not JSON"),
        pytest.param(MESSAGES, b'"\xff"', "The request body is not valid JSON", id="not UTF-8"),
        pytest.param(MESSAGES, b"[]", "Expected", id="not an object"),
        pytest.param(MESSAGES, {**GOOD, "model": 3}, "model: Expected", id="model is no text"),
        pytest.param(MESSAGES, {"messages": HI}, "model: Field required", id="no model"),
        pytest.param(
            MESSAGES, {"model": "m", "messages": HI}, "max_tokens: Field required", id="no bound"
        ),
        pytest.param(
            MESSAGES, {"model": "m", "max_tokens": 1}, "messages: Field required", id="no messages"
        ),
        pytest.param(
            MESSAGES,
            {**GOOD, "messages": [{"role": "user"}]},
            "messages.0: Object",
            id="no content",
        ),
        pytest.param(MESSAGES, {**GOOD, "max_tokens": 0}, "max_tokens: Expected", id="no room"),
        pytest.param(MESSAGES, {**GOOD, "temperature": 1.5}, "temperature: Expected", id="too hot"),
        pytest.param(
            f"{MESSAGES}/count_tokens", {"model": "m"}, "messages: Field required", id="no count"
        ),
    ],
)
async def test_bad_requests(path: str, body: Any, begins: str, send, sim) -> None:
    """Bad input is a 400 in Anthropic's shape whose message names the field."""
    answer = await send("POST", path, body, VERSION)
    assert answer.status == 400
    assert set(answer.json) == {"type", "error", "request_id"}
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert answer.json["error"]["message"].startswith(begins)
    assert (sim.requests[0].status, sim.requests[0].broke) == (400, "status")


async def test_a_request_without_a_version_is_refused(send) -> None:
    """The version header is required, as it is by the real provider."""
    answer = await send("POST", MESSAGES, GOOD)
    assert answer.status == 400
    assert answer.json["error"]["message"] == "anthropic-version: header is required"


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        pytest.param("GET", MESSAGES, 405, "invalid_request_error", id="GET on a POST endpoint"),
        pytest.param("POST", "/v1/models", 405, "invalid_request_error", id="POST on models"),
        pytest.param("GET", "/v1/models/none", 404, "not_found_error", id="unknown model"),
        pytest.param("POST", "/v1/complete", 404, "not_found_error", id="unknown path"),
    ],
)
async def test_wrong_places(method: str, path: str, status: int, kind: str, send) -> None:
    """What is not served is refused in JSON, with the id in header and body."""
    answer = await send(method, path, b"{}", VERSION)
    assert answer.status == status
    assert answer.json["error"]["type"] == kind
    assert answer.json["request_id"] == answer.headers["request-id"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, anthropic.BadRequestError),
        (401, anthropic.AuthenticationError),
        (403, anthropic.PermissionDeniedError),
        (404, anthropic.NotFoundError),
        (409, anthropic.ConflictError),
        (422, anthropic.UnprocessableEntityError),
        (429, anthropic.RateLimitError),
        (500, anthropic.InternalServerError),
        (503, anthropic.InternalServerError),
        (529, anthropic.InternalServerError),
    ],
)
async def test_simulated_statuses(
    status: int, kind: type[anthropic.APIStatusError], client: AsyncAnthropic, sim
) -> None:
    """The official client raises what it raises for the real provider."""
    headers = {"x-sim-status": str(status), "x-sim-retry-after": "7"}
    with pytest.raises(kind) as raised:
        await client.messages.create(**GOOD, extra_headers=headers)
    assert raised.value.status_code == status
    assert raised.value.request_id == sim.requests[0].answer_id
    retry_after = raised.value.response.headers.get("retry-after")
    assert retry_after == ("7" if status in {429, 503, 529} else None)
    record = sim.requests[0]
    assert (record.status, record.broke, record.usage_sent) == (status, "status", None)
    assert (record.model, record.finished, record.prompt_tokens) == ("m", False, 4)


async def test_models_are_listed_and_found() -> None:
    """Models are listed and found by the official client, those with a slash too."""
    simulator = await start("127.0.0.1", 0, dialect="anthropic", models=("a", "org/b"))
    url = f"http://127.0.0.1:{simulator.port}"
    async with AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == ["a", "org/b"]
        assert (await client.models.retrieve("org/b")).id == "org/b"
    await simulator.close()


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        pytest.param("x-api-key", "sk-right", 200, id="the key"),
        pytest.param("x-api-key", "sk-wrong", 401, id="another key"),
        pytest.param("authorization", "Bearer sk-right", 401, id="another header"),
    ],
)
async def test_key(header: str, value: str, status: int) -> None:
    """Only the configured key in `x-api-key` is let in."""
    sim = await start("127.0.0.1", 0, dialect="anthropic", api_key="sk-right")
    url = f"http://127.0.0.1:{sim.port}/v1/models"
    async with httpx.AsyncClient() as client:
        answer = await client.get(url, headers={header: value, **VERSION})
    assert answer.status_code == status
    assert answer.json().get("error", {}).get("type") == (
        None if status == 200 else "authentication_error"
    )
    await sim.close()


async def test_tokens_are_counted_as_they_are_charged(client: AsyncAnthropic) -> None:
    """`count_tokens` says what a message with the same prompt is then charged."""
    prompt = {"model": "m", "messages": HI, "system": "Be brief, please."}
    counted = await client.messages.count_tokens(**prompt)
    answer = await client.messages.create(**prompt, max_tokens=9)
    assert counted.input_tokens == answer.usage.input_tokens == 3 + 5 + 1
