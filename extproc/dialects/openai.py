"""The OpenAI wire format on the request path: read a call, rewrite it by splicing bytes.

Knows: the fields of the four OpenAI endpoints the gateway relies on, their types and ranges.
Must not know: which providers exist, limits, Envoy, or what answers look like.
Fields not named here pass through untouched and unchecked: the provider knows its own.
Source: https://platform.openai.com/docs/api-reference (chat, completions, embeddings, responses).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from extproc.dialects.json_body import fit, members, spans
from extproc.dialects.needs import needs_of
from extproc.dialects.splice import Edit, Rewritten, bound_edits, splice
from extproc.domain import Call, Endpoint, EndpointName, Span
from extproc.errors import Denied

MAX_MODEL_CHARS: Final = 256  # the longest Hugging Face and Bedrock ids stay below
MAX_TOKENS: Final = 2**31 - 1  # providers count in 32 bits; products of it fit 64-bit counters

Tokens: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
Choices: TypeAlias = Annotated[int, Meta(ge=1, le=128)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
Seed: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Stop: TypeAlias = str | Annotated[list[str], Meta(max_length=4)]
# A text, texts, the tokens of a text, or the tokens of texts; msgspec allows one list in a union,
# so `_same_kind` checks that the items agree.
TextOrTokens: TypeAlias = (
    str | Annotated[list[str | int | Annotated[list[int], Meta(min_length=1)]], Meta(min_length=1)]
)
Texts: TypeAlias = (
    Annotated[str, Meta(min_length=1)]
    | Annotated[list[str | int | Annotated[list[int], Meta(min_length=1)]], Meta(min_length=1)]
)


class _Part(msgspec.Struct, frozen=True, gc=False):
    type: str


class _Message(msgspec.Struct, frozen=True, gc=False):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct, frozen=True, gc=False):
    include_usage: bool | None = None


class _Body(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    model: Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_CHARS)]
    user: str | None = None


class _Sampled(_Body, kw_only=True, frozen=True, gc=False):
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None


class _Generated(_Sampled, kw_only=True, frozen=True, gc=False):
    max_tokens: Tokens | None = None
    n: Choices | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: Stop | None = None


class _Chat(_Generated, kw_only=True, frozen=True, gc=False):
    messages: Annotated[list[_Message], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class _Completion(_Generated, kw_only=True, frozen=True, gc=False):
    prompt: TextOrTokens | None
    best_of: Annotated[int, Meta(ge=0, le=20)] | None = None


class _Embedding(_Body, kw_only=True, frozen=True, gc=False):
    input: Texts
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] | None = None


class _Response(_Sampled, kw_only=True, frozen=True, gc=False):
    input: str | list[dict[str, Any]] | None = None
    max_output_tokens: Tokens | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


_SHAPES: Final[Mapping[EndpointName, type[_Body]]] = {
    "chat": _Chat,
    "completions": _Completion,
    "embeddings": _Embedding,
    "responses": _Response,
}

_TOKENS: Final = f"an integer from 1 to {MAX_TOKENS}"
_TEXTS: Final = "a string, or a non-empty list of strings, of integers or of lists of integers"
_LEGAL: Final[Mapping[str, str]] = {
    "best_of": "an integer from 0 to 20",
    "dimensions": "an integer of at least 1",
    "encoding_format": "'float' or 'base64'",
    "frequency_penalty": "a number from -2 to 2",
    "logprobs": "true or false",
    "max_completion_tokens": _TOKENS,
    "max_output_tokens": _TOKENS,
    "max_tokens": _TOKENS,
    "messages": "a non-empty list of messages",
    "messages[]": "an object with a role",
    "messages[].content": "a string, a list of content parts, or null",
    "messages[].content[]": "an object with a type",
    "messages[].content[].type": "a string",
    "messages[].role": "one of system, developer, user, assistant, tool, function",
    "model": f"a non-empty string of at most {MAX_MODEL_CHARS} characters",
    "n": "an integer from 1 to 128",
    "presence_penalty": "a number from -2 to 2",
    "prompt": f"{_TEXTS}, or null",
    "response_format": "an object",
    "seed": "a 64-bit integer",
    "stop": "a string or a list of at most 4 strings",
    "stream": "true or false",
    "stream_options": "an object, and only with stream set to true",
    "stream_options.include_usage": "true or false",
    "temperature": "a number from 0 to 2",
    "tool_choice": "a string or an object",
    "tools": "a list of objects",
    "top_logprobs": "an integer from 0 to 20",
    "top_p": "a number from 0 to 1",
    "user": "a string",
}
_LEGAL_BY_ENDPOINT: Final[Mapping[EndpointName, Mapping[str, str]]] = {
    "chat": _LEGAL,
    "completions": _LEGAL,
    "embeddings": {**_LEGAL, "input": _TEXTS.replace("a string", "a non-empty string", 1)},
    "responses": {**_LEGAL, "input": "a string or a list of input items"},
}

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
    parsed = members(body)
    shape = fit(parsed.values, _SHAPES[endpoint.name], _LEGAL_BY_ENDPOINT[endpoint.name])
    stream = False
    wants_usage = False
    bound: int | None = None
    choices = 1
    if isinstance(shape, _Sampled):
        stream = shape.stream is True
        wants_usage = (
            shape.stream_options is not None and shape.stream_options.include_usage is True
        )
    match shape:
        case _Chat():
            bound = max(shape.max_tokens or 0, shape.max_completion_tokens or 0) or None
            choices = shape.n or 1
        case _Completion():
            bound = shape.max_tokens
            choices = max(shape.n or 1, shape.best_of or 1) * _texts("prompt", shape.prompt)
        case _Embedding():
            _texts("input", shape.input)
        case _Response():
            bound = shape.max_output_tokens
    if isinstance(shape, _Generated) and shape.stream_options is not None and not stream:
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
        text_bytes=len(body),
        limit_spans=_given(_BOUNDS[endpoint.name], parsed.spans),
        needs=needs_of(parsed.values),
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
