"""Read what a provider says an answer used.

Knows: the usage objects of OpenAI (chat, completions, embeddings: `prompt_tokens`; responses:
`input_tokens`) and of Anthropic (`input_tokens` besides what its prompt cache read and wrote), what
servers that speak OpenAI's API call a cache's writes, and that Anthropic's streams tell in two
parts. Must not know: events, chunks, prices, or who cut the
text out of the answer.
Whatever the text is, the answer is a Usage or None, never an exception, in time linear in its size.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from extproc.domain import Usage, UsageSource

MAX_BELIEVED_TOKENS: Final = 10**9  # a thousand times the largest context window there is
# A quote inside a JSON string is escaped, so this literal is a member's name, never an answer's
# or a prompt's text.
_NAME: Final = '"usage"'
_START: Final = "message_start "  # what the probe puts before the parts of an Anthropic stream
_OBJECT: Final = re.compile(r"[ \t\r\n]*:[ \t\r\n]*(?=\{)")
_WRITTEN: Final = "cache_creation_input_tokens"
_INPUTS: Final = ("input_tokens", "cache_read_input_tokens", _WRITTEN, "cache_creation")


class _Implausible(Exception):
    """A count nobody can have meant."""


def _no_constant(name: str) -> object:
    raise ValueError(name)


# NaN and Infinity are not JSON. The scanner itself, because `raw_decode` around it is not compiled.
_scanner: Final[Any] = json.JSONDecoder(parse_constant=_no_constant)
_scan: Final = _scanner.scan_once
_NONE: Final[dict[str, Any]] = {}


def read_usage(text: str) -> Usage | None:
    """Return the usage object that stands last in a piece of an answer, None without a good one.

    `text` holds a JSON document or SSE event, whole or cut at either end. Only the last `"usage"`
    whose value is an object is asked: one that is cut or implausible (not a whole number of 0 to
    10**9) is None, because an earlier one may be the caller's own text, a tool's schema say.
    After `message_start ` the text holds the usage of that event, then the last one: what the last
    does not say of the input is what the first said. A first one alone is of a stream that was cut:
    its input counts, with source PARTIAL, and its output is not known.
    Output may be missing (embeddings), input not; a null stands for a missing member.
    Source: OpenAI API reference, CompletionUsage, CreateEmbeddingResponse, ResponseUsage; Anthropic
    API reference, Messages, Usage and streaming.
    """
    if not text.startswith(_START):
        found = _last_object(text)
        return None if found is None else _usage(found, UsageSource.PROVIDER)
    second = text.find(_NAME, len(_START) + len(_NAME))
    start = _last_object(text[:second] if second >= 0 else text)
    if second < 0:
        begun = None if start is None else _usage(start, UsageSource.PARTIAL)
        # Because a translated stream begins before its input is known, with a count of 0.
        return begun if begun is not None and begun.input else None
    last = _last_object(text)
    if last is None:
        return None
    if last.get("input_tokens") is None and start is not None:
        last = {**last, **{name: start.get(name) for name in _INPUTS}}
    told = _usage(last, UsageSource.PROVIDER)
    # Because no prompt has no tokens: the provider behind a translation did not say.
    return told if told is not None and told.input else None


def _usage(found: dict[str, Any], source: UsageSource) -> Usage | None:
    try:
        counted = _first(found, "prompt_tokens", "input_tokens")
        output = _first(found, "completion_tokens", "output_tokens") or 0
        details = _object(found, "prompt_tokens_details")
        if details is None:
            details = _object(found, "input_tokens_details") or _NONE
        cached = _count(details.get("cached_tokens")) or 0
        # OpenAI and OpenRouter say the first, LiteLLM the others.
        written = _first(details, "cache_write_tokens", "cache_creation_tokens")
        if written is None:
            written = _count(found.get(_WRITTEN)) or 0
        if counted is not None and "prompt_tokens" not in found and not details:
            # Anthropic counts what its cache read and wrote beside the input, OpenAI within it.
            cached = _count(found.get("cache_read_input_tokens")) or 0
            counted += cached + written
        written_1h = 0
        if written:
            by_life = _object(found, "cache_creation") or _NONE
            written_1h = _count(by_life.get("ephemeral_1h_input_tokens")) or 0
    except _Implausible:
        return None
    if counted is None:
        return None
    if source is UsageSource.PARTIAL:
        output = 0
    cached = min(cached, counted)
    written = min(written, counted - cached)
    return Usage(counted, output, cached, source, written, min(written_1h, written))


def _last_object(text: str) -> dict[str, Any] | None:
    end = len(text)
    while (start := text.rfind(_NAME, 0, end)) >= 0:
        at = start + len(_NAME)
        if text[at : at + 2] == ":{":  # as most write it; the pattern takes ten times as long
            at += 1
        else:
            value = _OBJECT.match(text, at)
            if value is None:
                end = start
                continue
            at = value.end()
        try:
            found, _ = _scan(text, at)
        except (ValueError, RecursionError, StopIteration):  # cut, not JSON, or without end
            return None
        return found if isinstance(found, dict) else None
    return None


def _first(members: dict[str, Any], name: str, other: str) -> int | None:
    value = members.get(name)
    return _count(members.get(other) if value is None else value)


def _object(members: dict[str, Any], name: str) -> dict[str, Any] | None:
    value = members.get(name)
    return value if isinstance(value, dict) else None


def _count(value: object) -> int | None:
    if value is None:
        return None
    if type(value) is int:
        if 0 <= value <= MAX_BELIEVED_TOKENS:
            return value
        raise _Implausible
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Implausible
    if not 0 <= value <= MAX_BELIEVED_TOKENS or value != int(value):
        raise _Implausible
    return int(value)
