"""The shapes of OpenAI's request bodies: the fields the gateway relies on, their types and ranges.

Knows: what is legal where, and how that is told. Must not know: how bodies are read or rewritten.
Apart from `openai`, because that is compiled and these classes cannot be.
Source: https://platform.openai.com/docs/api-reference (chat, completions, embeddings, responses).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from extproc.domain import EndpointName

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


class Part(msgspec.Struct, frozen=True, gc=False):
    type: str


class Message(msgspec.Struct, frozen=True, gc=False):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None


class StreamOptions(msgspec.Struct, frozen=True, gc=False):
    include_usage: bool | None = None


class Body(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    model: Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_CHARS)]
    user: str | None = None


class Sampled(Body, kw_only=True, frozen=True, gc=False):
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None


class Generated(Sampled, kw_only=True, frozen=True, gc=False):
    max_tokens: Tokens | None = None
    n: Choices | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: Stop | None = None


class Chat(Generated, kw_only=True, frozen=True, gc=False):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class Completion(Generated, kw_only=True, frozen=True, gc=False):
    prompt: TextOrTokens | None
    best_of: Annotated[int, Meta(ge=0, le=20)] | None = None


class Embedding(Body, kw_only=True, frozen=True, gc=False):
    input: Texts
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] | None = None


class Response(Sampled, kw_only=True, frozen=True, gc=False):
    input: str | list[dict[str, Any]] | None = None
    max_output_tokens: Tokens | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


SHAPES: Final[Mapping[EndpointName, type[Body]]] = {
    "chat": Chat,
    "completions": Completion,
    "embeddings": Embedding,
    "responses": Response,
}

_TOKENS: Final = f"an integer from 1 to {MAX_TOKENS}"
_TEXTS: Final = "a string, or a non-empty list of strings, of integers or of lists of integers"
LEGAL: Final[Mapping[str, str]] = {
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
LEGAL_BY_ENDPOINT: Final[Mapping[EndpointName, Mapping[str, str]]] = {
    "chat": LEGAL,
    "completions": LEGAL,
    "embeddings": {**LEGAL, "input": _TEXTS.replace("a string", "a non-empty string", 1)},
    "responses": {**LEGAL, "input": "a string or a list of input items"},
}
