"""A kept chat completion as the other form of itself.

Knows: chat completions, whole and streamed. Must not know: stores, keys, HTTP.
Source: OpenAI API reference, Chat and Chat streaming; `reasoning_content` as DeepSeek and vLLM and
`reasoning` as OpenRouter stream it, piece by piece.

What one form says and the other has no place for cannot be told: audio, annotations, custom tools
and every field not named here that is not empty. What is made equal on the way: a message that
calls tools or refuses has null for empty content, empty thoughts and empty lists of calls are left
out, and a document folded of a stream has `annotations: []`, for a stream that has some is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from extproc.cache import chunks
from extproc.cache.recorded import (
    CannotTell,
    a_list,
    a_text,
    agree,
    an_index,
    an_object,
    document,
    says_nothing,
)
from extproc.dialects.translation import Json

WHOLE: Final = "chat.completion"
CHUNK: Final = "chat.completion.chunk"
_THOUGHTS: Final = ("reasoning_content", "reasoning")
_TEXTS: Final = frozenset({"content", "refusal", *_THOUGHTS})
_MESSAGE: Final = _TEXTS | {"role", "tool_calls"}
_LOGPROBS: Final = frozenset({"content", "refusal"})
_NOTHING_YET: Final[Json] = {"logprobs": None, "finish_reason": None}


def fold(body: bytes) -> bytes:
    """Return the document whose stream this is. Raises CannotTell."""
    return chunks.fold(body, WHOLE, _Choice)


def unfold(body: bytes) -> bytes:
    """Return the stream of a document. Raises CannotTell.

    Per choice: its role, thoughts, text, refusal, two chunks for every tool call, and its end.
    """
    whole = document(body)
    script = chunks.Script(whole, CHUNK)
    out: list[bytes] = []
    for choice in chunks.choices_of(whole):
        index, logprobs = choice["index"], choice.get("logprobs")
        message = an_object(choice.pop("message", None))
        for name, value in message.items():
            if name not in _MESSAGE and not says_nothing(value):
                raise CannotTell("a message holds a field that is not known")
        for told, delta in _deltas(message):
            piece = {"index": index, "delta": delta, **_NOTHING_YET}
            if told and logprobs is not None:
                piece["logprobs"], logprobs = logprobs, None
            out.append(script.chunk(piece))
        out.append(script.chunk(choice | {"delta": {}, "logprobs": logprobs}))
    out.append(script.end())
    return b"".join(out)


def _deltas(message: Json) -> Iterator[tuple[bool, Json]]:
    """Yield the deltas of a message, and whether log probabilities may tell of each."""
    content = message.get("content")
    yield (
        False,
        {
            "role": message.get("role") or "assistant",
            "content": None if content is None else "",
            "refusal": None,
        },
    )
    for name in (*_THOUGHTS, "content", "refusal"):
        text = message.get(name)
        if text is not None and a_text(text):
            yield name not in _THOUGHTS, {name: text}
    for number, call in enumerate(a_list(message.get("tool_calls") or [])):
        function = an_object(an_object(call).get("function"))
        if call.get("type") != "function" or function.keys() != {"name", "arguments"}:
            raise CannotTell("a tool call is not one of a function")
        opening = call | {"function": function | {"arguments": ""}}
        yield False, {"tool_calls": [{"index": number, **opening}]}
        if a_text(function["arguments"]):
            more = {"index": number, "function": {"arguments": function["arguments"]}}
            yield False, {"tool_calls": [more]}


class _Choice:
    __slots__ = ("_calls", "_logprobs", "_rest", "_role", "_seen", "_texts")

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {name: [] for name in _TEXTS}
        self._calls: dict[int, _Call] = {}
        self._role: Json = {}
        self._logprobs: Json | None = None
        self._rest: Json = {}
        self._seen: Json | None = None

    def hear(self, piece: Json) -> None:
        delta = an_object(piece.pop("delta", None))
        logprobs = piece.pop("logprobs", None)
        if piece != self._seen:
            self._seen = piece
            agree(self._rest, piece)
        if logprobs is not None:
            self._logprobs = chunks.lists_of(self._logprobs, logprobs, _LOGPROBS)
        for name, value in delta.items():
            if type(value) is str and name in _TEXTS:
                self._texts[name].append(value)
            elif says_nothing(value):
                continue
            elif name == "role":
                agree(self._role, {"role": value or None})
            elif name == "tool_calls":
                self._call(value)
            else:
                raise CannotTell("a delta holds a field that is not known")

    def _call(self, pieces: Any) -> None:
        for piece in a_list(pieces):
            index = an_index(an_object(piece).pop("index", None))
            if index not in self._calls:
                self._calls[index] = _Call()
            self._calls[index].hear(piece)

    def told(self) -> Json:
        chunks.ended(self._rest)
        texts = {name: "".join(pieces) for name, pieces in self._texts.items()}
        content: str | None = texts["content"]
        if not content and (self._calls or texts["refusal"] or not self._texts["content"]):
            content = None
        message: Json = {"role": "assistant", **self._role, "content": content}
        message |= {"refusal": texts["refusal"] or None, "annotations": []}
        message |= {name: texts[name] for name in _THOUGHTS if texts[name]}
        if self._calls:
            message["tool_calls"] = [self._calls[index].told() for index in sorted(self._calls)]
        return self._rest | {"message": message, "logprobs": self._logprobs}


class _Call:
    """Puts one tool call together; what is empty says nothing, for some repeat names as such."""

    __slots__ = ("_arguments", "_name", "_rest")

    def __init__(self) -> None:
        self._arguments: list[str] = []
        self._name: Json = {}
        self._rest: Json = {}

    def hear(self, piece: Json) -> None:
        function = piece.pop("function", None)
        agree(self._rest, {name: value for name, value in piece.items() if value != ""})
        for name, value in an_object({} if function is None else function).items():
            if value is None or value == "":
                continue
            if name == "arguments":
                self._arguments.append(a_text(value))
            elif name == "name":
                agree(self._name, {"name": value})
            else:
                raise CannotTell("a function holds a field that is not known")

    def told(self) -> Json:
        named = type(self._rest.get("id")) is str and type(self._name.get("name")) is str
        if not named or self._rest.get("type", "function") != "function":
            raise CannotTell("a tool call is not one of a function")
        function = {**self._name, "arguments": "".join(self._arguments)}
        return {"type": "function", **self._rest, "function": function}
