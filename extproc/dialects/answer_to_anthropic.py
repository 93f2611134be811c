"""A chat completion as an Anthropic message, and its error as an Anthropic error.

Knows: both answer formats. Must not know: requests, streams' framing, Envoy.
Source: OpenAI API reference, Chat; Anthropic API reference, Messages, Errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from extproc.dialects.answer_to_openai import decoded
from extproc.dialects.translation import (
    Json,
    arguments_of,
    count_of,
    object_of,
    objects,
    text_of,
)

STOP: Final[Mapping[str, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_ERRORS: Final[Mapping[int, str]] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
FIRST_SERVER_ERROR: Final = 500
REASONING: Final = ("reasoning_content", "reasoning")  # what compatible servers call thinking


def answer(body: bytes) -> bytes | None:
    """Write a whole chat completion's first choice as a message; None where there is none."""
    completion = decoded(body)
    choices = objects(completion.get("choices"))
    if not choices:
        return None
    spoken = object_of(choices[0].get("message"))
    content: list[Json] = []
    thought = reasoning_of(spoken)
    if thought:
        content.append({"type": "thinking", "thinking": thought, "signature": ""})
    for name in ("content", "refusal"):
        text = text_of(spoken.get(name))
        if text:
            content.append({"type": "text", "text": text})
    for call in objects(spoken.get("tool_calls")):
        function = object_of(call.get("function"))
        content.append(
            {
                "type": "tool_use",
                "id": text_of(call.get("id")),
                "name": text_of(function.get("name")),
                "input": arguments_of(function.get("arguments")) or {},
            }
        )
    made: Json = {
        "id": message_id(completion.get("id")),
        "type": "message",
        "role": "assistant",
        "model": text_of(completion.get("model")),
        "content": content,
        "stop_reason": stop_reason(choices[0].get("finish_reason"), refused="refusal", of=spoken),
        "stop_sequence": None,
    }
    usage = usage_of(object_of(completion.get("usage")))
    if usage is not None:
        made["usage"] = usage
    return msgspec.json.encode(made)


def message_id(given: Any) -> str:
    """Return the provider's id as a message's."""
    return f"msg_{text_of(given)}"


def reasoning_of(spoken: Json) -> str:
    """Return what a model thought, where its server tells."""
    return next((text for name in REASONING if (text := text_of(spoken.get(name)))), "")


def stop_reason(finish: Any, *, refused: str, of: Json) -> str:
    """Return Anthropic's word; a refusal in words (the member `refused` of `of`) is a refusal."""
    if text_of(of.get(refused)):
        return "refusal"
    return STOP.get(text_of(finish), "end_turn")


def usage_of(usage: Json) -> Json | None:
    """Return Anthropic's usage, None where OpenAI's does not say what the prompt came to."""
    if usage.get("prompt_tokens") is None:
        return None
    prompt = count_of(usage.get("prompt_tokens"))
    details = object_of(usage.get("prompt_tokens_details"))
    cached = min(count_of(details.get("cached_tokens")), prompt)
    written = min(count_of(details.get("cache_write_tokens")), prompt - cached)
    return {
        "input_tokens": prompt - cached - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "output_tokens": count_of(usage.get("completion_tokens")),
    }


def error(body: bytes, status: int, request_id: str) -> bytes:
    """Write an error in Anthropic's shape; what is no error of OpenAI's is not quoted."""
    found = object_of(decoded(body).get("error"))
    made = {"type": "error", "error": error_of(found, status), "request_id": request_id}
    return msgspec.json.encode(made)


def error_of(found: Json, status: int) -> Json:
    """Return Anthropic's error object for OpenAI's."""
    usual = "api_error" if status >= FIRST_SERVER_ERROR else "invalid_request_error"
    message = text_of(found.get("message")) or f"The provider answered with status {status}."
    return {"type": _ERRORS.get(status, usual), "message": message}
