"""An Anthropic message as a chat completion, and its error as an OpenAI error.

Knows: both answer formats. Must not know: requests, streams' framing, Envoy.
Source: Anthropic API reference, Messages, Errors; OpenAI API reference, Chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from extproc.dialects.translation import Json, count_of, object_of, objects, text_of

FINISH: Final[Mapping[str, str]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
# Anthropic's word, OpenAI's type and code.
_ERRORS: Final[Mapping[str, tuple[str, str | None]]] = {
    "invalid_request_error": ("invalid_request_error", None),
    "authentication_error": ("authentication_error", "invalid_api_key"),
    "billing_error": ("insufficient_quota", "insufficient_quota"),
    "permission_error": ("permission_error", "permission_denied"),
    "not_found_error": ("invalid_request_error", "model_not_found"),
    "request_too_large": ("invalid_request_error", "request_too_large"),
    "rate_limit_error": ("rate_limit_error", "rate_limit_exceeded"),
    "timeout_error": ("server_error", "timeout"),
    "overloaded_error": ("server_error", "overloaded"),
    "api_error": ("server_error", None),
}


def answer(body: bytes, created: int) -> bytes | None:
    """Write a whole message as a chat completion; None where it is no message.

    `created` is unix seconds. What the prompt cache read and wrote is part of `prompt_tokens`.
    """
    message = decoded(body)
    if message.get("type") != "message":
        return None
    spoken: Json = {"role": "assistant", "content": None, "refusal": None}
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Json] = []
    for block in objects(message.get("content")):
        kind = block.get("type")
        if kind == "text":
            texts.append(text_of(block.get("text")))
        elif kind == "thinking":
            thoughts.append(text_of(block.get("thinking")))
        elif kind == "tool_use":
            arguments = msgspec.json.encode(object_of(block.get("input"))).decode()
            calls.append(tool_call(block, arguments))
    if texts or not calls:
        spoken["content"] = "".join(texts)
    if thoughts:
        spoken["reasoning_content"] = "".join(thoughts)
    if calls:
        spoken["tool_calls"] = calls
    choice = {
        "index": 0,
        "message": spoken,
        "logprobs": None,
        "finish_reason": finish_reason(message.get("stop_reason")),
    }
    made: Json = {
        "id": text_of(message.get("id")),
        "object": "chat.completion",
        "created": created,
        "model": text_of(message.get("model")),
        "choices": [choice],
    }
    usage = usage_of(object_of(message.get("usage")))
    if usage is not None:
        made["usage"] = usage
    return msgspec.json.encode(made)


def tool_call(block: Json, arguments: str) -> Json:
    """Return a tool call of a message."""
    function = {"name": text_of(block.get("name")), "arguments": arguments}
    return {"id": text_of(block.get("id")), "type": "function", "function": function}


def finish_reason(stop_reason: Any) -> str:
    """Return OpenAI's word; an unknown reason is an ordinary end."""
    return FINISH.get(text_of(stop_reason), "stop")


def usage_of(usage: Json) -> Json | None:
    """Return OpenAI's usage, None where Anthropic's does not say what the prompt came to."""
    if usage.get("input_tokens") is None:
        return None
    cached = count_of(usage.get("cache_read_input_tokens"))
    written = count_of(usage.get("cache_creation_input_tokens"))
    prompt = count_of(usage.get("input_tokens")) + cached + written
    output = count_of(usage.get("output_tokens"))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
    }


def error(body: bytes, status: int) -> bytes:
    """Write an error in OpenAI's shape; what is no error of Anthropic's is not quoted."""
    return msgspec.json.encode({"error": error_of(object_of(decoded(body).get("error")), status)})


def error_of(found: Json, status: int) -> Json:
    """Return OpenAI's error object for Anthropic's."""
    kind = text_of(found.get("type")) or "api_error"
    type_, code = _ERRORS.get(kind, ("server_error", None))
    message = text_of(found.get("message")) or f"The provider answered with status {status}."
    return {"message": message, "type": type_, "param": None, "code": code}


def decoded(body: bytes) -> Json:
    """Return the object a body holds, an empty one where it holds none."""
    try:
        return object_of(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
