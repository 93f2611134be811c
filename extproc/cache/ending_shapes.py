"""The parts of recorded answers that say how they ended, and what such an ending is.

Knows: the fields and their types. Must not know: what they mean. Apart from `endings`, because that
is compiled and these classes cannot be.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

import msgspec


class How(Enum):
    """How the model stopped."""

    COMPLETE = auto()
    LENGTH = auto()  # at a bound of output tokens
    FILTERED = auto()
    REFUSED = auto()


class Ending(msgspec.Struct, frozen=True, gc=False):
    """`tools`: the client is asked to call some; `hosted`: the provider called some itself."""

    how: How
    tools: bool = False
    hosted: bool = False


ABSENT: Final = msgspec.Raw(b"")


class Said(msgspec.Struct, frozen=True, gc=False):
    """A message, or what a chunk adds to it."""

    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    function_call: msgspec.Raw = ABSENT


class Choice(msgspec.Struct, frozen=True, gc=False):
    finish_reason: str | None = None
    index: int = 0
    message: Said | None = None
    delta: Said | None = None


class Choices(msgspec.Struct, frozen=True, gc=False):
    choices: list[Choice] = []
    error: msgspec.Raw = ABSENT


class Typed(msgspec.Struct, frozen=True, gc=False):
    type: str


class Message(msgspec.Struct, frozen=True, gc=False):
    type: str
    stop_reason: str | None
    content: list[Typed]


class Stopped(msgspec.Struct, frozen=True, gc=False):
    stop_reason: str | None = None


class MessageEvent(msgspec.Struct, frozen=True, gc=False):
    type: str
    content_block: Typed | None = None
    delta: Stopped | None = None


class Item(msgspec.Struct, frozen=True, gc=False):
    type: str
    content: list[Typed] | None = None


class Incomplete(msgspec.Struct, frozen=True, gc=False):
    reason: str | None = None


class Response(msgspec.Struct, frozen=True, gc=False):
    status: str
    output: list[Item]
    incomplete_details: Incomplete | None = None


class ResponseEvent(msgspec.Struct, frozen=True, gc=False):
    type: str
    response: Response


class Embeddings(msgspec.Struct, frozen=True, gc=False):
    data: list[Embedding]


class Embedding(msgspec.Struct, frozen=True, gc=False):
    index: int
    embedding: msgspec.Raw
