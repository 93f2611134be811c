"""A kept answer told again, in the form a call asks for.

Knows: which endpoints stream, and what a kept answer becomes in either form. Must not know: stores,
keys, clocks, HTTP beyond the type of the content.

An answer told in the form it was recorded in is the recorded bytes. Told in the other form it is
made of what those say: the document a stream adds up to, or the events that add up to a document.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeAlias

from msgspec.structs import replace

from extproc.answers import Entry
from extproc.cache import replay_chat, replay_completions, replay_messages, replay_responses
from extproc.cache.recorded import CannotTell
from extproc.cache.retold import Retold
from extproc.cache.usage_event import without_usage

__all__ = ["DOCUMENT", "EVENTS", "CannotTell", "Told", "other_form", "replay"]

DOCUMENT: Final = "application/json"
EVENTS: Final = "text/event-stream; charset=utf-8"  # as both APIs write it
_USAGE_ON_REQUEST: Final = frozenset({"chat", "completions"})  # streams that omit usage by default

_Retell: TypeAlias = Callable[[bytes], bytes]
_retold: Final = Retold()


class Told(NamedTuple):
    """What to answer: the type of the content and the whole body."""

    content_type: str
    body: bytes


# For each endpoint that streams: a stream as a document, and a document as a stream.
_OTHER_FORM: Final[Mapping[str, tuple[_Retell, _Retell]]] = {
    "chat": (replay_chat.fold, replay_chat.unfold),
    "completions": (replay_completions.fold, replay_completions.unfold),
    "responses": (replay_responses.fold, replay_responses.unfold),
    "messages": (replay_messages.fold, replay_messages.unfold),
}


def replay(entry: Entry, *, stream: bool, include_usage: bool) -> Told:
    """Tell a kept answer to a call that asks for a stream or for a document.

    `include_usage` is what the call says in `stream_options`; it counts for chat and completions
    streams alone. Linear in the size of the entry; recorded bytes as they are, and what this very
    entry was told as before, cost no more for being long.

    Raises CannotTell as `other_form` does; then it is a miss.
    """
    if not stream:
        if entry.form == "json":
            return Told(DOCUMENT, entry.body)
        return Told(DOCUMENT, _retold.told(entry, "document", lambda: other_form(entry).body))
    if not include_usage and entry.endpoint in _USAGE_ON_REQUEST:
        body = _retold.told(entry, "stream without usage", lambda: without_usage(_stream(entry)))
        return Told(EVENTS, body)
    if entry.form == "sse":
        return Told(EVENTS, entry.body)
    return Told(EVENTS, _retold.told(entry, "stream", lambda: _stream(entry)))


def _stream(entry: Entry) -> bytes:
    return entry.body if entry.form == "sse" else other_form(entry).body


def other_form(entry: Entry) -> Entry:
    """Return the entry as if its answer had been recorded in the other form.

    A stream of many pieces costs 2.5 us for each.

    Raises CannotTell where the answer cannot be told so without changing what it says, and for
    recorded bytes that are no answer.
    """
    forms = _OTHER_FORM.get(entry.endpoint)
    if forms is None:
        raise CannotTell("an endpoint that does not stream")
    fold, unfold = forms
    try:
        if entry.form == "sse":
            return replace(entry, form="json", body=fold(entry.body))
        return replace(entry, form="sse", body=unfold(entry.body))
    except RecursionError:
        raise CannotTell("what was recorded is nested too deeply") from None
