"""Messages as Anthropic writes them, whole and streamed, and the count of their tokens.

Knows the JSON of the endpoint and the order of its SSE events
(https://docs.anthropic.com/en/api/messages, .../messages-streaming). Knows no HTTP, no pacing.
"""

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from extproc.simulator import text, tools
from extproc.simulator.behaviour import Behaviour
from extproc.simulator.dialect import Call, Event, Script, Stamp, Usage, Whole
from extproc.simulator.openai_chat import HUGE_TOKENS

THINKING_TOKENS = 4  # of a thinking block, where thinking is asked for
SIGNATURE = "c2ltdWxhdGVk"  # opaque to callers, who must send it back as it is
FIRST_OUTPUT_TOKENS = 1  # what message_start reports before anything is generated
PING = Event(b'event: ping\ndata: {"type": "ping"}\n\n')
STOP = Event(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')


class Block(msgspec.Struct, frozen=True, gc=False):
    """One content block; its text counts, and that of a tool's result."""

    type: str
    text: str | None = None
    content: "str | list[Block] | None" = None

    def bytes(self) -> int:
        """Return the UTF-8 bytes of the block's text."""
        return text.utf8_length(self.text or "") + _bytes(self.content)


Content = str | list[Block]


class Message(msgspec.Struct, frozen=True, gc=False):
    """One turn."""

    role: str
    content: Content


class ToolChoice(msgspec.Struct, frozen=True, gc=False):
    """Whether and which tool must be called."""

    type: str = "auto"
    name: str | None = None


class ToolSpec(msgspec.Struct, frozen=True, gc=False):
    """A tool of the caller's, or one of Anthropic's own, which has no schema."""

    name: str
    input_schema: dict[str, Any] = {}


class Thinking(msgspec.Struct, frozen=True, gc=False):
    """Whether the model may think aloud."""

    type: str = "disabled"


class CountRequest(msgspec.Struct, gc=False, kw_only=True):
    """What of a request decides how many tokens it has."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[Message], Meta(min_length=1)]
    system: Content = ""
    tools: list[ToolSpec] = []
    tool_choice: ToolChoice = ToolChoice()

    def prompt_tokens(self) -> int:
        """Return the tokens of system, messages and tools' schemas, each counted by itself."""
        tokens = text.CHAT_OVERHEAD_TOKENS
        if self.system:
            tokens += text.count_bytes(_bytes(self.system))
        tokens += sum([text.count_bytes(_bytes(m.content)) for m in self.messages])
        return tokens + sum([text.count(str(tool.input_schema)) for tool in self.tools])


class MessagesRequest(CountRequest, gc=False, kw_only=True):
    """What of a request changes the answer."""

    max_tokens: Annotated[int, Meta(ge=1)]
    stream: bool = False
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    thinking: Thinking = Thinking()


def _bytes(content: Content | None) -> int:
    if content is None or isinstance(content, str):
        return text.utf8_length(content or "")
    return sum([block.bytes() for block in content])


def count_tokens(request: CountRequest) -> Call:
    """Return the call that counts the tokens of a request."""
    prompt = request.prompt_tokens()
    body = b'{"input_tokens":%d}' % prompt
    return Call(partial(_constant, body), request.model, prompt_tokens=prompt)


def _constant(body: bytes, behaviour: Behaviour, stamp: Stamp) -> Whole:
    del behaviour, stamp  # counting is free and has no id
    return Whole(body)


def messages(request: MessagesRequest) -> Call:
    """Return the call of a request for a message."""
    render = partial(_stream if request.stream else _whole, request)
    # The stream always carries usage, whether a caller wants it or not.
    return Call(render, request.model, request.stream, request.stream, request.prompt_tokens())


class _Answer:
    """What one answer says and costs."""

    def __init__(self, request: MessagesRequest, behaviour: Behaviour, stamp: Stamp) -> None:
        self.model = request.model
        self.id = f"msg_{stamp.token}"
        choice = request.tool_choice
        must = choice.type in {"any", "tool"}
        offered = [tools.Tool(tool.name, tool.input_schema) for tool in request.tools]
        self.calls = (
            []
            if choice.type == "none"
            else tools.calls(
                offered, behaviour, choice.name if choice.type == "tool" else None, must=must
            )
        )
        self.call_ids = [f"toolu_{stamp.token}{index}" for index in range(len(self.calls))]
        self.thinking = THINKING_TOKENS if request.thinking.type == "enabled" else 0
        wanted = 0 if must and self.calls else behaviour.output_tokens
        self.words, cut = text.output_tokens(wanted, request.max_tokens)
        self.output = self.thinking + self.words + sum(call.tokens for call in self.calls)
        self.reason = "max_tokens" if cut else "tool_use" if self.calls else "end_turn"
        self.reported = self.output
        self.usage_missing = behaviour.usage == "missing"
        self._usage(behaviour, request.prompt_tokens())

    def _usage(self, behaviour: Behaviour, prompt: int) -> None:
        read = min(behaviour.cache_read_tokens, prompt)
        written = min(behaviour.cache_creation_tokens, prompt - read)
        fresh = prompt - read - written
        if behaviour.usage == "huge":
            fresh = self.reported = HUGE_TOKENS
        self.input_usage = {
            "input_tokens": fresh,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": written,
                "ephemeral_1h_input_tokens": 0,
            },
            "service_tier": "standard",
        }

    def usage(self) -> Usage | None:
        """Return the whole truth."""
        return None if self.usage_missing else {**self.input_usage, "output_tokens": self.reported}

    def message(
        self, content: list[dict[str, Any]], reason: str | None, usage: Usage | None
    ) -> dict[str, Any]:
        message = {
            "model": self.model,
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
        }
        return message if usage is None else {**message, "usage": usage}


def _whole(request: MessagesRequest, behaviour: Behaviour, stamp: Stamp) -> Whole:
    answer = _Answer(request, behaviour, stamp)
    content: list[dict[str, Any]] = []
    if answer.thinking:
        thought = text.answer(answer.thinking).decode()
        content.append({"type": "thinking", "thinking": thought, "signature": SIGNATURE})
    if answer.words or not answer.calls:
        content.append({"type": "text", "text": text.answer(answer.words).decode()})
    for call_id, call in zip(answer.call_ids, answer.calls, strict=True):
        arguments = msgspec.json.decode(call.arguments)
        content.append({"type": "tool_use", "id": call_id, "name": call.name, "input": arguments})
    usage = answer.usage()
    body = msgspec.json.encode(answer.message(content, answer.reason, usage))
    return Whole(body, answer.output, usage)


def _stream(request: MessagesRequest, behaviour: Behaviour, stamp: Stamp) -> Script:
    return Script(_events(_Answer(request, behaviour, stamp), behaviour))


def _event(kind: str, fields: dict[str, Any], usage: Usage | None = None) -> Event:
    data = msgspec.json.encode({"type": kind, **fields})
    return Event(b"event: %b\ndata: %b\n\n" % (kind.encode(), data), usage=usage)


def _events(answer: _Answer, behaviour: Behaviour) -> Iterator[Event]:
    # What is known at the start is reported at the start: input tokens stand nowhere else.
    started = (
        None
        if answer.usage_missing
        else {**answer.input_usage, "output_tokens": FIRST_OUTPUT_TOKENS}
    )
    yield _event("message_start", {"message": answer.message([], None, started)}, started)
    for index, block in enumerate(_blocks(answer, behaviour.tokens_per_chunk)):
        for number, event in enumerate(block(index)):
            yield event
            if index == number == 0:
                yield PING
        yield _event("content_block_stop", {"index": index})
    end: dict[str, Any] = {"delta": {"stop_reason": answer.reason, "stop_sequence": None}}
    usage = answer.usage()
    if usage is not None:
        end["usage"] = {"output_tokens": answer.reported}
    for _ in range(2 if behaviour.usage == "twice" else 1):
        yield _event("message_delta", end, usage)
    yield STOP


def _blocks(answer: _Answer, step: int) -> Iterator[Any]:
    if answer.thinking:
        yield partial(_thinking_block, answer.thinking, step)
    if answer.words or not answer.calls:
        yield partial(_words_block, "text", answer.words, step)
    for call_id, call in zip(answer.call_ids, answer.calls, strict=True):
        yield partial(_tool_block, call_id, call)


def _start(index: int, block: dict[str, Any]) -> Event:
    return _event("content_block_start", {"index": index, "content_block": block})


def _words_block(kind: str, count: int, step: int, index: int) -> Iterator[Event]:
    block = {"type": kind, kind: ""}
    yield _start(index, {**block, "signature": ""} if kind == "thinking" else block)
    before = (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
        b'"delta":{"type":"%b_delta","%b":"' % (index, kind.encode(), kind.encode())
    )
    for start in range(0, count, step):
        stop = min(start + step, count)
        data = before + text.words(start, stop) + b'"}}\n\n'
        yield Event(data, stop - start, paced=True)


def _thinking_block(count: int, step: int, index: int) -> Iterator[Event]:
    yield from _words_block("thinking", count, step, index)
    delta = {"type": "signature_delta", "signature": SIGNATURE}
    yield _event("content_block_delta", {"index": index, "delta": delta})


def _tool_block(call_id: str, call: tools.ToolCall, index: int) -> Iterator[Event]:
    yield _start(index, {"type": "tool_use", "id": call_id, "name": call.name, "input": {}})
    for piece, worth in (("", 0), *call.pieces):
        delta = {"type": "input_json_delta", "partial_json": piece}
        event = _event("content_block_delta", {"index": index, "delta": delta})
        yield event._replace(tokens=worth, paced=True)
