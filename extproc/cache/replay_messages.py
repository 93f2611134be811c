"""A kept Anthropic message as the other form of itself.

Knows: messages, whole and streamed. Must not know: stores, keys, HTTP.
Source: Anthropic API reference, Messages and Streaming messages.

Blocks that come whole in `content_block_start` (redacted thinking, results of tools, what is new)
are kept as they come; a kind of delta or of event that is not named here cannot be folded. Usage is
cumulative: what `message_delta` says stands for what `message_start` said.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from extproc.cache.recorded import (
    CannotTell,
    a_list,
    a_text,
    an_index,
    an_object,
    document,
    encode,
    events,
    named,
)
from extproc.dialects.translation import Json, arguments_of

_CALLS: Final = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
_BEFORE_ANY_OUTPUT: Final = 1  # what the API's message_start says of output tokens
_TOLD_AT_THE_END: Final = ("stop_reason", "stop_sequence", "stop_details", "container")
# Of the message itself, but told beside the delta.
_TOLD_BESIDE: Final = ("context_management",)
_COUNTED_AT_THE_END: Final = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
    "output_tokens_details",
    "server_tool_use",
)
_END: Final = named("message_stop", {})


def fold(body: bytes) -> bytes:
    """Return the document whose stream this is. Raises CannotTell."""
    found = iter(events(body))
    first = document(next(found, b""))
    if first.get("type") != "message_start":
        raise CannotTell("a stream does not begin with its message")
    message = _Message(an_object(first.get("message")))
    for data in found:
        event = document(data)
        kind = event.pop("type", None)
        if kind == "message_stop":
            return encode(message.told())
        message.hear(kind, event)
    raise CannotTell("a stream has no end")


class _Message:
    """Puts a message together."""

    __slots__ = ("_block", "_blocks", "_message", "_pieces")

    def __init__(self, message: Json) -> None:
        self._message = message
        self._blocks = a_list(message.get("content"))
        if self._blocks:
            raise CannotTell("a message begins with content")
        self._block: Json | None = None  # the open one
        self._pieces: dict[str, list[str]] = {}  # of the open one, by what they add up to

    def hear(self, kind: Any, event: Json) -> None:
        if kind == "content_block_delta":
            block = self._opened(event)
            self._delta(block, an_object(event.get("delta")))
        elif kind == "content_block_start":
            if self._block is not None or an_index(event.get("index")) != len(self._blocks):
                raise CannotTell("blocks do not come one after the other")
            self._block, self._pieces = an_object(event.get("content_block")), {}
            self._blocks.append(self._block)
        elif kind == "content_block_stop":
            self._stop(self._opened(event))
        elif kind == "message_delta":
            self._end(event)
        elif kind != "ping":
            raise CannotTell("a stream holds an error or an event that is not known")

    def _opened(self, event: Json) -> Json:
        if self._block is None or an_index(event.get("index")) != len(self._blocks) - 1:
            raise CannotTell("an event of a block that is not open")
        return self._block

    def _delta(self, block: Json, delta: Json) -> None:
        kind = delta.pop("type", None)
        match kind:
            case "text_delta":
                self._add("text", delta)
            case "thinking_delta":
                self._add("thinking", delta)
            case "input_json_delta":
                self._add("partial_json", delta)
            case "signature_delta":
                self._set(block, "signature", delta)
            case "citations_delta":
                if block.get("citations") is None:
                    block["citations"] = []
                a_list(block["citations"]).append(an_object(delta.pop("citation", None)))
            case "compaction_delta":
                for name in tuple(delta):
                    self._set(block, name, delta)
            case _:
                raise CannotTell("a delta is of a kind that is not known")
        if any(value is not None for value in delta.values()):
            raise CannotTell("a delta holds a field that is not known")

    def _add(self, name: str, delta: Json) -> None:
        self._pieces.setdefault(name, []).append(a_text(delta.pop(name, None)))

    @staticmethod
    def _set(block: Json, name: str, delta: Json) -> None:
        if block.get(name):
            raise CannotTell("what comes in one piece came in two")
        block[name] = delta.pop(name, None)

    def _stop(self, block: Json) -> None:
        self._block = None
        for name, pieces in self._pieces.items():
            text = "".join(pieces)
            if name != "partial_json":
                block[name] = a_text(block.get(name)) + text
            elif text:
                given = arguments_of(text)
                if given is None or block.get("input") != {}:
                    raise CannotTell("the input of a tool is not whole")
                block["input"] = given
        if block.get("type") == "fallback":  # what follows, and the whole, is of another model
            self._message["model"] = a_text(an_object(block.get("to")).get("model"))

    def _end(self, event: Json) -> None:
        usage = event.pop("usage", None)
        told = an_object(event.pop("delta", None)) | event
        for name, value in told.items():
            if value is not None or name not in self._message:
                self._message[name] = value
        if usage is not None:
            known = self._message.get("usage")
            known = {} if known is None else an_object(known)
            told = {name: value for name, value in an_object(usage).items() if value is not None}
            self._message["usage"] = known | told

    def told(self) -> Json:
        if self._block is not None or type(self._message.get("stop_reason")) is not str:
            raise CannotTell("a message has no end")
        return self._message


def unfold(body: bytes) -> bytes:
    """Return the stream of a document. Raises CannotTell.

    Per block: its start, one delta for all its text, thoughts or input, and its stop.
    """
    whole = document(body)
    if whole.get("type") != "message" or type(whole.get("stop_reason")) is not str:
        raise CannotTell("what was recorded is not a whole message")
    started = whole | {"content": []}
    started |= {name: None for name in (*_TOLD_AT_THE_END, *_TOLD_BESIDE) if name in whole}
    beside = {name: whole[name] for name in _TOLD_BESIDE if whole.get(name) is not None}
    delta = {name: whole[name] for name in _TOLD_AT_THE_END if name in whole}
    end: Json = {"delta": delta, **beside}
    if whole.get("usage") is not None:
        started["usage"], end["usage"] = _usage(an_object(whole["usage"]))
    out = [named("message_start", {"message": started})]
    for index, block in enumerate(a_list(whole.get("content"))):
        out += _block(index, an_object(block))
    out += (named("message_delta", end), _END)
    return b"".join(out)


def _usage(usage: Json) -> tuple[Json, Json]:
    """Return what is counted when a message starts, and when it ends."""
    if type(usage.get("output_tokens")) is not int:
        raise CannotTell("usage does not count output")
    at_start = usage | {"output_tokens": _BEFORE_ANY_OUTPUT}
    at_start |= {k: None for k in ("output_tokens_details", "server_tool_use") if k in usage}
    at_end = {k: usage[k] for k in _COUNTED_AT_THE_END if usage.get(k) is not None}
    return at_start, at_end


def _block(index: int, block: Json) -> Iterator[bytes]:
    empty, deltas = _parts(block)
    start = {"index": index, "content_block": block | empty}
    yield named("content_block_start", start)
    for delta in deltas:
        yield named("content_block_delta", {"index": index, "delta": delta})
    yield named("content_block_stop", {"index": index})


def _parts(block: Json) -> tuple[Json, list[Json]]:
    """Return what of a block is empty at its start, and the deltas that fill it."""
    kind = a_text(block.get("type"))
    if kind == "text":
        text, citations = a_text(block.get("text")), a_list(block.get("citations") or [])
        deltas: list[Json] = [{"type": "text_delta", "text": text}] if text else []
        deltas += [{"type": "citations_delta", "citation": an_object(one)} for one in citations]
        return {"text": "", **({"citations": []} if citations else {})}, deltas
    if kind == "thinking":
        thought, signature = a_text(block.get("thinking")), block.get("signature")
        deltas = [{"type": "thinking_delta", "thinking": thought}] if thought else []
        if not signature:
            return {"thinking": ""}, deltas
        deltas.append({"type": "signature_delta", "signature": a_text(signature)})
        return {"thinking": "", "signature": ""}, deltas
    if kind in _CALLS:
        given = an_object(block.get("input"))
        written = encode(given).decode() if given else ""
        return {"input": {}}, [{"type": "input_json_delta", "partial_json": written}]
    if kind == "compaction":
        told: Json = {k: block[k] for k in ("content", "encrypted_content") if k in block}
        return dict.fromkeys(told), [{"type": "compaction_delta", **told}]
    return {}, []
