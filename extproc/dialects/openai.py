"""The OpenAI wire format on the request path: read a call, rewrite it by splicing bytes.

Knows: the fields of the four OpenAI endpoints the gateway relies on, their types and ranges.
Must not know: which providers exist, limits, Envoy, or what answers look like.
Fields not named here pass through untouched and unchecked: the provider knows its own.
Source: https://platform.openai.com/docs/api-reference (chat, completions, embeddings, responses).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from extproc.dialects.json_body import Members, fit, members, spans
from extproc.dialects.needs import needs_of
from extproc.dialects.openai_shapes import (
    LEGAL_BY_ENDPOINT,
    SHAPES,
    Chat,
    Completion,
    Embedding,
    Generated,
    Response,
    Sampled,
)
from extproc.dialects.splice import Edit, Rewritten, bound_edits, splice
from extproc.domain import Call, Endpoint, EndpointName, Span
from extproc.errors import Denied

# The bounds of output a body may hold; the first is the one set where there is none.
_BOUNDS: Final[Mapping[EndpointName, tuple[str, ...]]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "embeddings": (),
    "responses": ("max_output_tokens",),
}
_INCLUDE_USAGE: Final = b'"include_usage":true'
_USAGE_ON_REQUEST: Final = frozenset({"chat", "completions"})  # streams that omit usage by default


def read(endpoint: Endpoint, body: bytes) -> Call:
    """Validate a request body and return the call it makes.

    `max_output_tokens` is the caller's bound per choice (the larger where chat has both names).
    `choices` counts the answers generated: max(n, best_of) for each prompt of a completions call.
    `text_bytes` is the whole body: byte-level tokenizers give at most one token per byte of text,
    and JSON's framing outweighs a chat template's. Not a bound for images given by URL.

    Raises `Denied` (400) naming the field and what is legal there; content is never quoted.
    """
    return call_of(endpoint, members(body), len(body))


def call_of(endpoint: Endpoint, parsed: Members, body_bytes: int) -> Call:
    """Return what `read` does for a body of so many bytes whose members are read already."""
    shape = fit(parsed.values, SHAPES[endpoint.name], LEGAL_BY_ENDPOINT[endpoint.name])
    stream = False
    wants_usage = False
    bound: int | None = None
    choices = inputs = 1
    if isinstance(shape, Sampled):
        stream = shape.stream is True
        wants_usage = (
            shape.stream_options is not None and shape.stream_options.include_usage is True
        )
    match shape:
        case Chat():
            bound = max(shape.max_tokens or 0, shape.max_completion_tokens or 0) or None
            choices = shape.n or 1
        case Completion():
            bound = shape.max_tokens
            choices = max(shape.n or 1, shape.best_of or 1) * _texts("prompt", shape.prompt)
        case Embedding():
            inputs = _texts("input", shape.input)
        case Response():
            bound = shape.max_output_tokens
    if isinstance(shape, Generated) and shape.stream_options is not None and not stream:
        raise Denied(
            "invalid_request_error",
            "The 'stream_options' parameter is only allowed when 'stream' is true.",
            param="stream_options",
        )
    return Call(
        endpoint=endpoint,
        model=shape.model,
        stream=stream,
        wants_usage=wants_usage,
        model_span=parsed.spans["model"],
        stream_options_span=parsed.spans.get("stream_options"),
        object_start=parsed.object_start,
        max_output_tokens=bound,
        choices=choices,
        text_bytes=body_bytes,
        limit_spans=_given(_BOUNDS[endpoint.name], parsed.spans),
        needs=needs_of(parsed.values),
        inputs=inputs,
    )


def _given(names: Sequence[str], present: Mapping[str, Span]) -> tuple[Span, ...]:
    return tuple(present[name] for name in names if name in present)


def rewrite(
    body: bytes, call: Call, upstream_model: str, max_output_tokens: int | None = None
) -> Rewritten:
    """Splice in the model's upstream name and, for streams that need it, the wish for usage.

    `max_output_tokens`, where given, becomes the bound of every choice: those the caller wrote are
    lowered to it, and where there is none it is added.

    `call` is what `read` returned for `body`. Chat and completions streams report usage only when
    `stream_options.include_usage` is true; where the caller did not ask, it is added or set, other
    options kept. Responses streams always report it. All other bytes stay as they are.
    """
    edits: list[Edit] = []
    if max_output_tokens is not None:
        edits += bound_edits(body, call, max_output_tokens, _BOUNDS[call.endpoint.name][0])
    strip_usage = call.stream and not call.wants_usage and call.endpoint.name in _USAGE_ON_REQUEST
    if strip_usage:
        edits.append(_usage_edit(body, call))
    name = None if upstream_model == call.model else upstream_model
    return splice(body, call.model_span, name, edits, strip_usage=strip_usage)


def _usage_edit(body: bytes, call: Call) -> Edit:
    """Return what to replace, and by what, so that `stream_options.include_usage` is true."""
    at = call.stream_options_span
    if at is None:  # never the last member: `model` is there
        start = call.object_start
        return Span(start, start), b'"stream_options":{' + _INCLUDE_USAGE + b"},"
    options = body[at.start : at.stop]
    if options == b"null":
        return at, b"{" + _INCLUDE_USAGE + b"}"
    present = spans(options)
    old = present.get("include_usage")
    if old is not None:
        return Span(at.start + old.start, at.start + old.stop), b"true"
    start = at.start + 1
    return Span(start, start), _INCLUDE_USAGE + (b"," if present else b"")


def _texts(field: str, given: str | list[Any] | None) -> int:
    """Count the texts in a prompt or input; refuse a list of mixed kinds."""
    if given is None or isinstance(given, str):
        return 1
    kinds = set(map(type, given))
    if len(kinds) > 1:
        raise Denied(
            "invalid_request_error",
            f"Invalid value for '{field}': expected items of one kind: strings, integers or lists "
            "of integers.",
            param=field,
        )
    return 1 if kinds == {int} else len(given)
