"""Kept answers for tests: made by the simulated providers, or written by hand.

Knows: the simulator's dialects and `Entry`. Must not know: what is asserted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from extproc.answers import Entry, Form
from extproc.dialects.sse import Reader
from extproc.simulator.anthropic import Anthropic
from extproc.simulator.behaviour import Behaviour
from extproc.simulator.dialect import Call, Script, Stamp
from extproc.simulator.openai import OpenAI

SIMULATED = Stamp("0123456789", 1_700_000_000)
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "embeddings": "/v1/embeddings",
}


def entry(endpoint: str, form: Form, body: bytes) -> Entry:
    """Return a kept answer of which only what is told again matters."""
    return Entry(endpoint, "t", "m", "p", "m", 0, 1, form, (1, 1, 0), body)


def simulated(endpoint: str, request: dict[str, Any], behaviour: Behaviour) -> bytes:
    """Return the simulated provider's whole answer: the same for the same request."""
    dialect = (Anthropic if endpoint == "messages" else OpenAI)(["m"])
    call = dialect.read("POST", PATHS[endpoint], json.dumps(request).encode())
    assert isinstance(call, Call), call
    answer = call.render(behaviour, SIMULATED)
    if isinstance(answer, Script):
        return b"".join(event.data for event in answer.events)
    return answer.body


def stream(chunks: Iterable[Any], end: bytes = b"data: [DONE]\n\n") -> bytes:
    """Return a stream of chunks without names."""
    return b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in chunks) + end


def named(found: Iterable[dict[str, Any]]) -> bytes:
    """Return a stream of events named by their type."""
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (one["type"].encode(), json.dumps(one).encode())
        for one in found
    )


def events(body: bytes) -> list[Any]:
    """Return the decoded events of a stream, [DONE] as it is; names must be the types."""
    reader = Reader()
    found: list[Any] = []
    for name, data in reader.feed(body):
        found.append("[DONE]" if data == b"[DONE]" else json.loads(data))
        assert not name or found[-1]["type"] == name.decode()
    assert reader.finish() == []
    return found


STAMP = {"id": "c1", "created": 7, "model": "m"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chunk(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a chunk of a chat completion."""
    return {**STAMP, "object": "chat.completion.chunk", "choices": list(choices), **more}


def says(delta: Any, index: Any = 0, end: Any = None, **more: Any) -> dict[str, Any]:
    """Return a chunk with a delta of one choice."""
    return chunk({"index": index, "delta": delta, "finish_reason": end}, **more)


END = says({}, end="stop")
