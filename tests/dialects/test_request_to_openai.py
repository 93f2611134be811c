"""Anthropic requests for OpenAI: total over everything the caller may send."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from extproc.dialects import anthropic, openai, request_to_anthropic
from extproc.dialects.request_to_openai import translate
from extproc.domain import ENDPOINTS
from extproc.errors import Denied

CHAT = ENDPOINTS["POST", "/v1/chat/completions"]
MESSAGES = ENDPOINTS["POST", "/v1/messages"]
WORDS = st.sampled_from(
    [
        "system",
        "user",
        "assistant",
        "text",
        "image",
        "document",
        "tool_use",
        "tool_result",
        "thinking",
        "base64",
        "url",
        "auto",
        "any",
        "tool",
        "none",
        "json_schema",
        "",
        "x",
    ]
)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats(0, 1) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "type",
                    "text",
                    "source",
                    "url",
                    "data",
                    "media_type",
                    "name",
                    "input",
                    "id",
                    "tool_use_id",
                    "is_error",
                    "input_schema",
                    "cache_control",
                    "format",
                    "effort",
                    "title",
                    "strict",
                    "user_id",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries({"role": WORDS, "content": ANY})
BODY = st.fixed_dictionaries(
    {
        "model": st.just("m"),
        "max_tokens": st.just(5),
        "messages": st.lists(MESSAGE, min_size=1, max_size=4) | ANY,
    },
    optional=dict.fromkeys(
        [
            "tools",
            "tool_choice",
            "system",
            "stop_sequences",
            "temperature",
            "top_k",
            "thinking",
            "metadata",
            "output_config",
            "stream",
            "service_tier",
            "x",
        ],
        ANY,
    ),
)


@given(BODY)
def test_what_the_gateway_accepts_is_translated_to_what_it_would_accept(
    body: dict[str, Any],
) -> None:
    """No exception, and the result passes the other dialect's own checks but for empty talk."""
    raw = json.dumps(body).encode()
    try:
        anthropic.read(MESSAGES, raw)
    except Denied:
        return
    made = translate(raw, "upstream")
    assert made.lossy == tuple(sorted(made.lossy))
    assert all(name.isascii() for name in made.lossy)
    if json.loads(made.body)["messages"]:
        call = openai.read(CHAT, made.body)
        stream = body.get("stream") is True
        assert (call.model, call.stream, call.wants_usage) == ("upstream", stream, stream)


def test_there_and_back_is_the_same() -> None:
    """A conversation with tools that both dialects can say keeps its meaning over two translations."""
    said: dict[str, Any] = {
        "model": "m",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "Be kind."}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Paris?"}]},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t1", "name": "w", "input": {"c": "Paris"}}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "sun"},
                    {"type": "text", "text": "And?"},
                    {"type": "image", "source": {"type": "url", "url": "https://x.example/i"}},
                ],
            },
        ],
        "tools": [{"name": "w", "description": "d", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "stop_sequences": ["END"],
        "temperature": 0.5,
        "stream": True,
    }
    there = translate(json.dumps(said).encode(), "m")
    back = request_to_anthropic.translate(there.body, "m")
    assert (there.lossy, back.lossy) == ((), ())
    assert json.loads(back.body) == said
