"""A kept answer of the Responses API as the other form of itself.

Knows: responses, whole and streamed. Must not know: stores, keys, HTTP.
Source: OpenAI API reference, Responses and Responses streaming.

A stream's last event holds the document, which is taken out of it and put into it byte for byte.
What can be streamed again: messages, calls of functions and custom tools, and reasoning. Tools that
OpenAI runs itself report their progress in events of their own, of which a document says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from extproc.cache.recorded import (
    DONE,
    CannotTell,
    a_list,
    a_text,
    an_object,
    document,
    encode,
    events,
)
from extproc.dialects.translation import Json

_ENDS: Final[Mapping[str, str]] = {
    "response.completed": "completed",
    "response.incomplete": "incomplete",
}
_ITEM_DONE: Final = b'"response.output_item.done"'
_UNKNOWN_YET: Final = ("usage", "incomplete_details", "completed_at")


class _Event(msgspec.Struct, gc=False):
    type: str
    response: msgspec.Raw = msgspec.Raw(b"null")


class _Response(msgspec.Struct, gc=False):
    status: str
    output: list[msgspec.Raw]


_decode_event: Final = msgspec.json.Decoder(_Event).decode
_decode_response: Final = msgspec.json.Decoder(_Response).decode


def fold(body: bytes) -> bytes:
    """Return the document whose stream this is. Raises CannotTell."""
    told = [data for data in events(body) if data != DONE]  # some servers add it
    if not told:
        raise CannotTell("a stream has no events")
    try:
        last = _decode_event(told[-1])
        response = _decode_response(last.response)
        found = bytes(last.response)
        found.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise CannotTell("a stream's last event does not hold a response") from None
    if _ENDS.get(last.type) != response.status:
        raise CannotTell("a response did not end well")
    # Because some servers leave out at the end what they told before.
    if not response.output and any(_ITEM_DONE in data for data in told):
        raise CannotTell("a stream's last event lacks the output")
    return found


def unfold(body: bytes) -> bytes:
    """Return the stream of a document. Raises CannotTell."""
    whole = document(body)
    status = whole.get("status")
    kinds = [kind for kind, ended in _ENDS.items() if ended == status]
    if not kinds or whole.get("error") is not None:
        raise CannotTell("a response did not end well")
    started = whole | {"status": "in_progress", "output": []}
    started |= {name: None for name in _UNKNOWN_YET if name in whole}
    script = _Script()
    script.add("response.created", {"response": started})
    script.add("response.in_progress", {"response": started})
    for index, item in enumerate(a_list(whole.get("output"))):
        script.output_index = index
        _item(script, an_object(item))
    script.add(kinds[0], {"response": msgspec.Raw(_one_line(body))})
    return b"".join(script.out)


def _one_line(body: bytes) -> bytes:
    """Return the document as it is, without the line ends that would end its event."""
    body = body.strip()
    return msgspec.json.format(body, indent=-1) if b"\n" in body or b"\r" in body else body


class _Script:
    """The events so far, numbered."""

    __slots__ = ("out", "output_index")

    def __init__(self) -> None:
        self.out: list[bytes] = []
        self.output_index = 0

    def add(self, kind: str, fields: Json) -> None:
        data = encode({"type": kind, "sequence_number": len(self.out), **fields})
        self.out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))

    def place(self, item_id: str, **where: int) -> Json:
        return {"item_id": item_id, "output_index": self.output_index, **where}


def _item(script: _Script, item: Json) -> None:
    told = _ITEMS.get(a_text(item.get("type")))
    if told is None:
        raise CannotTell("an output item is of a kind that streams events of its own")
    empty, tell = told
    begun = item | {name: value for name, value in empty.items() if name in item}
    if item.get("status") is not None:
        begun["status"] = "in_progress"
    script.add("response.output_item.added", {"output_index": script.output_index, "item": begun})
    tell(script, a_text(item.get("id")), item)
    script.add("response.output_item.done", {"output_index": script.output_index, "item": item})


def _message(script: _Script, item_id: str, item: Json) -> None:
    for index, part in enumerate(a_list(item.get("content"))):
        _part(script, script.place(item_id, content_index=index), an_object(part))


def _part(script: _Script, place: Json, part: Json) -> None:
    kind = part.get("type")
    field = _PARTS.get(a_text(kind))
    if field is None:
        raise CannotTell("a part of a message is of a kind that is not known")
    text = a_text(part.get(field))
    logprobs = {"logprobs": part.get("logprobs") or []} if kind == "output_text" else {}
    begun = part | {field: ""} | {k: [] for k in ("annotations", "logprobs") if part.get(k)}
    script.add("response.content_part.added", {**place, "part": begun})
    name = "response.refusal" if kind == "refusal" else f"response.{kind}"
    if text:
        script.add(f"{name}.delta", {**place, "delta": text, **logprobs})
    for index, one in enumerate(a_list(part.get("annotations") or [])):
        note = {"annotation_index": index, "annotation": one}
        script.add("response.output_text.annotation.added", {**place, **note})
    script.add(f"{name}.done", {**place, field: text, **logprobs})
    script.add("response.content_part.done", {**place, "part": part})


def _reasoning(script: _Script, item_id: str, item: Json) -> None:
    for index, one in enumerate(a_list(item.get("summary") or [])):
        part, place = an_object(one), script.place(item_id, summary_index=index)
        text, name = a_text(part.get("text")), "response.reasoning_summary"
        script.add(f"{name}_part.added", {**place, "part": part | {"text": ""}})
        if text:
            script.add(f"{name}_text.delta", {**place, "delta": text})
        script.add(f"{name}_text.done", {**place, "text": text})
        script.add(f"{name}_part.done", {**place, "part": part})
    _message(script, item_id, {"content": item.get("content") or []})


def _call(name: str, field: str) -> Callable[[_Script, str, Json], None]:
    def tell(script: _Script, item_id: str, item: Json) -> None:
        place, text = script.place(item_id), a_text(item.get(field))
        if text:
            script.add(f"response.{name}.delta", {**place, "delta": text})
        script.add(f"response.{name}.done", {**place, field: text})

    return tell


# What of an item is empty when it is added, and what tells the rest.
_ITEMS: Final[Mapping[str, tuple[Json, Callable[[_Script, str, Json], None]]]] = {
    "message": ({"content": []}, _message),
    "reasoning": ({"summary": [], "content": []}, _reasoning),
    "function_call": ({"arguments": ""}, _call("function_call_arguments", "arguments")),
    "custom_tool_call": ({"input": ""}, _call("custom_tool_call_input", "input")),
}
# The text of a part by its kind.
_PARTS: Final[Mapping[str, str]] = {
    "output_text": "text",
    "refusal": "refusal",
    "reasoning_text": "text",
}
