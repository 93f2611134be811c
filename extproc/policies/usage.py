"""Read what a provider says an answer used.

Knows: the OpenAI usage objects (chat, completions, embeddings: `prompt_tokens`; responses:
`input_tokens`). Must not know: events, chunks, who cut the text out of the answer, or prices.
Whatever the text is, the answer is a Usage or None, never an exception, in time linear in its size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from extproc.domain import Usage, UsageSource

MAX_BELIEVED_TOKENS: Final = 10**9  # a thousand times the largest context window there is
# A quote inside a JSON string is escaped, so this literal is a member's name, never an answer's
# or a prompt's text.
_NAME: Final = '"usage"'
_OBJECT: Final = re.compile(r"[ \t\r\n]*:[ \t\r\n]*(?=\{)")


class _Implausible(Exception):
    """A count nobody can have meant."""


def _no_constant(name: str) -> object:
    raise ValueError(name)


_decoder: Final = json.JSONDecoder(parse_constant=_no_constant)  # NaN and Infinity are not JSON


def read_usage(text: str) -> Usage | None:
    """Return the usage object that stands last in a piece of an answer, None without a good one.

    `text` holds a JSON document or SSE event, whole or cut at either end. Only the last `"usage"`
    whose value is an object is asked: one that is cut or implausible (not a whole number of 0 to
    10**9) is None, because an earlier one may be the caller's own text, a tool's schema say.
    Output may be missing (embeddings), input not; a null stands for a missing member.
    Source: OpenAI API reference, CompletionUsage, CreateEmbeddingResponse, ResponseUsage.
    """
    found = _last_object(text)
    if found is None:
        return None
    try:
        counted = _first(found, "prompt_tokens", "input_tokens")
        output = _first(found, "completion_tokens", "output_tokens") or 0
        details = _first_object(found, "prompt_tokens_details", "input_tokens_details")
        cached = _first(details, "cached_tokens") or 0
    except _Implausible:
        return None
    if counted is None:
        return None
    return Usage(counted, output, min(cached, counted), UsageSource.PROVIDER)


def _last_object(text: str) -> Mapping[str, Any] | None:
    end = len(text)
    while (start := text.rfind(_NAME, 0, end)) >= 0:
        value = _OBJECT.match(text, start + len(_NAME))
        if value is None:
            end = start
            continue
        try:
            found, _ = _decoder.raw_decode(text, value.end())
        except (ValueError, RecursionError):  # cut, not JSON, or braces without end
            return None
        return found if isinstance(found, dict) else None
    return None


def _first(members: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = members.get(name)
        if value is not None:
            return _count(value)
    return None


def _first_object(members: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in names:
        value = members.get(name)
        if isinstance(value, dict):
            return value
    return {}


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Implausible
    if not 0 <= value <= MAX_BELIEVED_TOKENS or value != int(value):
        raise _Implausible
    return int(value)
