"""What a chunk of a translated stream costs the processor: decoding, translation, encoding.

And one of a stream that passes unchanged and is watched. Knows the exchanges of attempts and the
simulated providers' events. Measures in this process, without sockets, so what a transport adds
per message is not in it.
"""

import time
from collections.abc import Iterator

import msgspec

from extproc.pb import core_pb2, ext_proc_pb2
from extproc.simulator.anthropic import Anthropic
from extproc.simulator.behaviour import Behaviour
from extproc.simulator.dialect import Call, Dialect, Script, Stamp
from extproc.simulator.openai import OpenAI
from extproc.upstream import Translation
from extproc.watch import Watch

CHUNKS = 2_000  # a long answer: what is done once per answer disappears
# Of each direction: the translating cluster, the provider's dialect there, and its request's path.
DIRECTIONS: dict[str, tuple[str, Dialect, str]] = {
    "to OpenAI": ("claude+openai", Anthropic(()), "/v1/messages"),
    "to Anthropic": ("gpt+anthropic", OpenAI(()), "/v1/chat/completions"),
    "unchanged": ("", OpenAI(()), "/v1/chat/completions"),
}
SAID = {
    "model": "m",
    "max_tokens": CHUNKS,
    "messages": [{"role": "user", "content": "Hello"}],
    "stream": True,
}


def chunk_us(direction: str) -> float:
    """Return the CPU microseconds of one event that arrives as one chunk."""
    exchange, messages = _begun(direction), list(_answer(direction))
    began = time.process_time()
    for message in messages:
        exchange.receive(message)
    return (time.process_time() - began) * 1e6 / len(messages)


def _begun(direction: str) -> Translation | Watch:
    head = ext_proc_pb2.ProcessingRequest()
    headers = core_pb2.HeaderMap()
    for key, value in ((":status", b"200"), ("content-type", b"text/event-stream")):
        headers.headers.add(key=key, raw_value=value)
    head.response_headers.headers = headers.SerializeToString()
    if not DIRECTIONS[direction][0]:
        watch = Watch(60.0)
        watch.receive(head.SerializeToString())
        return watch
    exchange = Translation(time.time, 60.0)
    first = ext_proc_pb2.ProcessingRequest()
    first.request_headers.SetInParent()
    named = {"xds.cluster_name": DIRECTIONS[direction][0]}
    first.attributes["envoy.filters.http.ext_proc"].update(named)
    body = ext_proc_pb2.ProcessingRequest()
    body.request_body.body = msgspec.json.encode(SAID)
    for message in (first, body, head):
        exchange.receive(message.SerializeToString())
    return exchange


def _answer(direction: str) -> Iterator[bytes]:
    _, dialect, path = DIRECTIONS[direction]
    call = dialect.read("POST", path, msgspec.json.encode(SAID))
    assert isinstance(call, Call)
    script = call.render(Behaviour(output_tokens=CHUNKS), Stamp("bench", 0))
    assert isinstance(script, Script)
    for event in script.events:
        message = ext_proc_pb2.ProcessingRequest()
        message.response_body.body = event.data
        yield message.SerializeToString()
