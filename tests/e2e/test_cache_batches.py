"""Batches of embeddings on a real Envoy: what is asked for, what is answered, what is paid."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NamedTuple

import httpx
import httpx2
import pytest
from openai import InternalServerError, OpenAI

from .stack import Stack, start_stack, wait_for

MODEL = "text-embedding-3-small"
PRICE_PICO_USD = 150_000  # of a token
NEVER = {"cache-control": "no-cache, no-store"}
_numbers = itertools.count(1)
_words = map("".join, itertools.product("abcdefghij", repeat=3))


class Caller(NamedTuple):
    """A client at a gateway, and the bodies it has sent."""

    stack: Stack
    key: str
    client: OpenAI
    sent: list[bytes]

    def embed(self, inputs: Any, headers: Any = None, **more: Any) -> Any:
        """Ask with the official client."""
        return self.client.embeddings.with_raw_response.create(
            **{"model": MODEL, "input": inputs, **more}, extra_headers=headers
        )

    def known(self, *inputs: Any, **more: Any) -> None:
        """Wait until each of these is kept, without having any asked for."""
        url = f"{self.stack.base}/v1/embeddings"
        body = {"model": MODEL, "encoding_format": "base64", "input": list(inputs), **more}
        headers = {"authorization": f"Bearer {self.key}", "cache-control": "only-if-cached"}
        wait_for(
            "the inputs to be kept",
            lambda: httpx.post(url, json=body, headers=headers).status_code == 200,
        )

    def row(self, answer: Any) -> dict[str, Any]:
        """Return the one row that the ledger has of an answer."""
        query = "SELECT * FROM outcomes WHERE request_id = ?"
        request_id = answer.headers["x-request-id"]
        (row,) = wait_for("the row", lambda: self.stack.rows(query, request_id))
        found: dict[str, Any] = row
        return found


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """Run one stack with the cache on, and one caller."""

    def change(config: dict[str, Any]) -> None:
        config["cache"] = {"enabled": True}

    stack = start_stack(tmp_path_factory.mktemp("batches"), change=change)
    sent: list[bytes] = []
    hooks = {"request": [lambda request: sent.append(request.content)]}
    try:
        key = stack.create_key("one", "--tenant", "one")
        with (
            httpx2.Client(event_hooks=hooks) as http,
            OpenAI(
                base_url=f"{stack.base}/v1", api_key=key, max_retries=0, http_client=http
            ) as client,
        ):
            yield Caller(stack, key, client, sent)
    finally:
        stack.stop()


@pytest.fixture
def caller(running: Caller) -> Caller:
    """Return the caller; the provider is well and has forgotten what it was asked."""
    running.stack.behave("a")
    httpx.delete(f"{running.stack.sims['a']}/sim/requests").raise_for_status()
    return running


@pytest.fixture
def texts() -> list[str]:
    """Return four texts of one to four tokens that nobody has asked for yet."""
    return [" ".join([next(_words)] * count) for count in range(1, 5)]


@pytest.mark.parametrize(
    ("tokens", "more"),
    [
        pytest.param(False, {}, id="texts, base64"),
        pytest.param(False, {"encoding_format": "float"}, id="texts, floats"),
        pytest.param(True, {"dimensions": 8}, id="tokens"),
        pytest.param(False, {"model": "renamed"}, id="a model by another name"),
    ],
)
def test_only_what_is_not_known_is_asked_for(
    caller: Caller, texts: list[str], tokens: bool, more: dict[str, Any]
) -> None:
    """The client gets what it would without a cache; a batch that is known reaches nobody."""
    inputs: list[Any] = [[next(_numbers)] * n for n in range(1, 5)] if tokens else texts
    a, b, c, d = inputs
    caller.embed([a, b], **more)
    caller.known(b, a, **more)
    part = caller.embed([b, c, a, d], **more)
    assert part.headers["cache-status"] == "llm-edge; fwd=partial; stored"
    assert (part.headers["x-llm-provider"], part.headers["x-llm-attempts"]) == ("a", "1")

    first, second = caller.stack.sim_log("a")
    whole, only = (json.dumps(o, separators=(",", ":")).encode() for o in ([b, c, a, d], [c, d]))
    body = caller.sent[-1].replace(whole, only).replace(b'"renamed"', b'"upstream-name"')
    assert second["body_sha256"] == sha256(body).hexdigest()
    assert second["usage_sent"]["prompt_tokens"] == 3 + 4

    caller.known(d, c, **more)
    told = caller.embed([d, c, b, a], **more)
    assert told.headers["cache-status"].startswith("llm-edge; hit; ttl=35")
    assert len(caller.stack.sim_log("a")) == 2

    uncached = caller.embed([b, c, a, d], NEVER, **more).parse()
    assert part.parse().data == uncached.data
    assert (part.parse().model, part.parse().usage.prompt_tokens) == (uncached.model, 3 + 4)
    assert told.parse().data == caller.embed([d, c, b, a], NEVER, **more).parse().data
    assert told.parse().usage == uncached.usage

    row, free = caller.row(part), caller.row(told)
    assert (row["input"], row["cost_pico_usd"], row["cache"]) == (7, 7 * PRICE_PICO_USD, "")
    assert (free["input"], free["cost_pico_usd"], free["cache"]) == (0, 0, "hit")
    assert first["usage_sent"]["prompt_tokens"] == 1 + 2


def test_an_error_passes_as_it_is(caller: Caller, texts: list[str]) -> None:
    """The provider's own, to what it was asked."""
    a, b, c, _ = texts
    caller.embed([a, b])
    caller.known(a, b)
    caller.stack.behave("a", status=500)
    with pytest.raises(InternalServerError) as caught:
        caller.embed([a, c])
    assert caught.value.response.headers["x-llm-provider"] == "a"
    failed = caller.stack.sim_log("a")[-1]
    assert (failed["status"], failed["prompt_tokens"]) == (500, 3)
    assert caller.row(caught.value.response)["cost_pico_usd"] == 0


def test_another_tenant_knows_nothing(caller: Caller, texts: list[str]) -> None:
    """It asks for the whole batch."""
    a, b, *_ = texts
    caller.embed([a, b])
    caller.known(a, b)
    key = caller.stack.create_key("stranger", "--tenant", "another")
    with OpenAI(base_url=f"{caller.stack.base}/v1", api_key=key, max_retries=0) as stranger:
        stranger.embeddings.create(model=MODEL, input=[a, b])
    assert [one["prompt_tokens"] for one in caller.stack.sim_log("a")] == [3, 3]


def test_a_body_that_envoy_refuses(caller: Caller) -> None:
    """Nothing has been decided by then, though the answer would have been asked for."""
    answer = httpx.post(
        f"{caller.stack.base}/v1/embeddings",
        content=iter([b" " * 2**20] * 12),
        headers={"authorization": f"Bearer {caller.key}"},
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
