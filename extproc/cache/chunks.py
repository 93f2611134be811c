"""A stream of chunks as one document and back, as far as chat and completions share it.

Knows: chunks, their choices, usage and end. Must not know: what a choice of either API holds.
Source: OpenAI API reference, Chat and Completions, streaming.

Of members no API page names: one that says the same in every chunk that has it is the document's,
and goes out with the first chunk; one that differs between chunks cannot be folded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, Final, Protocol

from extproc.cache.recorded import (
    DONE,
    CannotTell,
    a_list,
    agree,
    an_index,
    an_object,
    document,
    encode,
    events,
)
from extproc.dialects.translation import Json

# What every chunk says again; some providers leave it empty in chunks of their own making.
_STAMP: Final = ("id", "created", "model")
_REPEATED: Final = (*_STAMP, "service_tier", "system_fingerprint")
_OWN: Final = frozenset({"choices", "usage", "object"})
_END: Final = b"data: " + DONE + b"\n\n"


class Choice(Protocol):
    """Puts one choice together."""

    def hear(self, piece: Json) -> None:
        """Take in the choice's part of a chunk, which it may change. Raises CannotTell."""

    def told(self) -> Json:
        """Return the whole choice. Raises CannotTell where it has no end."""


def fold(body: bytes, kind: str, begin: Callable[[], Choice]) -> bytes:
    """Return the document whose stream this is; `kind` is its `object`. Raises CannotTell."""
    whole: Json = {}
    usage: Json | None = None
    choices: dict[int, Choice] = {}
    seen: Json | None = None
    for chunk in _chunks(body):
        pieces = a_list(chunk.pop("choices", None))
        used = chunk.pop("usage", None)
        if used is not None:
            usage = an_object(used)
        chunk.pop("obfuscation", None)  # padding
        if chunk != seen:  # rarely
            seen = chunk
            _agree(whole, chunk)
        for piece in pieces:
            index = an_index(an_object(piece).get("index"))
            choice = choices.get(index)
            if choice is None:
                choice = choices[index] = begin()
            choice.hear(piece)
    if not choices:
        raise CannotTell("a stream has no choices")
    whole["object"] = kind
    whole["choices"] = [choices[index].told() for index in sorted(choices)]
    if usage is not None:
        whole["usage"] = usage
    return encode(whole)


def _chunks(body: bytes) -> Iterator[Json]:
    for data in events(body):
        if data == DONE:
            return
        yield document(data)
    raise CannotTell("a stream has no end")


def _agree(whole: Json, chunk: Json) -> None:
    if chunk.get("error") is not None:
        raise CannotTell("a stream holds an error")
    chunk = {name: value for name, value in chunk.items() if name != "object"}
    for name in _STAMP:
        if not chunk.get(name):
            chunk.pop(name, None)
    agree(whole, chunk)


def lists_of(kept: Json | None, found: Any, names: Collection[str]) -> Json | None:
    """Add to the lists of an object, of the names given, what a chunk has of them.

    Raises CannotTell for other members: whether they add up is unknown.
    """
    if found is None:
        return kept
    kept = {} if kept is None else kept
    for name, values in an_object(found).items():
        if values is None:
            kept.setdefault(name, None)
        elif name not in names:
            raise CannotTell("the log probabilities hold a field that is not known")
        elif kept.get(name) is None:
            kept[name] = a_list(values)
        else:
            kept[name] += a_list(values)
    return kept


class Script:
    """Writes the chunks of one document in order, as for a call that asks for usage."""

    __slots__ = ("_after", "_before", "_extra", "_usage")

    def __init__(self, whole: Json, kind: str) -> None:
        if whole.get("error") is not None:
            raise CannotTell("an error was recorded")
        usage = whole.get("usage")
        self._usage = None if usage is None else encode(an_object(usage))
        head = {"object": kind} | {name: whole[name] for name in _REPEATED if name in whole}
        self._before = b"data: " + encode(head)[:-1] + b',"choices":['
        self._after = b"]}\n\n" if self._usage is None else b'],"usage":null}\n\n'
        extra = {k: v for k, v in whole.items() if k not in head and k not in _OWN}
        self._extra = b"," + encode(extra)[1:-1] if extra else b""

    def chunk(self, piece: Json) -> bytes:
        """Return a chunk with a part of one choice."""
        extra, self._extra = self._extra, b""
        if extra:
            return self._before + encode(piece) + b"]" + extra + self._after[1:]
        return self._before + encode(piece) + self._after

    def end(self) -> bytes:
        """Return the last events: usage where it is told, and the end."""
        if self._usage is None:
            return _END
        return self._before + b'],"usage":' + self._usage + b"}\n\n" + _END


def choices_of(whole: Json) -> list[Json]:
    """Return the choices of a document by index. Raises CannotTell."""
    choices = {an_index(an_object(one).get("index")): one for one in a_list(whole.get("choices"))}
    if not choices or len(choices) != len(whole["choices"]):
        raise CannotTell("a document's choices have no index each")
    for choice in choices.values():
        ended(choice)
    return [choices[index] for index in sorted(choices)]


def ended(choice: Json) -> None:
    """Raise CannotTell where a choice does not say why it ended."""
    if type(choice.get("finish_reason")) is not str:
        raise CannotTell("a choice has no end")
