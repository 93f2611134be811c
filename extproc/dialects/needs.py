"""What a call needs of a model beyond text: tools, images, a JSON schema.

Knows: how the OpenAI endpoints write these. Must not know: which targets there are.
Source: https://platform.openai.com/docs/api-reference (chat, responses).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from extproc.domain import NOTHING_SPECIAL

TOOLS: Final = "tools"
IMAGES: Final = "images"
JSON_SCHEMA: Final = "json_schema"
IMAGE_PARTS: Final = frozenset({"image_url", "input_image", "image"})


def needs_of(body: dict[str, Any]) -> frozenset[str]:
    """Name what a body that was validated needs; unknown shapes need nothing.

    `body` holds the decoded members. Linear in the number of messages and parts.
    """
    found = set()
    if body.get("tools"):
        found.add(TOOLS)
    if _asks_schema(body.get("response_format")) or _asks_schema(_text_format(body.get("text"))):
        found.add(JSON_SCHEMA)
    for member in ("messages", "input"):
        messages = body.get(member)
        if isinstance(messages, list) and _has_image(messages):
            found.add(IMAGES)
    return frozenset(found) if found else NOTHING_SPECIAL


def _asks_schema(asked: object) -> bool:
    return isinstance(asked, dict) and asked.get("type") == "json_schema"


def _text_format(text: object) -> object:
    return text.get("format") if isinstance(text, dict) else None


def _has_image(messages: Sequence[Any]) -> bool:
    for message in messages:
        if type(message) is not dict:
            return False  # texts or tokens: one kind, and no parts
        content = message.get("content")
        if type(content) is list:
            for part in content:
                if type(part) is dict and part.get("type") in IMAGE_PARTS:
                    return True
    return False
