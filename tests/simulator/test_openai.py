"""OpenAI's errors, models and key check, as its own client sees them."""

import json
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from extproc.simulator.server import start

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        pytest.param(CHAT, b"{", None, id="not JSON"),
        pytest.param(CHAT, b"", None, id="nothing"),
        pytest.param(CHAT, b'"\xff"', None, id="not UTF-8"),
        pytest.param(CHAT, b'{"model": "\xff"}', None, id="a text that is not UTF-8"),
        pytest.param(CHAT, b'{"x":' + b"[" * 100_000, None, id="nested past any use"),
        pytest.param(CHAT, b"[]", None, id="not an object"),
        pytest.param(CHAT, {"messages": HI}, "model", id="no model"),
        pytest.param(CHAT, {"model": "m"}, "messages", id="no messages"),
        pytest.param(CHAT, {"model": "m", "messages": None}, "messages", id="null messages"),
        pytest.param(CHAT, {"model": "m", "messages": []}, "messages", id="empty messages"),
        pytest.param(CHAT, {"model": 3, "messages": HI}, "model", id="model is no text"),
        pytest.param(CHAT, {"model": "", "messages": HI}, None, id="empty model"),
        pytest.param(
            CHAT, {"model": "m", "messages": [{}]}, "messages[0]", id="a message without a role"
        ),
        pytest.param(
            CHAT, {"model": "m", "messages": HI, "max_tokens": 0}, "max_tokens", id="no room"
        ),
        pytest.param(CHAT, {"model": "m", "messages": HI, "n": 129}, "n", id="too many choices"),
        pytest.param(
            CHAT, {"model": "m", "messages": HI, "stream": "yes"}, "stream", id="stream is text"
        ),
        pytest.param(
            CHAT,
            {"model": "m", "messages": HI, "stream_options": {"include_usage": True}},
            None,
            id="stream options without a stream",
        ),
        pytest.param("/v1/completions", {"model": "m"}, "prompt", id="no prompt"),
        pytest.param(
            "/v1/completions", {"model": "m", "prompt": [1, "a"]}, None, id="mixed prompts"
        ),
        pytest.param("/v1/embeddings", {"model": "m"}, "input", id="nothing to embed"),
        pytest.param("/v1/embeddings", {"model": "m", "input": []}, "input", id="an empty list"),
        pytest.param("/v1/embeddings", {"model": "m", "input": ""}, None, id="an empty text"),
        pytest.param(
            "/v1/embeddings",
            {"model": "m", "input": "a", "encoding_format": "hex"},
            "encoding_format",
            id="unknown encoding",
        ),
        pytest.param("/v1/responses", {"model": "m"}, "input", id="no input"),
        pytest.param("/v1/responses", {"input": "hi"}, "model", id="no model for a response"),
    ],
)
async def test_bad_requests(path: str, body: Any, param: str | None, send, sim) -> None:
    """Bad input is a 400 in OpenAI's shape that names the parameter."""
    answer = await send("POST", path, body)
    assert answer.status == 400
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert answer.json["error"]["param"] == param
    assert (sim.requests[0].status, sim.requests[0].broke) == (400, "status")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        pytest.param("GET", CHAT, 405, "method_not_supported", id="GET on a POST endpoint"),
        pytest.param("POST", "/v1/models", 405, "method_not_supported", id="POST on models"),
        pytest.param("GET", "/v1/models/none", 404, "model_not_found", id="unknown model"),
        pytest.param("POST", "/v1/audio", 404, "not_found", id="unknown path"),
        pytest.param("GET", "/", 404, "not_found", id="root"),
    ],
)
async def test_wrong_places(method: str, path: str, status: int, code: str, send) -> None:
    """What is not served is refused in JSON."""
    answer = await send(method, path, b"{}")
    assert answer.status == status
    assert answer.json["error"]["code"] == code
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (502, openai.InternalServerError),
        (503, openai.InternalServerError),
        (504, openai.InternalServerError),
        (599, openai.InternalServerError),
    ],
)
async def test_simulated_statuses(
    status: int, kind: type[openai.APIStatusError], client: AsyncOpenAI, sim
) -> None:
    """The official client raises what it raises for the real provider."""
    headers = {"x-sim-status": str(status), "x-sim-retry-after": "7"}
    with pytest.raises(kind) as raised:
        await client.chat.completions.create(model="m", messages=HI, extra_headers=headers)
    assert raised.value.status_code == status
    assert raised.value.request_id == sim.requests[0].answer_id
    retry_after = raised.value.response.headers.get("retry-after")
    assert retry_after == ("7" if status in {429, 503} else None)
    record = sim.requests[0]
    assert (record.status, record.broke, record.usage_sent) == (status, "status", None)
    assert (record.model, record.finished, record.prompt_tokens) == ("m", False, 4)


async def test_models(client: AsyncOpenAI) -> None:
    """Models are listed and found, also those with a slash in their name."""
    simulator = await start("127.0.0.1", 0, models=("a", "org/b"))
    async with client.with_options(base_url=f"http://127.0.0.1:{simulator.port}/v1") as other:
        assert [model.id async for model in other.models.list()] == ["a", "org/b"]
        assert (await other.models.retrieve("org/b")).id == "org/b"
    await simulator.close()


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        pytest.param("Bearer sk-right", 200, id="the key"),
        pytest.param("bearer sk-right", 200, id="the scheme in lower case"),
        pytest.param("Bearer sk-wrong", 401, id="another key"),
        pytest.param("Basic sk-right", 401, id="another scheme"),
        pytest.param("", 401, id="nothing"),
    ],
)
async def test_key(authorization: str, status: int) -> None:
    """Only the configured key is let in, and the log shows what was presented."""
    sim = await start("127.0.0.1", 0, api_key="sk-right")
    url = f"http://127.0.0.1:{sim.port}/v1/models"
    async with httpx.AsyncClient() as client:
        answer = await client.get(url, headers={"authorization": authorization})
    assert answer.status_code == status
    assert answer.json().get("error", {}).get("code") == (
        None if status == 200 else "invalid_api_key"
    )
    assert sim.requests[0].headers["authorization"] == authorization
    await sim.close()


async def test_error_bodies_are_json_whatever_the_client_sent(send) -> None:
    """Quotes in a path cannot break the error that repeats it."""
    answer = await send("GET", '/v1/models/a"b%22')
    assert json.loads(answer.body)["error"]["message"] == "The model 'a\"b\"' does not exist"
