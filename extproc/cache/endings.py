"""How a recorded answer ended, and what is in it that bears on keeping it.

Knows: where each endpoint's answer says so, as a document and as a stream. Must not know: which
endings are kept. What is missing, has another type or a name this file does not know is `None`:
no ending at all, so new kinds of answers are not kept until they are named here.
Sources: OpenAI API reference (chat, completions, responses, embeddings), Anthropic (messages).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias

import msgspec

from extproc.answers import Form
from extproc.cache.ending_shapes import (
    ABSENT,
    Choices,
    Embeddings,
    Ending,
    How,
    Message,
    MessageEvent,
    Response,
    ResponseEvent,
    Said,
    Typed,
)
from extproc.dialects.sse import Reader, TooLong

_DATA: Final = re.compile(rb"^data: ?(.*)$", re.MULTILINE)
_choices: Final = msgspec.json.Decoder(Choices).decode
_message: Final = msgspec.json.Decoder(Message).decode
_message_event: Final = msgspec.json.Decoder(MessageEvent).decode
_response: Final = msgspec.json.Decoder(Response).decode
_response_event: Final = msgspec.json.Decoder(ResponseEvent).decode
_embeddings: Final = msgspec.json.Decoder(Embeddings).decode

# By names of our own: to read a member of an enum takes 700 instructions.
_COMPLETE: Final = How.COMPLETE
_FILTERED: Final = How.FILTERED
_REFUSED: Final = How.REFUSED
_FINISH: Final = {
    "stop": How.COMPLETE,
    "length": How.LENGTH,
    "content_filter": How.FILTERED,
    "tool_calls": How.COMPLETE,
    "function_call": How.COMPLETE,
}
_CALLS: Final = frozenset({"tool_calls", "function_call"})
_STOP_REASON: Final = {
    "end_turn": How.COMPLETE,
    "stop_sequence": How.COMPLETE,
    "tool_use": How.COMPLETE,
    "max_tokens": How.LENGTH,
    "refusal": How.REFUSED,
}
_INCOMPLETE: Final = {"max_output_tokens": How.LENGTH, "content_filter": How.FILTERED}
_TEXT_BLOCKS: Final = frozenset({"text", "thinking", "redacted_thinking"})
_TEXT_ITEMS: Final = frozenset({"message", "reasoning"})
_CALL_ITEMS: Final = frozenset({"function_call", "custom_tool_call"})
_LAST_EVENTS: Final = frozenset({"response.completed", "response.incomplete"})
_DONE: Final = b"[DONE]"


def read(endpoint: str, form: Form, body: bytes) -> Ending | None:
    """Return how a whole recorded answer ended; None where it is none that is known to be whole.

    Pure; linear: about 1 us per event of a stream.
    """
    readers = _READERS.get(endpoint)
    if readers is None:
        return None
    document, stream = readers
    try:
        if form == "json":
            return document(body)
        return None if stream is None else stream(_events(body))
    except (msgspec.MsgspecError, ValueError, RecursionError, TooLong):
        return None


def _events(body: bytes) -> list[bytes]:
    # As providers write them: one line of data each, and LF. That takes a quarter of the time.
    if b"\r" not in body:
        lines: list[bytes] = _DATA.findall(body)
        if len(lines) == body.count(b"\n\n"):
            return lines
    reader = Reader()
    return [event.data for event in reader.feed(body) + reader.finish()]


def _is(value: msgspec.Raw) -> bool:
    return value is not ABSENT and bytes(value) != b"null"


def _chat_document(body: bytes) -> Ending | None:
    found = _choices(body)
    if len(found.choices) != 1 or _is(found.error):
        return None
    choice = found.choices[0]
    return _chosen(choice.finish_reason, () if choice.message is None else (choice.message,))


def _chat_stream(events: list[bytes]) -> Ending | None:
    if not events or events.pop() != _DONE:
        return None
    finish = None
    said = []
    for event in events:
        found = _choices(event)
        if _is(found.error):
            return None
        for choice in found.choices:
            if choice.index:
                return None
            finish = choice.finish_reason or finish
            if choice.delta is not None:
                said.append(choice.delta)
    return _chosen(finish, said)


def _chosen(finish: str | None, said: Iterable[Said]) -> Ending | None:
    how = _FINISH.get(finish or "")
    if how is None:
        return None
    tools = finish in _CALLS
    for one in said:
        if one.refusal and how is not _FILTERED:
            how = _REFUSED
        # Because a call that was forced by `tool_choice` ends with `stop`.
        if one.tool_calls or _is(one.function_call):
            tools = True
    return Ending(how, tools)


def _messages_document(body: bytes) -> Ending | None:
    found = _message(body)
    if found.type != "message":
        return None
    return _stopped(found.stop_reason, found.content)


def _messages_stream(events: list[bytes]) -> Ending | None:
    stop = None
    last = ""
    blocks = []
    for event in events:
        found = _message_event(event)
        last = found.type
        if last == "error":
            return None
        if found.content_block is not None:
            blocks.append(found.content_block)
        if last == "message_delta" and found.delta is not None:
            stop = found.delta.stop_reason or stop
    return _stopped(stop, blocks) if last == "message_stop" else None


def _stopped(reason: str | None, blocks: Iterable[Typed]) -> Ending | None:
    how = _STOP_REASON.get(reason or "")
    if how is None:
        return None
    kinds = {block.type for block in blocks}
    tools = reason == "tool_use" or "tool_use" in kinds
    return Ending(how, tools, hosted=bool(kinds - _TEXT_BLOCKS - {"tool_use"}))


def _responses_document(body: bytes) -> Ending | None:
    return _responded(_response(body))


def _responses_stream(events: list[bytes]) -> Ending | None:
    if events and events[-1] == _DONE:  # which other servers than OpenAI's write
        events.pop()
    if not events:
        return None
    last = _response_event(events[-1])
    return _responded(last.response) if last.type in _LAST_EVENTS else None


def _responded(found: Response) -> Ending | None:
    how: How | None = None
    if found.status == "completed":
        how = _COMPLETE
    elif found.status == "incomplete" and found.incomplete_details is not None:
        how = _INCOMPLETE.get(found.incomplete_details.reason or "")
    if how is None:
        return None
    kinds = {item.type for item in found.output}
    parts = {part.type for item in found.output for part in item.content or ()}
    if "refusal" in parts and how is not _FILTERED:
        how = _REFUSED
    return Ending(how, bool(kinds & _CALL_ITEMS), bool(kinds - _TEXT_ITEMS - _CALL_ITEMS))


def _embeddings_document(body: bytes) -> Ending | None:
    return Ending(_COMPLETE) if _embeddings(body).data else None


_Document: TypeAlias = Callable[[bytes], Ending | None]
_Stream: TypeAlias = Callable[[list[bytes]], Ending | None]
_READERS: Final[Mapping[str, tuple[_Document, _Stream | None]]] = {
    "chat": (_chat_document, _chat_stream),
    "completions": (_chat_document, _chat_stream),
    "embeddings": (_embeddings_document, None),
    "messages": (_messages_document, _messages_stream),
    "responses": (_responses_document, _responses_stream),
}
