"""The Responses API as OpenAI writes it, whole and streamed.

Knows the JSON of the endpoint and the order of its SSE events. Knows no HTTP, no pacing, no faults.
"""

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from extproc.simulator import text
from extproc.simulator.behaviour import Behaviour
from extproc.simulator.dialect import Call, Event, Script, Stamp, Usage, Whole
from extproc.simulator.openai_chat import HUGE_TOKENS, Part


class InputItem(msgspec.Struct, gc=False):
    """One item of the input; only the text of messages counts."""

    content: str | list[Part] | None = None

    def tokens(self) -> int:
        """Return what the item's text costs."""
        if isinstance(self.content, str):
            return text.count(self.content)
        parts = self.content or ()
        return text.count_bytes(sum(text.utf8_length(part.text or "") for part in parts))


class ResponsesRequest(msgspec.Struct, gc=False):
    """What of a request to the Responses API changes the answer, or is repeated in it."""

    model: str
    input: str | Annotated[list[InputItem], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("you must provide a model parameter")

    def prompt_tokens(self) -> int:
        """Return the tokens of instructions and input, counted as chat messages are."""
        tokens = text.CHAT_OVERHEAD_TOKENS
        if self.instructions is not None:
            tokens += text.count(self.instructions)
        if isinstance(self.input, str):
            return tokens + text.count(self.input)
        return tokens + sum([item.tokens() for item in self.input])


def respond(request: ResponsesRequest) -> Call:
    """Return the call of a request to the Responses API."""
    render = partial(_stream if request.stream else _whole, request)
    prompt = request.prompt_tokens()
    return Call(render, request.model, bool(request.stream), prompt_tokens=prompt)


class _Answer:
    """The objects one answer is made of, in the states they go through."""

    def __init__(self, request: ResponsesRequest, behaviour: Behaviour, stamp: Stamp) -> None:
        self.request = request
        self.stamp = stamp
        self.item_id = f"msg_{stamp.token}"
        self.tokens, cut = text.output_tokens(behaviour.output_tokens, request.max_output_tokens)
        self.status = "incomplete" if cut else "completed"
        self.usage = _usage(behaviour, request.prompt_tokens(), self.tokens)

    def part(self, words: str) -> dict[str, Any]:
        return {"type": "output_text", "text": words, "annotations": [], "logprobs": []}

    def item(self, status: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": parts,
        }

    def response(
        self, status: str, output: list[dict[str, Any]], usage: Usage | None
    ) -> dict[str, Any]:
        request = self.request
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": f"resp_{self.stamp.token}",
            "object": "response",
            "created_at": self.stamp.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": details,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": request.model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": True,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": usage,
            "user": None,
            "metadata": {},
        }


def _usage(behaviour: Behaviour, prompt: int, tokens: int) -> Usage | None:
    if behaviour.usage == "missing":
        return None
    if behaviour.usage == "huge":
        prompt = tokens = HUGE_TOKENS
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + tokens,
    }


def _whole(request: ResponsesRequest, behaviour: Behaviour, stamp: Stamp) -> Whole:
    answer = _Answer(request, behaviour, stamp)
    part = answer.part(text.answer(answer.tokens).decode())
    response = answer.response(answer.status, [answer.item(answer.status, [part])], answer.usage)
    return Whole(msgspec.json.encode(response), answer.tokens, answer.usage)


def _stream(request: ResponsesRequest, behaviour: Behaviour, stamp: Stamp) -> Script:
    return Script(_events(_Answer(request, behaviour, stamp), behaviour))


def _event(kind: str, number: int, fields: dict[str, Any], usage: Usage | None = None) -> Event:
    data = msgspec.json.encode({"type": kind, "sequence_number": number, **fields})
    return Event(b"event: %b\ndata: %b\n\n" % (kind.encode(), data), usage=usage)


def _events(answer: _Answer, behaviour: Behaviour) -> Iterator[Event]:
    started = answer.response("in_progress", [], None)
    place: dict[str, Any] = {"item_id": answer.item_id, "output_index": 0, "content_index": 0}
    yield _event("response.created", 0, {"response": started})
    yield _event("response.in_progress", 1, {"response": started})
    item = answer.item("in_progress", [])
    yield _event("response.output_item.added", 2, {"output_index": 0, "item": item})
    yield _event("response.content_part.added", 3, {**place, "part": answer.part("")})
    number = 4
    for delta in _deltas(answer, behaviour.tokens_per_chunk, number):
        yield delta
        number += 1
    words = text.answer(answer.tokens).decode()
    part = answer.part(words)
    done = {**place, "text": words, "logprobs": []}
    yield _event("response.output_text.done", number, done)
    yield _event("response.content_part.done", number + 1, {**place, "part": part})
    item = answer.item(answer.status, [part])
    yield _event("response.output_item.done", number + 2, {"output_index": 0, "item": item})
    final = {"response": answer.response(answer.status, [item], answer.usage)}
    for again in range(2 if behaviour.usage == "twice" else 1):
        yield _event(f"response.{answer.status}", number + 3 + again, final, answer.usage)


def _deltas(answer: _Answer, step: int, number: int) -> Iterator[Event]:
    kind = b"response.output_text.delta"
    before = b'event: %b\ndata: {"type":"%b","sequence_number":' % (kind, kind)
    between = (
        b',"item_id":"%b","output_index":0,"content_index":0,"delta":"' % answer.item_id.encode()
    )
    for index, start in enumerate(range(0, answer.tokens, step)):
        stop = min(start + step, answer.tokens)
        count = b"%d" % (number + index)
        data = before + count + between + text.words(start, stop) + b'","logprobs":[]}\n\n'
        yield Event(data, stop - start, paced=True)
