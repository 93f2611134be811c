"""The exchange that translates one attempt at a provider of another dialect than the caller's.

Knows: the order of its messages, and the two directions. Must not know: protobuf, transports,
plans. It runs in the cluster of that provider alone, so a call that needs no translation, and an
attempt that was never made, cost nothing here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Final

from extproc.dialects.directions import DIRECTIONS, Direction, Translator
from extproc.domain import Dialect, caller_of
from extproc.exchange import OutOfOrder
from extproc.wire import attempts as wire

log: Final = logging.getLogger(__name__)


class State(StrEnum):
    """Where one attempt stands."""

    NEW = "new"
    AWAITS_BODY = "awaits_request_body"
    AWAITS_ANSWER = "awaits_answer"
    COLLECTS = "collects_a_document"
    STREAMS = "streams_events"
    ENDED = "ended"


class Event(StrEnum):
    """What may happen to it."""

    HEADERS = "request_headers"
    BODY = "request_body"
    DOCUMENT = "response_headers"
    EVENTS = "response_headers_of_events"
    NOTHING = "response_headers_without_body"
    CHUNK = "response_body"
    LAST_CHUNK = "response_body_ending"
    TRAILERS = "response_trailers"


LEGAL: Final[Mapping[tuple[State, Event], State]] = {
    (State.NEW, Event.HEADERS): State.AWAITS_BODY,
    (State.AWAITS_BODY, Event.BODY): State.AWAITS_ANSWER,
    (State.AWAITS_ANSWER, Event.DOCUMENT): State.COLLECTS,
    (State.AWAITS_ANSWER, Event.EVENTS): State.STREAMS,
    (State.AWAITS_ANSWER, Event.NOTHING): State.ENDED,
    # Envoy buffers a document whole, so its first chunk is its last, trailers after it or not.
    (State.COLLECTS, Event.LAST_CHUNK): State.ENDED,
    (State.COLLECTS, Event.CHUNK): State.ENDED,
    (State.STREAMS, Event.CHUNK): State.STREAMS,
    (State.STREAMS, Event.LAST_CHUNK): State.ENDED,
    (State.STREAMS, Event.TRAILERS): State.ENDED,
}


def event_of(message: wire.Message) -> Event:
    """Name what a message means for the order. Raises ValueError for one that has no place."""
    if message.kind == Event.DOCUMENT:
        if message.ends:
            return Event.NOTHING
        events = message.headers.get("content-type", "").startswith("text/event-stream")
        return Event.EVENTS if events and _status(message) == HTTPStatus.OK else Event.DOCUMENT
    if message.kind == Event.CHUNK and message.ends:
        return Event.LAST_CHUNK
    return Event(message.kind)


def _status(message: wire.Message) -> int:
    status = message.headers.get(":status", "")
    return int(status) if status.isdecimal() else 0


def step(
    legal: Mapping[tuple[State, Event], State], state: State, message: wire.Message
) -> tuple[Event, State]:
    """Return what a message means in a state, and the state after it. Raises OutOfOrder."""
    try:
        event = event_of(message)
    except ValueError:
        raise OutOfOrder(state, message.kind) from None
    following = legal.get((state, event))
    if following is None:
        raise OutOfOrder(state, event)
    return event, following


class Translation:
    """One attempt. `clock` is unix seconds; a stream may be silent for `silence_s`."""

    __slots__ = (
        "_caller",
        "_clock",
        "_lossy",
        "_model",
        "_request_id",
        "_silence_s",
        "_status",
        "_stream",
        "owed",
        "state",
    )

    def __init__(self, clock: Callable[[], float], silence_s: float) -> None:
        self.state = State.NEW
        self.owed = b""
        self._clock = clock
        self._silence_s = silence_s
        self._caller: Dialect = "openai"
        self._model = ""
        self._request_id = ""
        self._lossy: tuple[str, ...] = ()
        self._status = 0
        self._stream: Translator | None = None

    @property
    def patience_s(self) -> float | None:
        """Return for how long no chunk may come, None where none is waited for."""
        return self._silence_s if self.state is State.STREAMS else None

    def overdue(self) -> bytes:
        """Say in the caller's dialect that a stream fell silent.

        It does not end the body: Envoy would take the attempt for a whole one and keep its
        connection to the provider for ever. Who asks ends the exchange with an error, which makes
        Envoy break off both sides.
        """
        assert self._stream is not None, "only streams are waited for"
        self.state = State.ENDED
        return wire.encode_chunk(self._stream.finish(), ends=False)

    def receive(self, raw: bytes) -> bytes:
        """Answer one message; what is `owed` then goes before it. Raises OutOfOrder, Malformed."""
        message = wire.decode(raw)
        event, self.state = step(LEGAL, self.state, message)
        match event:
            case Event.HEADERS:
                return self._begin(message)
            case Event.BODY:
                return self._ask(message.body)
            case Event.DOCUMENT | Event.EVENTS | Event.NOTHING:
                return self._answer(message, streamed=event is Event.EVENTS)
            case Event.CHUNK | Event.LAST_CHUNK:
                return self._chunk(message)
            case Event.TRAILERS:
                return self._trailers()

    def end(self) -> None:
        """Have nothing follow."""
        self.state = State.ENDED

    @property
    def _direction(self) -> Direction:
        return DIRECTIONS[self._caller]

    def _begin(self, message: wire.Message) -> bytes:
        self._caller = caller_of(message.cluster)
        self._model = message.model
        self._request_id = message.headers.get("x-request-id", "")
        return wire.encode_go_on()

    def _ask(self, body: bytes) -> bytes:
        translated = self._direction.request(body, self._model)
        self._lossy = translated.lossy
        return wire.encode_request(translated.body)

    def _answer(self, message: wire.Message, *, streamed: bool) -> bytes:
        self._status = _status(message)
        headers: wire.Headers = ()
        if self._lossy:
            headers = (("x-llm-lossy", ", ".join(self._lossy).encode()),)
        if streamed:
            self._stream = self._direction.stream(int(self._clock()))
        return wire.encode_answer_headers(headers, streamed=streamed)

    def _chunk(self, message: wire.Message) -> bytes:
        if self._stream is None:
            return self._document(message.body)
        data = self._stream.feed(message.body)
        if message.ends:
            data += self._stream.finish()
        return wire.encode_chunk(data, ends=message.ends)

    def _trailers(self) -> bytes:
        """Let the trailers follow what is left of the stream, or the error in its place."""
        if self._stream is not None and (left := self._stream.finish()):
            self.owed = wire.encode_chunk(left, ends=False)
        return wire.encode_trailers()

    def _document(self, body: bytes) -> bytes:
        direction = self._direction
        if self._status >= HTTPStatus.BAD_REQUEST:
            return wire.encode_answer(direction.error(body, self._status, self._request_id), None)
        made = direction.answer(body, int(self._clock()))
        if made is None:
            # A status nobody retries would end the plan here: this one lets the next target try.
            status = HTTPStatus.BAD_GATEWAY
            return wire.encode_answer(direction.error(b"", status, self._request_id), status)
        return wire.encode_answer(made, None)
