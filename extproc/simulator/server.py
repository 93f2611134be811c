"""The simulated provider: what comes in, in which order it is decided, and how it is run.

Knows the order of decisions and the `/sim/` endpoints. Knows no dialect's JSON and no HTTP framing.
"""

import asyncio
import resource
import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from urllib.parse import parse_qs

import msgspec
import uvloop

from extproc.simulator import behaviour as behaviours
from extproc.simulator.anthropic import Anthropic
from extproc.simulator.behaviour import FIRST_ERROR, OK, BadBehaviourError, Behaviour
from extproc.simulator.dialect import Call, Dialect, Fault, Script, Stamp
from extproc.simulator.http1 import JSON_TYPE, Connection, Exchange
from extproc.simulator.log import Record, RequestLog
from extproc.simulator.openai import OpenAI
from extproc.simulator.play import Player, Wheel, send_whole

DEFAULT_MODELS = {
    "anthropic": ("claude-haiku-4-5", "claude-opus-4-5"),
    "openai": ("gpt-4o-mini", "gpt-4o", "text-embedding-3-small"),
}
BACKLOG = 4096  # thousands of clients may connect at once
CONTROL_PREFIX = "/sim/"
RETRYABLE = frozenset({429, 503, 529})  # the statuses that carry retry-after
SSE_HEADERS = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"

_DIALECTS: dict[str, Callable[[Sequence[str]], Dialect]] = {
    "anthropic": Anthropic,
    "openai": OpenAI,
}
DIALECTS = tuple(_DIALECTS)


class Simulator:
    """One simulated provider; `start` makes it listen.

    `behaviour` may be read and set at any time; `requests` is the truth log, oldest first.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        name: str,
        api_key: str | None,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.name = name
        self.port = 0
        self.behaviour = Behaviour()
        self._dialect = dialect
        self._api_key = api_key
        self._clock = clock
        self._wheel = Wheel(loop)
        self._log = RequestLog()
        self._run = secrets.token_hex(6)  # so that two providers never give out the same id
        self._answers = 0
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()

    def __repr__(self) -> str:
        return f"<Simulator {self.name!r} port={self.port} requests={len(self.requests)}>"

    @property
    def requests(self) -> list[Record]:
        """Return the records of all requests, in order of arrival."""
        return self._log.records

    async def listen(self, host: str, port: int) -> None:
        """Start to listen; port 0 lets the kernel choose."""
        loop = asyncio.get_running_loop()
        connect = partial(Connection, self._handle, self._connections)
        self._server = await loop.create_server(connect, host, port, backlog=BACKLOG)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is not None:
            self._server.close()
            for connection in tuple(self._connections):
                connection.abort()
            await self._server.wait_closed()
            self._server = None

    # Provider endpoints, in the order of decisions.

    def _handle(self, exchange: Exchange) -> None:
        request = exchange.request
        if request.path.startswith(CONTROL_PREFIX):
            self._control(exchange)
            return
        record = self._log.open(
            time=self._clock(),
            method=request.method,
            path=request.path,
            headers=request.headers,
            body=request.body,
        )
        exchange.on_closed = partial(_client_closed, record)
        arrived = self._wheel.now()
        try:
            behaviour = behaviours.merge(self.behaviour, request.headers)
        except BadBehaviourError as error:
            fault = self._dialect.bad_request(str(error))
            self._refuse(exchange, record, arrived, Behaviour(), fault)
            return
        decided = self._decide(exchange, record, behaviour)
        if isinstance(decided, Fault):
            act = partial(self._refuse, exchange, record, arrived, behaviour, decided)
        else:
            act = partial(self._answer, exchange, record, arrived, behaviour, decided)
        if behaviour.latency_ms:
            self._wheel.at(arrived + behaviour.latency_ms / 1000, act)
        else:
            act()

    def _decide(self, exchange: Exchange, record: Record, behaviour: Behaviour) -> Call | Fault:
        """Return the call to answer, or the fault: key, then request, then simulated status."""
        request = exchange.request
        key = self._api_key
        if key is not None and self._dialect.credential(request.headers) != key:
            return self._dialect.fault(401)
        refused = self._dialect.check(request.headers)
        if refused is not None:
            return refused
        call = self._dialect.read(request.method, request.path, request.body)
        if isinstance(call, Fault):
            return call
        record.model = call.model
        record.stream = call.stream
        record.include_usage = call.include_usage
        record.prompt_tokens = call.prompt_tokens
        status = behaviour.status
        if status is None and request.method == "POST":
            status = self._next_status()
        if status is not None and status >= FIRST_ERROR:
            return self._dialect.fault(status)
        return call

    def _next_status(self) -> int | None:
        statuses = self.behaviour.statuses
        if not statuses:
            return None
        self.behaviour = msgspec.structs.replace(self.behaviour, statuses=statuses[1:])
        return statuses[0]

    def _refuse(
        self,
        exchange: Exchange,
        record: Record,
        arrived: float,
        behaviour: Behaviour,
        fault: Fault,
    ) -> None:
        if exchange.closed:
            return
        token, headers = self._identify(record, arrived)
        headers += JSON_TYPE
        if fault.status in RETRYABLE and behaviour.retry_after is not None:
            headers += b"retry-after: %b\r\n" % f"{behaviour.retry_after:g}".encode()
        body = self._dialect.encode(fault, token)
        record.status = fault.status
        record.broke = "status"
        record.sent_bytes = len(body)
        exchange.reply(fault.status, headers, body)

    def _answer(
        self, exchange: Exchange, record: Record, arrived: float, behaviour: Behaviour, call: Call
    ) -> None:
        if exchange.closed:
            return
        token, headers = self._identify(record, arrived)
        answer = call.render(behaviour, Stamp(token, int(record.time)))
        if isinstance(answer, Script):
            player = Player(exchange, record, behaviour, answer, self._wheel)
            player.start(headers + SSE_HEADERS)
        else:
            send_whole(exchange, record, behaviour, headers + JSON_TYPE, answer)

    def _identify(self, record: Record, arrived: float) -> tuple[str, bytes]:
        self._answers += 1
        token = f"{self._run}{self._answers:012x}"
        record.answer_id = f"req_{token}"
        elapsed_ms = round((self._wheel.now() - arrived) * 1000)
        return token, self._dialect.identify(token, elapsed_ms)

    # Control endpoints.

    def _control(self, exchange: Exchange) -> None:
        request = exchange.request
        match request.method, request.path:
            case "GET", "/sim/requests":
                self._send_log(exchange)
            case "DELETE", "/sim/requests":
                self._log.clear()
                exchange.reply(OK, JSON_TYPE, b"{}")
            case "GET", "/sim/behaviour":
                exchange.reply(OK, JSON_TYPE, msgspec.json.encode(self.behaviour))
            case "POST", "/sim/behaviour":
                self._set_behaviour(exchange)
            case _:
                message = f"Invalid URL ({request.method} {request.path})"
                fault = msgspec.structs.replace(self._dialect.fault(404), message=message)
                exchange.reply(404, JSON_TYPE, self._dialect.encode(fault, ""))

    def _set_behaviour(self, exchange: Exchange) -> None:
        try:
            self.behaviour = behaviours.parse(exchange.request.body)
        except BadBehaviourError as error:
            body = self._dialect.encode(self._dialect.bad_request(str(error)), "")
            exchange.reply(400, JSON_TYPE, body)
            return
        exchange.reply(OK, JSON_TYPE, msgspec.json.encode(self.behaviour))

    def _send_log(self, exchange: Exchange) -> None:
        after = parse_qs(exchange.request.query).get("after", ["0"])[-1]
        if not after.isdecimal():
            fault = self._dialect.bad_request(f"after={after} is not a sequence number")
            exchange.reply(400, JSON_TYPE, self._dialect.encode(fault, ""))
            return
        headers = b"content-type: application/jsonl\r\nx-sim-dropped: %d\r\n" % self._log.dropped
        exchange.reply(OK, headers, self._log.lines(int(after)))


def _client_closed(record: Record) -> None:
    if not record.finished and record.broke is None:
        record.broke = "client_closed"


async def start(
    host: str,
    port: int,
    *,
    name: str = "sim",
    dialect: str = "openai",
    api_key: str | None = None,
    models: Sequence[str] | None = None,
    clock: Callable[[], float] = time.time,
) -> Simulator:
    """Start a simulated provider in the running loop and return it listening.

    Port 0 lets the kernel choose (`Simulator.port`). `models` None means the dialect's usual ones.
    With `api_key`, every other key gets a 401.
    `clock` gives the unix seconds of the log. Raises `ValueError` for an unknown dialect. The
    caller awaits `Simulator.close()`.
    """
    make = _DIALECTS.get(dialect)
    if make is None:
        message = f"unknown dialect {dialect!r}; legal: {', '.join(sorted(_DIALECTS))}"
        raise ValueError(message)
    loop = asyncio.get_running_loop()
    simulator = Simulator(
        make(DEFAULT_MODELS[dialect] if models is None else models),
        name=name,
        api_key=api_key,
        clock=clock,
        loop=loop,
    )
    await simulator.listen(host, port)
    return simulator


def serve(host: str, port: int, *, dialect: str, name: str) -> None:
    """Run a simulated provider until SIGTERM or SIGINT; print one line when it listens."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a stream is a file
    uvloop.run(_serve(host, port, dialect, name))


async def _serve(host: str, port: int, dialect: str, name: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    simulator = await start(host, port, name=name, dialect=dialect)
    sys.stdout.write(
        f"simulated provider {name} ({dialect}) on http://{host}:{simulator.port}/v1\n"
    )
    sys.stdout.flush()
    await stop.wait()
    await simulator.close()
