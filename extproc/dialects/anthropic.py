"""The Anthropic wire format on the request path: read a call, rewrite it by splicing bytes.

Knows: the fields of messages and count_tokens the gateway relies on, their types and ranges.
Must not know: which providers exist, limits, Envoy, or what answers look like.
Fields not named here pass through untouched and unchecked: the provider knows its own.
Source: https://docs.anthropic.com/en/api/messages, .../messages-count-tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from extproc.dialects.json_body import Members, fit, members
from extproc.dialects.needs import needs_of
from extproc.dialects.openai_shapes import MAX_MODEL_CHARS, MAX_TOKENS
from extproc.dialects.splice import Edit, Rewritten, bound_edits, splice
from extproc.domain import Call, Endpoint

Fraction: TypeAlias = Annotated[float, Meta(ge=0, le=1)]

_HOUR: Final = (b'1h"', b"\\u0031", b"\\u0068")  # as JSON may write it


class _Block(msgspec.Struct, frozen=True, gc=False):
    type: str


class _Message(msgspec.Struct, frozen=True, gc=False):
    role: Literal["user", "assistant", "system"]
    content: str | list[_Block]


class _Count(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    model: Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_CHARS)]
    messages: Annotated[list[_Message], Meta(min_length=1)]
    system: str | list[_Block] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None


class _Create(_Count, kw_only=True, frozen=True, gc=False):
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    stream: bool | None = None
    temperature: Fraction | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    stop_sequences: list[str] | None = None
    metadata: dict[str, Any] | None = None


_LEGAL: Final[Mapping[str, str]] = {
    "max_tokens": f"an integer from 1 to {MAX_TOKENS}",
    "messages": "a non-empty list of messages",
    "messages[]": "an object with a role and content",
    "messages[].content": "a string or a list of content blocks",
    "messages[].content[]": "an object with a type",
    "messages[].content[].type": "a string",
    "messages[].role": "one of user, assistant, system",
    "metadata": "an object",
    "model": f"a non-empty string of at most {MAX_MODEL_CHARS} characters",
    "stop_sequences": "a list of strings",
    "stream": "true or false",
    "system": "a string or a list of text blocks",
    "system[]": "an object with a type",
    "system[].type": "a string",
    "temperature": "a number from 0 to 1",
    "thinking": "an object",
    "tool_choice": "an object",
    "tools": "a list of objects",
    "top_k": "an integer of at least 0",
    "top_p": "a number from 0 to 1",
}


def read(endpoint: Endpoint, body: bytes) -> Call:
    """Validate a request body and return the call it makes.

    `max_output_tokens` is `max_tokens`, 1 for a count, which generates nothing. `text_bytes` is the
    whole body, as in the other dialect. Streams report usage whether asked or not.

    Raises `Denied` (400) naming the field and what is legal there; content is never quoted.
    """
    return call_of(endpoint, members(body), len(body))


def call_of(endpoint: Endpoint, parsed: Members, body_bytes: int) -> Call:
    """Return what `read` does for a body of so many bytes whose members are read already."""
    stream, bound = False, 1
    if endpoint.name == "messages":
        shape = fit(parsed.values, _Create, _LEGAL)
        stream, bound = shape.stream is True, shape.max_tokens
        model = shape.model
    else:
        model = fit(parsed.values, _Count, _LEGAL).model
    return Call(
        endpoint=endpoint,
        model=model,
        stream=stream,
        wants_usage=True,
        model_span=parsed.spans["model"],
        stream_options_span=None,
        object_start=parsed.object_start,
        max_output_tokens=bound,
        choices=1,
        text_bytes=body_bytes,
        needs=needs_of(parsed.values),
        limit_spans=(parsed.spans["max_tokens"],) if endpoint.name == "messages" else (),
    )


def may_keep_an_hour(body: bytes) -> bool:
    """Say whether a body may ask for a cache of an hour: `"ttl": "1h"`, wherever it may stand.

    By bytes, because looking at every block costs more; a text that looks alike is said to, too.
    """
    return any(written in body for written in _HOUR)


def rewrite(
    body: bytes, call: Call, upstream_model: str, max_output_tokens: int | None = None
) -> Rewritten:
    """Splice in the model's upstream name and a lower bound, where one is given; no other byte."""
    edits: list[Edit] = []
    if max_output_tokens is not None and call.limit_spans:
        edits = bound_edits(body, call, max_output_tokens, "max_tokens")
    name = None if upstream_model == call.model else upstream_model
    return splice(body, call.model_span, name, edits)
