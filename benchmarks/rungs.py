"""The ladder: what each rung is made of, started so that all of them are up at the same time.

Knows which processes make a rung. Knows nothing of loads and figures.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib import error, request

from benchmarks import envoy, peers
from benchmarks import product as ours
from benchmarks.processes import HOST, Child, StartError, free_port, running, wait_path, wait_port

NAMES = {
    1: "client -> mock",
    2: "Envoy",
    3: "Envoy + no-op on the lane",
    4: "LLM Edge Agent",
    5: "LiteLLM proxy",
    6: "Portkey gateway",
    7: "Envoy + no-op on grpcio",
    8: "LLM Edge Agent, not compiled",
}
NO_OPS = {3: "lane", 7: "grpcio"}
PEERS = frozenset({5, 6})
BENCH_PATH = "/v1/chat/completions"
MODEL = "bench-model"
PROBE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Rung:
    """One way from the client to the mock. `processor` is the gateway itself for the peers."""

    number: int
    url: str
    model: str = MODEL
    headers: Mapping[str, str] = field(default_factory=dict)
    stream_url: str | None = None
    stream_model: str = MODEL
    processor: Child | None = None
    envoy: Child | None = None
    socket: Path | None = None  # the processor's

    @property
    def name(self) -> str:
        return NAMES[self.number]


@dataclass(frozen=True, slots=True)
class Mocks:
    """Where the two upstreams listen."""

    json_port: int
    sse_port: int


STREAMED = frozenset({1, 2, 3, 4})  # what the streaming figures need


def start(
    stack: contextlib.ExitStack,
    numbers: Collection[int],
    bench: Path,
    run: Path,
    brief: contextlib.ExitStack | None = None,
) -> tuple[dict[int, Rung], dict[int, str]]:
    """Start the mocks and the wanted rungs on `stack`; on `brief`, if given, those not `STREAMED`.

    Returns the rungs that answer by number, and by number why the others do not.
    """
    upstream = stack.enter_context(mocks(run))
    makers: dict[int, Callable[[], contextlib.AbstractContextManager[Rung]]] = {
        1: lambda: _direct(upstream),
        2: lambda: _bare(run, upstream),
        3: lambda: _noop(3, run, upstream),
        4: lambda: product(4, run, upstream, ours.wheel(bench)),
        5: lambda: _litellm(bench, run, upstream),
        6: lambda: _portkey(bench, run, upstream),
        7: lambda: _noop(7, run, upstream),
        8: lambda: product(8, run, upstream, ours.ROOT),
    }
    up: dict[int, Rung] = {}
    skipped: dict[int, str] = {}
    for number in sorted(numbers):
        attempt = contextlib.ExitStack()
        try:
            rung = attempt.enter_context(makers[number]())
            probe(rung)
        except StartError as problem:
            attempt.close()
            skipped[number] = str(problem)
            print(f"rung {number} ({NAMES[number]}) skipped: {problem}", flush=True)
        else:
            (stack if brief is None or number in STREAMED else brief).push(attempt)
            up[number] = rung
            print(f"rung {number} ({NAMES[number]}) is up", flush=True)
    return up, skipped


def probe(rung: Rung) -> None:
    """Ask the rung once, and once for a stream; raise `StartError` unless both answer rightly."""
    answer = json.loads(_post(rung, rung.url, rung.model, {}))
    if answer.get("usage", {}).get("total_tokens") != 238:
        raise StartError(f"not the mock's answer: {answer}")
    if rung.stream_url is not None:
        pace = {envoy.STREAM_HEADER: "1", "x-sim-output-tokens": "3", "x-sim-chunk-ms": "1"}
        events = _post(rung, rung.stream_url, rung.stream_model, pace)
        if events.count(b'"content":"') != 3 or b"[DONE]" not in events:
            raise StartError(f"not the mock's stream: {events[-400:].decode(errors='replace')}")


def _post(rung: Rung, url: str, model: str, headers: Mapping[str, str]) -> bytes:
    call: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": "ping"}]}
    if headers:
        call["stream"] = True
    sent = {"content-type": "application/json", **rung.headers, **headers}
    asked = request.Request(url, json.dumps(call).encode(), sent, method="POST")
    opener = request.build_opener(request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=PROBE_SECONDS) as answer:
            return bytes(answer.read())
    except error.HTTPError as problem:
        said = problem.read()[-300:].decode(errors="replace")
        raise StartError(f"probe answered {problem.code}: {said}") from problem
    except OSError as problem:
        raise StartError(f"probe failed: {problem}") from problem


def _url(port: int) -> str:
    return f"http://{HOST}:{port}{BENCH_PATH}"


@contextlib.contextmanager
def _envoy(run: Path, name: str, port: int, config: envoy.Config) -> Iterator[Child]:
    path = run / f"{name}.json"
    path.write_text(json.dumps(config))
    with running(name, envoy.argv(path), run) as child:
        wait_port(port, child)
        yield child


def _python(module: str, *words: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.{module}", *words]


_ENV = {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


@contextlib.contextmanager
def mocks(run: Path) -> Iterator[Mocks]:
    """Run both upstreams."""
    json_port, sse_port = free_port(), free_port()
    argv = _python("mock", "--port", str(sse_port))
    with (
        _envoy(run, "mock-json", json_port, envoy.mock(json_port)),
        running("mock-sse", argv, run, _ENV) as sse,
    ):
        wait_port(sse_port, sse)
        yield Mocks(json_port, sse_port)


@contextlib.contextmanager
def _direct(mocks: Mocks) -> Iterator[Rung]:
    yield Rung(1, _url(mocks.json_port), stream_url=_url(mocks.sse_port))


@contextlib.contextmanager
def _bare(run: Path, mocks: Mocks) -> Iterator[Rung]:
    port = free_port()
    config = envoy.bare(port, mocks.json_port, mocks.sse_port)
    with _envoy(run, "envoy-bare", port, config) as proxy:
        yield Rung(2, _url(port), stream_url=_url(port), envoy=proxy)


@contextlib.contextmanager
def _noop(number: int, run: Path, mocks: Mocks) -> Iterator[Rung]:
    kind = NO_OPS[number]
    # Relative, because a Unix socket's path is 107 bytes at most.
    port, socket = free_port(), f"{kind}.sock"
    config = envoy.noop(port, mocks.json_port, mocks.sse_port, socket)
    argv = _python("noop_processor", "--transport", kind, "--socket", socket)
    with running(f"noop-{kind}", argv, run, _ENV) as processor:
        wait_path(run / socket, processor)
        with _envoy(run, f"envoy-{kind}", port, config) as proxy:
            yield Rung(
                number,
                _url(port),
                stream_url=_url(port),
                processor=processor,
                envoy=proxy,
                socket=run / socket,
            )


@contextlib.contextmanager
def product(
    number: int,
    run: Path,
    mocks: Mocks,
    tree: Path,
    *,
    name: str = "",
    change: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator[Rung]:
    """Run the product of a tree in `run/name`, its configuration changed by `change`."""
    ports = mocks.json_port, mocks.sse_port
    name = name or f"product-{number}"
    with ours.product(run, *ports, name, change=change, tree=tree) as up:
        yield Rung(
            number,
            _url(up.port),
            model=ours.MODEL,
            headers={"authorization": f"Bearer {up.key}"},
            stream_url=_url(up.port),
            stream_model=ours.STREAM_MODEL,
            processor=up.processor,
            envoy=up.envoy,
            socket=up.socket,
        )


@contextlib.contextmanager
def _litellm(bench: Path, run: Path, mocks: Mocks) -> Iterator[Rung]:
    with peers.litellm(bench, run, mocks.json_port) as (port, child):
        yield Rung(5, _url(port), headers=peers.litellm_headers(), processor=child)


@contextlib.contextmanager
def _portkey(bench: Path, run: Path, mocks: Mocks) -> Iterator[Rung]:
    with peers.portkey(bench, run) as (port, child):
        headers = peers.portkey_headers(mocks.json_port)
        yield Rung(6, _url(port), headers=headers, processor=child)
