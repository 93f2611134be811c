"""What the cache costs a call before any look-up: `python -m benchmarks.cache_key`.

Knows: the pure half of the cache. Must not know: stores, transports. Prints the least microseconds
of the verdict and key of a call, and of judging a recorded stream; exits 1 over the budget.
"""

from __future__ import annotations

import sys
import timeit
from collections.abc import Callable
from typing import Any, Final

import msgspec

from extproc.cache import endings
from extproc.cache.lookup import ask
from extproc.cache_policy import OFF, ModelPolicy, Policy
from extproc.domain import ENDPOINTS, Head, Principal
from extproc.pipeline import DIALECTS

BUDGET_US: Final = 12.0  # of a kilobyte of chat; a whole miss may cost 40 us
REPEATS: Final = 50
REPEAT_S: Final = 0.005  # what each repeat takes, about
EVENTS: Final = 2_000
POLICY: Final = Policy(True, secret=b"s" * 32, models={"m": ModelPolicy("v")})
WHO: Final = Principal("acme", "key_1", "free")
CHAT: Final = "/v1/chat/completions"
HEADERS: Final = {"authorization": "Bearer x", "content-length": "1024", "x-request-id": "r"}


def body(size: int, **fields: Any) -> bytes:
    """Return a body of about this size in bytes: a system prompt, then turns of 200 bytes."""
    turns = [{"role": "system", "content": "You are a helpful assistant."}]
    while len(msgspec.json.encode(turns)) < size - 300:
        role = "assistant" if len(turns) % 2 else "user"
        turns.append({"role": role, "content": "word " * 34})
    turns.append({"role": "user", "content": "What follows?"})
    return msgspec.json.encode({"model": "m", "messages": turns, "max_tokens": 256, **fields})


def asking(path: str, raw: bytes, policy: Policy = POLICY, **headers: str) -> Callable[[], object]:
    """Return what asks for one call."""
    endpoint = ENDPOINTS["POST", path]
    call = DIALECTS[endpoint.dialect].read(endpoint, raw)
    head = Head("POST", path, "", {**HEADERS, **headers}, ends=False)
    return lambda: ask(policy, head, WHO, call, raw)


def recorded() -> bytes:
    """Return a recorded chat stream of `EVENTS` tokens."""
    event = b'data: {"id":"c","object":"chat.completion.chunk","model":"m","choices":[%b]}\n\n'
    told = event % b'{"index":0,"delta":{"content":"word "},"logprobs":null,"finish_reason":null}'
    last = event % b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}'
    return told * EVENTS + last + b"data: [DONE]\n\n"


def least_us(once: Callable[[], object]) -> float:
    """Return the least time of one call over all repeats, in microseconds."""
    calls = max(1, int(REPEAT_S / min(timeit.repeat(once, number=1, repeat=10))))
    return min(timeit.repeat(once, number=calls, repeat=REPEATS)) / calls * 1e6


def main() -> int:
    """Print the table."""
    sampled = {"temperature": 0.7, "stream": True}
    tools = [
        {"type": "function", "function": {"name": f"f{n}", "parameters": {"type": "object"}}}
        for n in range(4)
    ]
    kilobyte = body(1024, **sampled)
    embedding = msgspec.json.encode({"model": "m", "input": "word " * 190})
    rows = {
        f"chat, {len(kilobyte)} bytes": asking(CHAT, kilobyte),
        "the same with the cache off": asking(CHAT, kilobyte, OFF),
        "the same with a Cache-Control": asking(CHAT, kilobyte, **{"cache-control": "max-age=60"}),
        "chat, 1 KB and 4 tools": asking(CHAT, body(1024, tools=tools)),
        "messages, 1 KB": asking("/v1/messages", body(1024), **{"anthropic-version": "2023-06-01"}),
        "embeddings, 1 KB": asking("/v1/embeddings", embedding),
        "chat, 8 KB": asking(CHAT, body(8 * 1024, **sampled)),
        "chat, 64 KB": asking(CHAT, body(64 * 1024, **sampled)),
    }
    measured = {name: least_us(once) for name, once in rows.items()}
    stream = recorded()
    name = f"whether a recorded stream of {EVENTS} events is whole"
    measured[name] = least_us(lambda: endings.read("chat", "sse", stream))
    for name, cost in measured.items():
        print(f"{cost:9.1f} us  {name}")
    cost = next(iter(measured.values()))
    print(f"budget {BUDGET_US} us: {'kept' if cost <= BUDGET_US else 'EXCEEDED'}")
    return 0 if cost <= BUDGET_US else 1


if __name__ == "__main__":
    sys.exit(main())
