"""A provider whose streams are watched: what it says passes as it said it, through a real Envoy.

That one that falls silent ends with an error event is shown beside the others in `test_failover`.
"""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from .stack import Stack
from .test_streams import body, headers
from .test_translation import WORDS

STREAMS: dict[str, tuple[str, dict[str, Any], str]] = {
    "chat": ("/v1/chat/completions", body(stream_options={"include_usage": True}), "a"),
    "responses": ("/v1/responses", {"input": "Grüße, 世界", "stream": True}, "a"),
    "messages": ("/v1/messages", {**body(), "max_tokens": 40}, "claude"),
}


@pytest.mark.parametrize(
    ("endpoint", "framing", "newline"),
    [
        *((endpoint, "random", "lf") for endpoint in STREAMS),
        ("chat", "event", "crlf"),
        ("messages", "event", "lf"),
        ("responses", "random", "crlf"),
        ("messages", "byte", "crlf"),
    ],
)
def test_the_bytes_of_a_watched_stream_are_the_providers(
    stack: Stack, key: str, endpoint: str, framing: str, newline: str
) -> None:
    """However the provider cuts them."""
    path, fields, provider = STREAMS[endpoint]
    payload = {**fields, "model": "watched" if provider == "a" else "watched-claude"}
    sim = headers(key, framing=framing, newline=newline, digest=1)
    with httpx.stream("POST", f"{stack.base}{path}", json=payload, headers=sim) as answer:
        assert answer.status_code == 200, answer.read()
        got = b"".join(answer.iter_raw())
    assert answer.headers["x-llm-provider"] == f"watched-{provider}"
    truth = stack.sim_log(provider)[-1]
    assert (truth["sent_bytes"], truth["finished"]) == (len(got), True)
    assert truth["sent_sha256"] == hashlib.sha256(got).hexdigest()


def test_a_watched_stream_is_settled_by_its_usage(stack: Stack) -> None:
    """The filters that read it see what they see of any other."""
    key = stack.create_key("watched")
    with OpenAI(base_url=f"{stack.base}/v1", api_key=key, max_retries=0) as chat:
        said: Any = [{"role": "user", "content": "Say something short."}]
        chunks = list(chat.chat.completions.create(model="watched", messages=said, stream=True))
    assert all(chunk.choices for chunk in chunks)  # usage was not asked for
    (row,) = stack.rows_for("watched", 1)
    truth = stack.sim_log("a")[-1]
    assert (row["input"], row["output"]) == (truth["prompt_tokens"], len(WORDS))
    assert (row["ended"], row["usage_source"]) == ("finished", "provider")
    assert (row["provider"], truth["model"]) == ("watched-a", "watched-model")


def test_documents_and_errors_of_a_watched_provider_pass(stack: Stack, chat: OpenAI) -> None:
    """There is nothing to watch, and the provider's words are its own."""
    said: Any = [{"role": "user", "content": "Say something short."}]
    answer = chat.chat.completions.create(model="watched", messages=said)
    assert answer.choices[0].message.content.split() == WORDS
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            chat.chat.completions.create(
                model="watched", messages=said, stream=stream, extra_headers={"x-sim-status": "400"}
            )
        assert caught.value.response.headers["x-llm-provider"] == "watched-a"
