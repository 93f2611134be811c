"""A kept text completion as the other form of itself.

Knows: text completions, whole and streamed. Must not know: stores, keys, HTTP.
Source: OpenAI API reference, Completions.
"""

from __future__ import annotations

from typing import Final

from extproc.cache import chunks
from extproc.cache.recorded import a_text, agree, document
from extproc.dialects.translation import Json

KIND: Final = "text_completion"
_LOGPROBS: Final = frozenset({"tokens", "token_logprobs", "top_logprobs", "text_offset"})


def fold(body: bytes) -> bytes:
    """Return the document whose stream this is. Raises CannotTell."""
    return chunks.fold(body, KIND, _Choice)


def unfold(body: bytes) -> bytes:
    """Return the stream of a document: per choice its text, then its end. Raises CannotTell."""
    whole = document(body)
    script = chunks.Script(whole, KIND)
    out: list[bytes] = []
    for choice in chunks.choices_of(whole):
        ended = {"text": "", "logprobs": None}
        spoken = {"index": choice["index"], "text": a_text(choice.get("text"))}
        spoken |= {"logprobs": choice.get("logprobs"), "finish_reason": None}
        out += (script.chunk(spoken), script.chunk(choice | ended))
    out.append(script.end())
    return b"".join(out)


class _Choice:
    __slots__ = ("_logprobs", "_rest", "_text")

    def __init__(self) -> None:
        self._text: list[str] = []
        self._logprobs: Json | None = None
        self._rest: Json = {}

    def hear(self, piece: Json) -> None:
        text = piece.pop("text", None)
        if text is not None:
            self._text.append(a_text(text))
        self._logprobs = chunks.lists_of(self._logprobs, piece.pop("logprobs", None), _LOGPROBS)
        agree(self._rest, piece)

    def told(self) -> Json:
        chunks.ended(self._rest)
        return self._rest | {"text": "".join(self._text), "logprobs": self._logprobs}
