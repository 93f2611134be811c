"""Chat requests for Anthropic: total over everything the caller may send."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from extproc.dialects import anthropic, openai
from extproc.dialects.request_to_anthropic import translate
from extproc.domain import ENDPOINTS
from extproc.errors import Denied

CHAT = ENDPOINTS["POST", "/v1/chat/completions"]
MESSAGES = ENDPOINTS["POST", "/v1/messages"]
WORDS = st.sampled_from(
    [
        "system",
        "developer",
        "user",
        "assistant",
        "tool",
        "function",
        "text",
        "image_url",
        "file",
        "auto",
        "required",
        "json_object",
        "json_schema",
        "data:image/png;base64,AA==",
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
                    "image_url",
                    "url",
                    "file",
                    "file_data",
                    "name",
                    "tool_calls",
                    "function",
                    "arguments",
                    "id",
                    "tool_call_id",
                    "parameters",
                    "schema",
                    "json_schema",
                    "detail",
                    "refusal",
                    "strict",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {"role": WORDS}, optional={"content": ANY, "tool_calls": ANY, "tool_call_id": ANY, "name": ANY}
)
BODY = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": st.lists(MESSAGE, min_size=1, max_size=4) | ANY},
    optional=dict.fromkeys(
        [
            "tools",
            "tool_choice",
            "stop",
            "temperature",
            "max_tokens",
            "response_format",
            "user",
            "safety_identifier",
            "n",
            "stream",
            "parallel_tool_calls",
            "x",
            "metadata",
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
        openai.read(CHAT, raw)
    except Denied:
        return
    made = translate(raw, "upstream")
    content = json.loads(made.body)
    assert made.lossy == tuple(sorted(made.lossy))
    assert all(name.isascii() for name in made.lossy)
    if content["messages"]:
        call = anthropic.read(MESSAGES, made.body)
        assert (call.model, call.stream) == ("upstream", body.get("stream") is True)
    roles = [turn["role"] for turn in content["messages"]]
    assert all(a != b for a, b in itertools.pairwise(roles))


def test_what_is_lost_is_named_within_bounds() -> None:
    """A caller's own names are not repeated, and a header has an end."""
    extra = {f"field_{n}": 1 for n in range(40)} | {"na\nme": 1, "x" * 65: 2}
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **extra}
    lossy = translate(json.dumps(body).encode(), "m").lossy
    assert len(lossy) == 17
    assert lossy[-1] == "more"
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "na\nme": 1}
    assert translate(json.dumps(body).encode(), "m").lossy == ("other",)


def test_numbers_and_text_survive_exactly() -> None:
    """Large integers in schemas, escapes and characters outside the BMP."""
    schema = {"type": "integer", "maximum": 2**63, "minimum": -0.1, "x": "\u0000😀\\"}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    body = {"model": "m", "messages": [{"role": "user", "content": "\u2028😀"}], "tools": [tool]}
    made = json.loads(translate(json.dumps(body).encode(), "m").body)
    assert made["tools"][0]["input_schema"] == schema
    assert made["messages"][0]["content"][0]["text"] == "\u2028😀"
