"""A streamed Anthropic message as the chunks of a chat completion, event by event.

Knows: both streams. Must not know: who reads them, Envoy, time (`created` is an argument).
The last chunk before [DONE] carries usage; whoever did not ask for it has it stripped elsewhere.
Source: Anthropic API reference, Streaming messages; OpenAI API reference, Chat streaming.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from extproc.dialects.answer_to_openai import decoded, error_of, finish_reason, tool_call, usage_of
from extproc.dialects.sse import Event, Reader, TooLong
from extproc.dialects.translation import Json, object_of, text_of

DONE: Final = b"data: [DONE]\n\n"
BROKE_OFF: Final = {"type": "api_error", "message": "The provider broke off its answer."}
STREAM_FAILED: Final = 502  # what an error inside a stream would have been outside it


class Translator:
    """Feed it the provider's bytes as they come; what it returns is sent to the caller."""

    def __init__(self, created: int) -> None:
        self._reader = Reader()
        self._created = created
        self._id = ""
        self._model = ""
        self._usage: Json = {}
        self._calls: dict[Any, int] = {}  # index of a tool's block -> number of the call
        self._empty: set[Any] = set()  # tool blocks whose arguments have not begun
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
        return left if self._over else left + self._fail(BROKE_OFF)

    def _event(self, event: Event) -> bytes:
        if self._over:
            return b""
        data = decoded(event.data)
        handle = _HANDLERS.get(text_of(data.get("type")))
        return b"" if handle is None else handle(self, data)

    def _start(self, data: Json) -> bytes:
        message = object_of(data.get("message"))
        self._id = text_of(message.get("id"))
        self._model = text_of(message.get("model"))
        self._usage = object_of(message.get("usage"))
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def _block(self, data: Json) -> bytes:
        block = object_of(data.get("content_block"))
        if block.get("type") == "text" and text_of(block.get("text")):
            return self._chunk({"content": block["text"]})
        if block.get("type") != "tool_use":
            return b""
        index = data.get("index")
        number = self._calls[_key(index)] = len(self._calls)
        given = object_of(block.get("input"))
        arguments = msgspec.json.encode(given).decode() if given else ""
        if not given:
            self._empty.add(_key(index))
        return self._chunk({"tool_calls": [{"index": number, **tool_call(block, arguments)}]})

    def _delta(self, data: Json) -> bytes:
        delta = object_of(data.get("delta"))
        match delta.get("type"):
            case "text_delta":
                return self._chunk({"content": text_of(delta.get("text"))})
            case "thinking_delta":
                return self._chunk({"reasoning_content": text_of(delta.get("thinking"))})
            case "input_json_delta":
                return self._arguments(_key(data.get("index")), text_of(delta.get("partial_json")))
        return b""  # signatures and citations have no place in a chunk

    def _arguments(self, key: str, piece: str) -> bytes:
        number = self._calls.get(key)
        if number is None or not piece:
            return b""
        self._empty.discard(key)
        call = {"index": number, "function": {"arguments": piece}}
        return self._chunk({"tool_calls": [call]})

    def _stop_block(self, data: Json) -> bytes:
        key = _key(data.get("index"))
        return self._arguments(key, "{}") if key in self._empty else b""

    def _end(self, data: Json) -> bytes:
        # Counts are cumulative: what this event says stands for what an earlier one said.
        told = object_of(data.get("usage"))
        self._usage = self._usage | {k: v for k, v in told.items() if v is not None}
        reason = object_of(data.get("delta")).get("stop_reason")
        return b"" if reason is None else self._chunk({}, finish_reason(reason))

    def _stop(self, data: Json) -> bytes:
        del data
        self._over = True
        usage = usage_of(self._usage)
        if usage is None:
            return DONE
        return self._write({"choices": [], "usage": usage}) + DONE

    def _error(self, data: Json) -> bytes:
        return self._fail(object_of(data.get("error")))

    def _fail(self, error: Json) -> bytes:
        self._over = True
        return b"data: %b\n\n" % msgspec.json.encode({"error": error_of(error, STREAM_FAILED)})

    def _chunk(self, delta: Json, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._write({"choices": [choice]})

    def _write(self, fields: Json) -> bytes:
        chunk = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            **fields,
        }
        return b"data: %b\n\n" % msgspec.json.encode(chunk)


def _key(index: Any) -> str:
    return str(index)


_HANDLERS: Final[Mapping[str, Callable[[Translator, Json], bytes]]] = {
    "message_start": Translator._start,
    "content_block_start": Translator._block,
    "content_block_delta": Translator._delta,
    "content_block_stop": Translator._stop_block,
    "message_delta": Translator._end,
    "message_stop": Translator._stop,
    "error": Translator._error,
}
