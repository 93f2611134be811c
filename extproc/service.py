"""The external processor behind every transport: message bytes in, reply bytes out.

Knows: the wire codec, the order of messages and the pipeline. Must not know: gRPC or sockets.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from math import ceil
from time import perf_counter
from typing import Final, TypeAlias

from msgspec.structs import replace

from extproc import recording
from extproc.domain import ENDPOINTS, MODELS_PATH, Dialect, Reply, Trace
from extproc.errors import Denied, render
from extproc.exchange import Event, OutOfOrder, State, advance
from extproc.gateway import Gateway, Hit, Identified
from extproc.inflight import InFlight
from extproc.merging import Merging
from extproc.merging import State as Merged
from extproc.pipeline import (
    admit,
    dialect_of,
    greet,
    identify,
    request_id_of,
)
from extproc.policies.trace import traceparent_of, written
from extproc.upstream import State as Stage
from extproc.upstream import Translation
from extproc.watch import Watch
from extproc.wire import messages as wire
from extproc.wire.attempts import encode_answer_headers

log: Final = logging.getLogger(__name__)


READING_S: Final = 60.0  # how long a client may take to read a kept answer

Attempt: TypeAlias = Translation | Watch  # an exchange of a filter in a provider's cluster
Say: TypeAlias = Callable[[bytes], Awaitable[None]]


async def _to_nobody(_message: bytes) -> None:
    """Say it to nobody."""


class ProtocolError(Exception):
    """The peer broke the protocol: this stream ends with INVALID_ARGUMENT, others go on."""


class Exchange:
    """One HTTP transaction. `receive` suspends only for a remote store; then `ended` says whether
    the RPC is over. `close` is called exactly once, however the stream ends.
    """

    __slots__ = (
        "_attempt",
        "_began",
        "_dialect",
        "_endpoint",
        "_gateway",
        "_identified",
        "_inflight",
        "_merging",
        "_request_id",
        "_state",
        "_trace",
    )

    def __init__(self, gateway: Gateway, inflight: InFlight) -> None:
        self._gateway = gateway
        self._inflight = inflight
        self._state = State.NEW
        self._identified: Identified | None = None
        self._request_id = ""
        self._endpoint = "none"
        self._dialect: Dialect = "openai"
        self._trace: Trace | None = None
        self._began = 0.0
        self._attempt: Attempt | None = None
        self._merging: Merging | None = None

    @property
    def ended(self) -> bool:
        """Say whether the last reply was the final one."""
        if self._attempt is not None:
            return self._attempt.state is Stage.ENDED
        if self._merging is not None:
            return self._merging.state is Merged.ENDED
        return self._state is State.ENDED

    @property
    def patience_s(self) -> float | None:
        """Return for how long a stream that passes here may be silent; None for all else."""
        return None if self._attempt is None else self._attempt.patience_s

    def overdue(self) -> bytes:
        """End a stream whose provider has fallen silent."""
        assert self._attempt is not None, "nothing else is waited for"
        return self._attempt.overdue()

    async def receive(self, raw: bytes, say: Say = _to_nobody) -> bytes:
        """Answer one message. Raises ProtocolError.

        What is given to `say` goes to the peer before the answer.
        """
        if self._attempt is not None:
            reply = self._go_on(self._attempt, raw)
            if self._attempt.owed:
                await say(self._attempt.owed)
            return reply
        if self._merging is not None:
            return self._go_on(self._merging, raw)
        started = perf_counter()
        try:
            message = wire.decode(raw)
            kind = message.kind
            watched = kind is wire.Kind.WATCHED
            if (watched or kind is wire.Kind.UPSTREAM) and self._state is State.NEW:
                self._attempt = self._of_attempt(watched)
                return self._go_on(self._attempt, raw)
            event: str = kind
            if message.head is not None and message.head.ends:
                event = Event.HEADERS_ENDING
            self._state = advance(self._state, event)
        except (wire.Malformed, OutOfOrder) as error:
            self._state = State.ENDED
            raise ProtocolError(str(error)) from error
        try:
            if message.head is not None:
                reply = await self._headers(message)
                self._gateway.observer.admission("headers", perf_counter() - started)
            elif event == Event.REFUSED:
                return encode_answer_headers((), streamed=False)
            else:
                reply = await self._body(message.body, say)
                self._gateway.observer.admission("body", perf_counter() - started)
        except Denied as denied:
            return self._refuse(denied)
        except Exception:  # a bug: answered 500, logged with its trace, never an open door
            log.exception("processor failed", extra={"request_id": self._request_id})
            return self._refuse(Denied("internal_error", "The gateway failed on this request."))
        return reply

    def close(self) -> None:
        """Forget the transaction."""
        self._state = State.ENDED
        self._identified = None
        self._attempt = None
        self._merging = None

    async def _headers(self, message: wire.Message) -> bytes:
        head = message.head
        assert head is not None
        self._request_id = request_id_of(self._gateway, head)
        endpoint = ENDPOINTS.get((head.method, head.path))
        self._endpoint = endpoint.name if endpoint else _endpoint_label(head.path)
        self._dialect = dialect_of(head)
        decided = await identify(self._gateway, head, self._request_id)
        if type(decided) is Reply:
            self._state = advance(self._state, Event.ANSWERED)
            return wire.encode_reply(decided)
        self._identified = decided
        greeting = greet(decided)
        tracer = self._gateway.tracer
        if tracer is not None:
            # Only now, because who is not known could fill the collector with spans.
            self._began = self._gateway.clock()
            self._trace = tracer.begin(head.headers.get("traceparent"))
            header = ("traceparent", traceparent_of(self._trace))
            greeting = replace(greeting, set_headers=(*greeting.set_headers, header))
        return wire.encode_continue(greeting)

    async def _body(self, body: bytes, say: Say) -> bytes:
        identified = self._identified
        assert identified is not None
        gateway = self._gateway

        async def patience(seconds: float) -> None:
            await say(wire.encode_patience(ceil(seconds)))

        decided = await admit(gateway, identified, body, patience)
        if self._trace is not None and gateway.tracer is not None:
            gateway.tracer.admitted(self._trace, self._began, gateway.clock())
        if type(decided) is Hit:
            self._inflight.add(decided.id, gateway.clock() + READING_S)
            return wire.encode_hit(decided, recording.encode_hit(decided, written(self._trace)))
        if decided.complete is not None:
            self._merging = Merging(decided.complete, self._dialect, self._request_id)
        plan = decided.plan
        arrived = gateway.health.planned(plan.attempts, gateway.steady())
        self._inflight.add(decided.id, gateway.clock() + plan.timeout_ms / 1000, ended=arrived)
        return wire.encode_forward(decided, recording.encode(decided, written(self._trace)))

    def _of_attempt(self, watched: bool) -> Attempt:
        silence_s = self._gateway.snapshot.wait_ms / 1000
        return Watch(silence_s) if watched else Translation(self._gateway.clock, silence_s)

    def _go_on(self, other: Attempt | Merging, raw: bytes) -> bytes:
        """Hand a message to the exchange that this one has become. Raises ProtocolError."""
        try:
            return other.receive(raw)
        except (wire.Malformed, OutOfOrder) as error:
            other.end()
            raise ProtocolError(str(error)) from error

    def _refuse(self, denied: Denied) -> bytes:
        self._state = State.ENDED
        gateway, identified = self._gateway, self._identified
        gateway.observer.denied(self._endpoint, denied.status, denied.code)
        if self._trace is not None and gateway.tracer is not None and identified is not None:
            gateway.tracer.denied(
                self._trace,
                started=self._began,
                ended=gateway.clock(),
                who=identified.principal,
                endpoint=self._endpoint,
                code=denied.code,
            )
        return wire.encode_reply(render(denied, self._dialect, self._request_id))


def _endpoint_label(path: str) -> str:
    return "models" if path == MODELS_PATH or path.startswith(MODELS_PATH + "/") else "none"


class Processor:
    """Opens an exchange for every ext_proc stream."""

    def __init__(self, gateway: Gateway, inflight: InFlight) -> None:
        self._gateway = gateway
        self._inflight = inflight

    def open(self) -> Exchange:
        """Start one transaction."""
        return Exchange(self._gateway, self._inflight)
