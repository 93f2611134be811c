"""Which translation goes with which caller: the table of the two directions.

Knows: the names of the translations. Must not know: how they are done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from extproc.dialects import (
    answer_to_anthropic,
    answer_to_openai,
    request_to_anthropic,
    request_to_openai,
    stream_to_anthropic,
    stream_to_openai,
)
from extproc.dialects.translation import Translated
from extproc.domain import Dialect


class Translator(Protocol):
    """A stream's translation: bytes in as they come, bytes out."""

    def feed(self, chunk: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Direction:
    """All that one caller's dialect needs at a provider of the other.

    `request` takes the body and the model's name there; `answer` the body and the unix time, and is
    None where the body is no answer; `error` the body, the status and the request's id; `stream`
    the unix time.
    """

    request: Callable[[bytes, str], Translated]
    answer: Callable[[bytes, int], bytes | None]
    error: Callable[[bytes, int, str], bytes]
    stream: Callable[[int], Translator]


DIRECTIONS: Final[Mapping[Dialect, Direction]] = {
    "openai": Direction(
        request_to_anthropic.translate,
        answer_to_openai.answer,
        lambda body, status, _: answer_to_openai.error(body, status),
        stream_to_openai.Translator,
    ),
    "anthropic": Direction(
        request_to_openai.translate,
        lambda body, _: answer_to_anthropic.answer(body),
        answer_to_anthropic.error,
        lambda _: stream_to_anthropic.Translator(),
    ),
}
