"""What a call needs of a model beyond text."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from extproc.dialects import openai
from extproc.domain import ENDPOINTS
from tests.calls import CHAT, body

RESPONSES = ENDPOINTS["POST", "/v1/responses"]
TEXT = {"type": "text", "text": "image_url"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        pytest.param({}, set(), id="text"),
        pytest.param({"tools": []}, set(), id="an empty list of tools"),
        pytest.param({"tools": [{"type": "function"}]}, {"tools"}, id="tools"),
        pytest.param({"response_format": {"type": "json_object"}}, set(), id="JSON mode"),
        pytest.param({"response_format": {"type": "json_schema"}}, {"json_schema"}, id="a schema"),
        pytest.param({"response_format": None}, set(), id="a null"),
        pytest.param({"messages": [{"role": "user", "content": [TEXT]}]}, set(), id="text parts"),
        pytest.param(
            {
                "messages": [
                    {"role": "system", "content": "x"},
                    {"role": "user", "content": [TEXT, IMAGE]},
                ]
            },
            {"images"},
            id="an image among texts",
        ),
        pytest.param(
            {"tools": [{}], "messages": [{"role": "user", "content": [IMAGE]}]},
            {"tools", "images"},
            id="tools and an image",
        ),
    ],
)
def test_needs_of_a_chat(fields: dict[str, Any], needs: set[str]) -> None:
    """From the validated body, by structure and never by a word in a text."""
    assert openai.read(CHAT, body(**fields)).needs == needs


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        pytest.param({"input": "hello"}, set(), id="text"),
        pytest.param(
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            {"images"},
            id="an image",
        ),
        pytest.param({"text": {"format": {"type": "json_schema"}}}, {"json_schema"}, id="schema"),
    ],
)
def test_needs_of_a_response(fields: dict[str, Any], needs: set[str]) -> None:
    """The responses endpoint writes them differently."""
    raw = msgspec.json.encode({"model": "m", **fields})
    assert openai.read(RESPONSES, raw).needs == needs
