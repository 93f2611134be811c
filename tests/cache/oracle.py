"""The key of a call once more, from docs/cache-key.md alone: `json`, `Decimal` and `hashlib`.

Knows: the document. Must not know: anything of `extproc`. Slow on purpose: no step is shared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

HEADERS = ("anthropic-beta", "anthropic-version", "openai-beta", "x-llm-provider", "x-llm-strategy")

LEFT_OUT = {
    "chat": {
        *("model", "stream", "stream_options", "user", "safety_identifier", "metadata"),
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
    },
    "completions": {"model", "stream", "stream_options", "user"},
    "embeddings": {"model", "user"},
    "responses": {"model", "stream", "stream_options"},
    "messages": {"model", "stream", "metadata"},
}
NULLABLE: dict[str, set[str]] = {
    "chat": {
        *("audio", "frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens"),
        *("max_tokens", "modalities", "moderation", "n", "prediction", "presence_penalty"),
        *("reasoning_effort", "seed", "service_tier", "stop", "store", "temperature"),
        *("top_logprobs", "top_p", "verbosity"),
    },
    "completions": {
        *("best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n"),
        *("presence_penalty", "seed", "stop", "suffix", "temperature", "top_p"),
    },
    "embeddings": set(),
    "responses": {
        *("background", "context_management", "conversation", "include", "instructions"),
        *("max_output_tokens", "max_tool_calls", "metadata", "moderation", "parallel_tool_calls"),
        *("previous_response_id", "prompt", "prompt_cache_key", "prompt_cache_retention"),
        *("reasoning", "safety_identifier", "service_tier", "store", "temperature"),
        *("top_logprobs", "top_p", "truncation"),
    },
    "messages": {"cache_control", "container", "inference_geo", "speed"},
}
ONE, ZERO = Decimal(1), Decimal(0)
SAMPLED = {"temperature": ONE, "top_p": ONE}
GENERATED = {**SAMPLED, "n": ONE, "frequency_penalty": ZERO, "presence_penalty": ZERO}
DEFAULTS: dict[str, dict[str, Any]] = {
    "chat": {
        **GENERATED,
        "logprobs": False,
        "modalities": ["text"],
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "service_tier": "auto",
        "store": False,
        "verbosity": "medium",
    },
    "completions": {**GENERATED, "best_of": ONE, "echo": False},
    "embeddings": {"encoding_format": "float"},
    "responses": {
        **SAMPLED,
        "background": False,
        "parallel_tool_calls": True,
        "service_tier": "auto",
        "store": True,
        "text": {"format": {"type": "text"}},
        "truncation": "disabled",
    },
    "messages": {"temperature": ONE, "service_tier": "auto"},
}
BATCHED = {"completions": "prompt", "embeddings": "input"}


def canonical(endpoint: str, body: bytes, *, api_defaults: bool = True) -> bytes:
    """Return the canonical text of a body."""
    values = json.loads(body, parse_int=Decimal, parse_float=Decimal)
    usual_choice = "auto" if values.get("tools") else "none"
    kept = {}
    for name, value in values.items():
        if name in LEFT_OUT[endpoint] or (value is None and name in NULLABLE[endpoint]):
            continue
        if api_defaults and same(value, DEFAULTS[endpoint].get(name, ...)):
            continue
        if api_defaults and (endpoint, name, value) == ("chat", "tool_choice", usual_choice):
            continue
        one_stop = name == "stop" and endpoint in {"chat", "completions"} and isinstance(value, str)
        one_item = name == BATCHED.get(endpoint) and isinstance(value, list) and len(value) == 1
        if one_stop:
            kept[name] = [value]
        elif one_item and isinstance(value[0], str | list):
            kept[name] = value[0]
        else:
            kept[name] = value
    return write(kept).encode()


def same(value: Any, default: Any) -> bool:
    """Say whether a value is the default, true not being 1."""
    return type(value) is type(default) and bool(value == default)


def write(value: Any) -> str:
    """Write a decoded value as the document says."""
    if isinstance(value, dict):
        members = [f"{write(name)}:{write(value[name])}" for name in sorted(value)]
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(write, value)) + "]"
    if isinstance(value, Decimal):
        return number(value)
    return json.dumps(value, ensure_ascii=False)


def number(value: Decimal) -> str:
    """Write a number: all its digits where it is whole, else its digits and a power of ten."""
    sign, digits, power = value.as_tuple()
    assert isinstance(power, int)
    text = "".join(map(str, digits)).strip()
    kept = text.lstrip("0").rstrip("0")
    if not kept:
        return "0"
    power += len(text) - len(text.rstrip("0"))
    minus = "-" if sign else ""
    return f"{minus}{kept}{'0' * power}" if power >= 0 else f"{minus}{kept}e{power}"


def netstring(part: bytes) -> bytes:
    """Write one part with its length."""
    return str(len(part)).encode() + b":" + part + b","


def digest(  # noqa: PLR0917
    secret: bytes,
    scope: Sequence[str],
    policy: str,
    tier: str,
    endpoint: str,
    model: str,
    query: str,
    headers: Mapping[str, str],
    form: bytes,
) -> bytes:
    """Return the key."""

    def text(part: str) -> bytes:
        return netstring(part.encode("utf-8", "surrogatepass"))

    message = text("llm-edge-cache/1")
    message += netstring(b"".join(map(text, scope)))
    for part in (policy, tier, endpoint, model, query):
        message += text(part)
    message += netstring(b"".join(text(headers.get(name, "")) for name in HEADERS))
    message += netstring(form)
    return hashlib.blake2b(message, digest_size=32, key=hashlib.blake2b(secret).digest()).digest()
