"""A stream that passes as it came, an event at a time, and the event that says it was broken off.

Knows: where events end, which of them end a stream, and each API's error event. Must not know: what
else is in an event, who reads it, Envoy, time.
Sources: WHATWG HTML 9.2.6; OpenAI API reference, Chat and Responses streaming (the Responses API
sends the error as an object, where its reference has the object's fields beside the type: here are
both); Anthropic API reference, Streaming messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias

import msgspec

from extproc.dialects import answer_to_anthropic, answer_to_openai
from extproc.dialects.stream_to_openai import BROKE_OFF, STREAM_FAILED

Api: TypeAlias = Literal["chat", "responses", "messages"]
MAX_HELD_BYTES: Final = 65_536  # of an event that has not ended; more is passed on in pieces
# An end of line and an empty line; a CR that comes last may be half of one end.
_EVENT_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_LONGEST_END: Final = 4
# What nothing has to follow: the APIs' ends of a stream, and an error that the provider told.
_LAST: Final = rb"message_stop|error|response\.(?:completed|failed|incomplete)"
_OVER: Final = re.compile(
    rb"(?:^|[\r\n])(?:data: ?\[DONE\]"
    rb"|event: ?(?:%b)[\r\n]"
    rb'|data: ?\{"(?:error"|type": ?"(?:%b)"))' % (_LAST, _LAST)
)
# One of these is in each of them: looked for first, because the expression costs 6 us a chunk.
_HINTS: Final[Mapping[Api, tuple[bytes, ...]]] = {
    "chat": (b"[DONE]", b'"error"'),
    "responses": (b".completed", b".failed", b".incomplete", b"error"),
    "messages": (b"message_stop", b"error"),
}
_NUMBER: Final = re.compile(rb'"sequence_number": ?(\d{1,15})\b')


class Unchanged:
    """Feed it a stream's bytes as they come; what it returns, one after the other, is the same.

    Half an event is held back, because an error event could not follow it.
    """

    __slots__ = ("_api", "_held", "_hints", "_last", "_open", "_over")

    def __init__(self, api: Api) -> None:
        self._api: Api = api
        self._hints = _HINTS[api]
        self._held = b""
        self._last = b""  # what was passed on last
        self._open = False  # that ended within an event
        self._over = False

    def feed(self, chunk: bytes) -> bytes:
        """Return what of it can be passed on."""
        data = self._held + chunk
        at = _after_events(data, max(0, len(self._held) - _LONGEST_END + 1))
        passed, self._held = data[:at], data[at:]
        if passed:
            self._open = False
        if len(self._held) > MAX_HELD_BYTES:
            passed, self._held, self._open = data, b"", True
        if passed:
            self._last = passed
            for hint in self._hints:
                if hint in passed:
                    self._over = self._over or _OVER.search(passed) is not None
        return passed

    def rest(self) -> bytes:
        """Return what was held back, when the stream has ended."""
        held, self._held = self._held, b""
        return held

    def broken(self) -> bytes:
        """Return the error event in the place of what did not come.

        Nothing where the stream had said all, or where an event that was too long is cut.
        """
        if self._over or self._open:
            return b""
        return _EVENTS[self._api](self._last)


def _after_events(data: bytes, start: int) -> int:
    """Return where the last event ends that ends in `data`, 0 where none does."""
    if b"\r" not in data:
        found = data.rfind(b"\n\n", start)
        return found + 2 if found >= 0 else 0
    at = 0
    for end in _EVENT_END.finditer(data, start):
        at = end.end()
    return at


def _chat(_last: bytes) -> bytes:
    error = answer_to_openai.error_of(BROKE_OFF, STREAM_FAILED)
    return b"data: %b\n\n" % msgspec.json.encode({"error": error})


def _responses(last: bytes) -> bytes:
    error = answer_to_openai.error_of(BROKE_OFF, STREAM_FAILED)
    numbers = _NUMBER.findall(last)
    number = int(numbers[-1]) + 1 if numbers else 0
    fields = {"type": "error", "sequence_number": number, "error": error}
    beside = {name: error[name] for name in ("code", "message", "param")}
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode({**fields, **beside})


def _messages(_last: bytes) -> bytes:
    error = answer_to_anthropic.error_of(BROKE_OFF, STREAM_FAILED)
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode({"type": "error", "error": error})


_EVENTS: Final[Mapping[Api, Callable[[bytes], bytes]]] = {
    "chat": _chat,
    "responses": _responses,
    "messages": _messages,
}


def api_of(path: str) -> Api:
    """Return whose events a provider answers with at a path; legacy completions' are as chat's."""
    last = path.partition("?")[0].rpartition("/")[2]
    return "messages" if last == "messages" else "responses" if last == "responses" else "chat"
