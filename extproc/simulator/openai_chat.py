"""Chat completions and legacy completions as OpenAI writes them, whole and streamed.

Knows the JSON of both endpoints and their SSE events. Knows no HTTP, no pacing and no faults.
"""

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from extproc.simulator import openai_tools, text
from extproc.simulator.behaviour import Behaviour
from extproc.simulator.dialect import Call, Event, Script, Stamp, Usage, Whole
from extproc.simulator.openai_tools import Choice, Offer, ToolSpec
from extproc.simulator.tools import ToolCall

HUGE_TOKENS = 10**15  # past 32 bits, past any budget, still exact in a JSON double
DONE = Event(b"data: [DONE]\n\n")

# Shared by all records of the log, so a record costs one dictionary and not three.
_PROMPT_DETAILS = {"cached_tokens": 0, "audio_tokens": 0}
_COMPLETION_DETAILS = {
    "reasoning_tokens": 0,
    "audio_tokens": 0,
    "accepted_prediction_tokens": 0,
    "rejected_prediction_tokens": 0,
}

Limit = Annotated[int, Meta(ge=1)] | None
Choices = Annotated[int, Meta(ge=1, le=128)] | None


class Part(msgspec.Struct, gc=False):
    """One part of a message; only its text counts."""

    text: str | None = None


class Message(msgspec.Struct, gc=False):
    """One message of a chat."""

    role: str
    content: str | list[Part] | None = None

    def tokens(self) -> int:
        """Return what the message's text costs."""
        if isinstance(self.content, str):
            return text.count(self.content)
        parts = self.content or ()
        return text.count_bytes(sum(text.utf8_length(part.text or "") for part in parts))


class StreamOptions(msgspec.Struct, gc=False):
    """How a stream is wanted."""

    include_usage: bool | None = None


class _Request(msgspec.Struct, gc=False, kw_only=True):
    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Choices = None
    max_tokens: Limit = None

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("you must provide a model parameter")
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' is only allowed when 'stream' is enabled")

    @property
    def include_usage(self) -> bool:
        """Return whether the stream shall end with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(_Request, gc=False, kw_only=True):
    """What of a chat completion request changes the answer."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Limit = None
    tools: list[ToolSpec] | None = None
    tool_choice: str | Choice | None = None


TokenIds = list[int]


class CompletionRequest(_Request, gc=False, kw_only=True):
    """What of a legacy completion request changes the answer."""

    prompt: str | Annotated[list[str | int | TokenIds], Meta(min_length=1)]


class _Job(msgspec.Struct, frozen=True, gc=False):
    model: bytes  # as JSON
    choices: int
    prompt_tokens: int
    limit: int | None
    include_usage: bool
    offer: Offer = openai_tools.NOTHING

    def output(self, behaviour: Behaviour) -> tuple[int, bytes, list[ToolCall]]:
        calls = self.offer.calls(behaviour)
        wanted = 0 if calls and self.offer.must else behaviour.output_tokens
        tokens, cut = text.output_tokens(wanted, self.limit)
        reason = b'"length"' if cut else b'"tool_calls"' if calls else b'"stop"'
        return tokens, reason, calls

    def usage(self, behaviour: Behaviour, tokens: int) -> Usage | None:
        if behaviour.usage == "missing":
            return None
        prompt, completion = self.prompt_tokens, tokens * self.choices
        cached = min(behaviour.cache_read_tokens, prompt)
        if behaviour.usage == "huge":
            prompt = completion = HUGE_TOKENS
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": (
                {**_PROMPT_DETAILS, "cached_tokens": cached} if cached else _PROMPT_DETAILS
            ),
            "completion_tokens_details": _COMPLETION_DETAILS,
        }


class _Shape(msgspec.Struct, frozen=True):
    """The bytes in which the two endpoints differ; `%d` is the index of a choice."""

    id_prefix: bytes
    whole_object: bytes
    whole_choice: tuple[bytes, bytes]  # before and after the text; the finish reason follows
    chunk_object: bytes
    opening: bytes  # the whole first choice, or nothing
    chunk_choice: tuple[bytes, bytes]
    last_choice: bytes  # the finish reason follows
    tool_choice: tuple[bytes, bytes] = (b"", b"")  # before the content, and before the calls


_CHAT = _Shape(
    b"chatcmpl-",
    b"chat.completion",
    (
        b'{"index":%d,"message":{"role":"assistant","content":"',
        b'","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":',
    ),
    b"chat.completion.chunk",
    b'{"index":%d,"delta":{"role":"assistant","content":"","refusal":null},'
    b'"logprobs":null,"finish_reason":null}',
    (b'{"index":%d,"delta":{"content":"', b'"},"logprobs":null,"finish_reason":null}'),
    b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":',
    (
        b'{"index":%d,"message":{"role":"assistant","content":',
        b',"refusal":null,"annotations":[],"tool_calls":',
    ),
)
_COMPLETION = _Shape(
    b"cmpl-",
    b"text_completion",
    (b'{"index":%d,"text":"', b'","logprobs":null,"finish_reason":'),
    b"text_completion",
    b"",
    (b'{"index":%d,"text":"', b'","logprobs":null,"finish_reason":null}'),
    b'{"index":%d,"text":"","logprobs":null,"finish_reason":',
)


def chat(request: ChatRequest) -> Call:
    """Return the call of a chat completion; its prompt is the messages' tokens and 3."""
    prompt = text.CHAT_OVERHEAD_TOKENS + sum([m.tokens() for m in request.messages])
    limit = request.max_completion_tokens or request.max_tokens
    offer = openai_tools.offer(request.tools, request.tool_choice)
    model = msgspec.json.encode(request.model)
    job = _Job(model, request.n or 1, prompt, limit, request.include_usage, offer)
    return _call(_CHAT, request, job)


def completion(request: CompletionRequest) -> Call:
    """Return the call of a legacy completion; several prompts get `n` choices each."""
    prompts = prompt_tokens(request.prompt)
    choices = len(prompts) * (request.n or 1)
    model = msgspec.json.encode(request.model)
    job = _Job(model, choices, sum(prompts), request.max_tokens, request.include_usage)
    return _call(_COMPLETION, request, job)


def prompt_tokens(prompt: str | list[Any]) -> list[int]:
    """Return the tokens of each prompt: a text, token ids, or a list of either."""
    if isinstance(prompt, str):
        return [text.count(prompt)]
    if all(isinstance(item, int) for item in prompt):
        return [len(prompt)]
    return [text.count(item) if isinstance(item, str) else _length(item) for item in prompt]


def _length(item: list[int] | int) -> int:
    if isinstance(item, int):
        message = "mixes token ids with texts or lists"
        raise msgspec.ValidationError(message)
    return max(1, len(item))


def _call(shape: _Shape, request: _Request, job: _Job) -> Call:
    render = partial(_stream if request.stream else _whole, shape, job)
    return Call(
        render, request.model, bool(request.stream), request.include_usage, job.prompt_tokens
    )


def _head(shape: _Shape, kind: bytes, job: _Job, stamp: Stamp) -> bytes:
    return (
        b'{"id":"%b%b","object":"%b","created":%d,"model":%b,'
        b'"service_tier":"default","system_fingerprint":"fp_simulated","choices":['
        % (shape.id_prefix, stamp.token.encode(), kind, stamp.created, job.model)
    )


def _whole(shape: _Shape, job: _Job, behaviour: Behaviour, stamp: Stamp) -> Whole:
    tokens, reason, calls = job.output(behaviour)
    before, after = shape.whole_choice
    rest = text.answer(tokens) + after + reason + b"}"
    if calls:
        before, middle = shape.tool_choice
        made = openai_tools.whole(calls, f"call_{stamp.token}")
        words = b'"' + text.answer(tokens) + b'"' if tokens else b"null"
        rest = words + middle + made + b'},"logprobs":null,"finish_reason":' + reason + b"}"
        tokens += sum(call.tokens for call in calls)
    choices = b",".join([before % index + rest for index in range(job.choices)])
    usage = job.usage(behaviour, tokens)
    tail = b"]}" if usage is None else b'],"usage":' + msgspec.json.encode(usage) + b"}"
    body = _head(shape, shape.whole_object, job, stamp) + choices + tail
    return Whole(body, tokens * job.choices, usage)


def _stream(shape: _Shape, job: _Job, behaviour: Behaviour, stamp: Stamp) -> Script:
    return Script(_events(shape, job, behaviour, stamp))


def _events(shape: _Shape, job: _Job, behaviour: Behaviour, stamp: Stamp) -> Iterator[Event]:
    tokens, reason, calls = job.output(behaviour)
    total = tokens + sum(call.tokens for call in calls)
    usage = job.usage(behaviour, total) if job.include_usage else None
    head = b"data: " + _head(shape, shape.chunk_object, job, stamp)
    tail = b"]}\n\n" if usage is None else b'],"usage":null}\n\n'
    indices = range(job.choices)
    if shape.opening:
        for index in indices:
            yield Event(head + shape.opening % index + tail)
    befores = [head + shape.chunk_choice[0] % index for index in indices]
    after = shape.chunk_choice[1] + tail
    step = behaviour.tokens_per_chunk
    paced = bool(shape.opening)  # else the first words come at once
    for start in range(0, tokens, step):
        stop = min(start + step, tokens)
        rest = text.words(start, stop) + after
        for before in befores:
            yield Event(before + rest, stop - start, paced)
            paced = False  # choices come together
        paced = True
    for number, call in enumerate(calls):
        for delta, worth in openai_tools.deltas(call, number, f"call_{stamp.token}"):
            for index in indices:
                choice = b'{"index":%d,"delta":%b,"logprobs":null,"finish_reason":null}'
                yield Event(head + choice % (index, delta) + tail, worth, paced=True)
    for index in indices:
        yield Event(head + shape.last_choice % index + reason + b"}" + tail)
    if usage is not None:
        data = head + b'],"usage":' + msgspec.json.encode(usage) + b"}\n\n"
        for _ in range(2 if behaviour.usage == "twice" else 1):
            yield Event(data, usage=usage)
    yield DONE
