"""`python -m benchmarks.retelling`: what it costs to tell a kept answer again, in microseconds.

Answers are the simulated providers': one of about 1 KB, and its stream both in few pieces and in a
piece a token. Each figure is the least of many repetitions in this process, without sockets.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from msgspec.structs import replace

from extproc.answers import Entry, Form
from extproc.cache.embeddings import merge, split, take_apart, whole
from extproc.cache.replay import replay
from extproc.simulator.anthropic import Anthropic
from extproc.simulator.behaviour import Behaviour
from extproc.simulator.dialect import Call, Script, Stamp
from extproc.simulator.openai import OpenAI

REPETITIONS = 1_000
TOKENS = 100  # about 1 KB of document
INPUTS = 20
HI = [{"role": "user", "content": "Hello"}]
REQUESTS: dict[str, tuple[str, dict[str, object]]] = {
    "chat": ("/v1/chat/completions", {"messages": HI}),
    "completions": ("/v1/completions", {"prompt": "Hello"}),
    "responses": ("/v1/responses", {"input": "Hello"}),
    "messages": ("/v1/messages", {"messages": HI, "max_tokens": TOKENS}),
}
USAGE = {"stream_options": {"include_usage": True}}


class Row(NamedTuple):
    """One figure: of how many bytes, told as what, at what cost."""

    told: str
    size: int
    cost_us: float


def rows() -> Iterator[Row]:
    """Measure everything, one figure at a time."""
    for endpoint in REQUESTS:
        yield from _answers(endpoint)
    for encoding in ("base64", "float"):
        yield from _embeddings(encoding)


def _answers(endpoint: str) -> Iterator[Row]:
    document = _entry(endpoint, "json", {}, TOKENS)
    asked: dict[str, object] = {"stream": True}
    asked |= USAGE if endpoint in {"chat", "completions"} else {}
    few, many = (_entry(endpoint, "sse", asked, step) for step in (TOKENS, 1))
    for name, entry, stream, usage in (
        ("document as it is", document, False, False),
        ("document as a stream", document, True, True),
        ("stream as it is", many, True, True),
        ("stream without usage", many, True, False),
        ("stream of few pieces as a document", few, False, True),
        ("stream of tokens as a document", many, False, True),
    ):
        cost = least_us(_telling(entry, stream=stream, include_usage=usage))
        yield Row(f"{endpoint}: {name}", len(entry.body), cost)
    again = least_us(lambda: replay(many, stream=False, include_usage=False))
    yield Row(f"{endpoint}: stream of tokens as a document, again", len(many.body), again)


def _telling(entry: Entry, *, stream: bool, include_usage: bool) -> Callable[[], object]:
    """Tell a copy each time, which is told as if it were the first."""
    return lambda: replay(replace(entry), stream=stream, include_usage=include_usage)


def _entry(endpoint: str, form: Form, asked: dict[str, object], step: int) -> Entry:
    path, request = REQUESTS[endpoint]
    how = Behaviour(output_tokens=TOKENS, tokens_per_chunk=step)
    body = _answer(path, {"model": "m", **request, **asked}, how)
    return Entry(endpoint, "t", "m", "p", "m", 0, 1, form, (1, 1, 0), body)


def _embeddings(encoding: str) -> Iterator[Row]:
    texts = [f"text number {number}" for number in range(INPUTS)]
    request = {"model": "m", "input": texts, "encoding_format": encoding}
    asked, answer = json.dumps(request).encode(), _answer("/v1/embeddings", request, Behaviour())
    batch, every = split(asked), range(INPUTS)
    taken = take_apart(answer, batch, every)
    name, size = f"{INPUTS} embeddings, {encoding}", len(answer)
    yield Row(f"{name}: request split", len(asked), least_us(lambda: split(asked)))
    yield Row(
        f"{name}: answer taken apart", size, least_us(lambda: take_apart(answer, batch, every))
    )
    yield Row(f"{name}: all known", size, least_us(lambda: whole(batch, taken.kept)))
    yield Row(f"{name}: merged", size, least_us(lambda: merge(batch, {}, taken)))


def _answer(path: str, request: dict[str, object], how: Behaviour) -> bytes:
    dialect = (Anthropic if path == "/v1/messages" else OpenAI)(())
    call = dialect.read("POST", path, json.dumps(request).encode())
    assert isinstance(call, Call)
    answer = call.render(how, Stamp("bench", 0))
    if isinstance(answer, Script):
        return b"".join([event.data for event in answer.events])
    return answer.body


def least_us(work: Callable[[], object]) -> float:
    """Return the least time of many: what the work costs where nothing else runs."""
    least = float("inf")
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - began)
    return least * 1e6


def main() -> int:
    """Print a line a figure."""
    for row in rows():
        print(f"{row.told:52}{row.size:>9} B{row.cost_us:>9.1f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
