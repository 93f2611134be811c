"""The chunks of a chat completion as a streamed Anthropic message, event by event.

Knows: both streams. Must not know: who reads them, Envoy, time.
The prompt's tokens are known at the end alone, so message_start says 0 and message_delta all of it:
its counts are cumulative by definition.
Source: OpenAI API reference, Chat streaming; Anthropic API reference, Streaming messages.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from extproc.dialects.answer_to_anthropic import (
    error_of,
    message_id,
    reasoning_of,
    stop_reason,
    usage_of,
)
from extproc.dialects.answer_to_openai import decoded
from extproc.dialects.sse import Event, Reader, TooLong
from extproc.dialects.translation import Json, object_of, objects, text_of

DONE: Final = b"[DONE]"
STREAM_FAILED: Final = 502  # what an error inside a stream would have been outside it
BROKE_OFF: Final = {"message": "The provider broke off its answer."}
UNKNOWN_USAGE: Final = {"input_tokens": 0, "output_tokens": 0}


class Translator:
    """Feed it the provider's bytes as they come; what it returns is sent to the caller."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._started = False
        self._blocks = 0
        self._open: tuple[str, int] | None = None  # kind and index of an open text or thinking
        self._tools: dict[Any, int] = {}  # index of a call -> index of its block, open to the end
        self._finish: str | None = None
        self._refused = False
        self._usage: Json | None = None
        self._over = False

    def feed(self, chunk: bytes) -> bytes:
        """Translate what has come."""
        try:
            return b"".join([self._event(event) for event in self._reader.feed(chunk)])
        except TooLong:
            return self._fail(BROKE_OFF)

    def finish(self) -> bytes:
        """Translate what is left; a stream without its end gets an error in the end's place."""
        left = b"".join([self._event(event) for event in self._reader.finish()])
        if self._over:
            return left
        # Because some servers that finish their choice send no [DONE].
        return left + (self._end() if self._finish is not None else self._fail(BROKE_OFF))

    def _event(self, event: Event) -> bytes:
        if self._over:
            return b""
        if event.data.strip() == DONE:
            return self._end() if self._started else self._fail(BROKE_OFF)
        chunk = decoded(event.data)
        if "error" in chunk:
            return self._fail(object_of(chunk["error"]))
        out = b"" if self._started else self._start(chunk)
        usage = usage_of(object_of(chunk.get("usage")))
        if usage is not None:
            self._usage = usage
        for choice in objects(chunk.get("choices"))[:1]:
            out += self._delta(object_of(choice.get("delta")))
            reason = choice.get("finish_reason")
            if isinstance(reason, str):
                self._finish = reason
        return out

    def _start(self, chunk: Json) -> bytes:
        self._started = True
        message: Json = {
            "id": message_id(chunk.get("id")),
            "type": "message",
            "role": "assistant",
            "model": text_of(chunk.get("model")),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": UNKNOWN_USAGE,
        }
        return _write("message_start", {"message": message})

    def _delta(self, delta: Json) -> bytes:
        out = b""
        thought = reasoning_of(delta)
        if thought:
            out += self._say("thinking", {"thinking": "", "signature": ""}, thought)
        for name in ("content", "refusal"):
            text = text_of(delta.get(name))
            if text:
                self._refused = self._refused or name == "refusal"
                out += self._say("text", {"text": ""}, text)
        for call in objects(delta.get("tool_calls")):
            out += self._call(call)
        return out

    def _say(self, kind: str, empty: Json, text: str) -> bytes:
        out = b""
        if self._open is None or self._open[0] != kind:
            out = self._close()
            self._open = (kind, self._blocks)
            out += self._begin({"type": kind, **empty})
        assert self._open is not None
        delta = {"type": f"{kind}_delta", kind: text}
        return out + _write("content_block_delta", {"index": self._open[1], "delta": delta})

    def _call(self, call: Json) -> bytes:
        function = object_of(call.get("function"))
        key = str(call.get("index"))
        out = b""
        if key not in self._tools:
            out = self._close()
            self._tools[key] = self._blocks
            named = {"id": text_of(call.get("id")), "name": text_of(function.get("name"))}
            out += self._begin({"type": "tool_use", **named, "input": {}})
        piece = text_of(function.get("arguments"))
        if not piece:
            return out
        delta = {"type": "input_json_delta", "partial_json": piece}
        return out + _write("content_block_delta", {"index": self._tools[key], "delta": delta})

    def _begin(self, block: Json) -> bytes:
        index, self._blocks = self._blocks, self._blocks + 1
        return _write("content_block_start", {"index": index, "content_block": block})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        index, self._open = self._open[1], None
        return _write("content_block_stop", {"index": index})

    def _end(self) -> bytes:
        self._over = True
        out = self._close()
        # Not before, because the pieces of parallel calls may come in turn.
        for index in self._tools.values():
            out += _write("content_block_stop", {"index": index})
        refused = {"refusal": "yes" if self._refused else ""}
        reason = stop_reason(self._finish, refused="refusal", of=refused)
        delta = {"stop_reason": reason, "stop_sequence": None}
        usage = self._usage or {"output_tokens": 0}
        out += _write("message_delta", {"delta": delta, "usage": usage})
        return out + _write("message_stop", {})

    def _fail(self, error: Json) -> bytes:
        self._over = True
        return _write("error", {"error": error_of(error, STREAM_FAILED)})


def _write(kind: str, fields: Json) -> bytes:
    data = msgspec.json.encode({"type": kind, **fields})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
