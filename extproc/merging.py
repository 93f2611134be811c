"""The exchange that completes the answer to a part of a call with what is kept of the rest.

Knows: the order of its messages, and whom the answer is for. Must not know: what is kept, protobuf,
transports. It goes on where a decision has ended, and only where that sent a part of a batch: every
other answer passes without a message to the processor.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Final

from extproc.answers import Complete
from extproc.cache.recorded import CannotTell
from extproc.domain import Dialect
from extproc.errors import Denied, render
from extproc.exchange import OutOfOrder
from extproc.wire import attempts as wire


class State(StrEnum):
    """Where one answer stands."""

    AWAITS_ANSWER = "awaits_answer"
    COLLECTS = "collects_a_document"
    ENDED = "ended"


class Event(StrEnum):
    """What may happen to it."""

    DOCUMENT = "response_headers"
    OTHERS = "response_headers_of_something_else"  # an error, or nothing
    BODY = "response_body"


LEGAL: Final[Mapping[tuple[State, str], State]] = {
    (State.AWAITS_ANSWER, Event.DOCUMENT): State.COLLECTS,
    # Because an error is the provider's or Envoy's to tell, as it is.
    (State.AWAITS_ANSWER, Event.OTHERS): State.ENDED,
    (State.COLLECTS, Event.BODY): State.ENDED,
}
GOOD: Final = str(int(HTTPStatus.OK))


class Merging:
    """One answer, made whole by `complete`."""

    __slots__ = ("_complete", "_dialect", "_request_id", "state")

    def __init__(self, complete: Complete, dialect: Dialect, request_id: str) -> None:
        self.state = State.AWAITS_ANSWER
        self._complete = complete
        self._dialect: Dialect = dialect
        self._request_id = request_id

    def receive(self, raw: bytes) -> bytes:
        """Answer one message. Raises OutOfOrder and wire's Malformed."""
        message = wire.decode(raw)
        event: str = message.kind
        if event == Event.DOCUMENT and (message.ends or message.headers.get(":status") != GOOD):
            event = Event.OTHERS
        following = LEGAL.get((self.state, event))
        if following is None:
            raise OutOfOrder(self.state, event)
        self.state = following
        if event == Event.BODY:
            return self._whole(message.body)
        return wire.encode_answer_headers((), streamed=False)

    def end(self) -> None:
        """Have nothing follow."""
        self.state = State.ENDED

    def _whole(self, body: bytes) -> bytes:
        try:
            return wire.encode_answer(self._complete(body), None)
        except CannotTell:
            # What it answered is kept by now: who asks again is told, or sends the whole batch.
            denied = Denied(
                "upstream_error", "The provider's answer does not go with what was kept. Ask again."
            )
            reply = render(denied, self._dialect, self._request_id)
            return wire.encode_answer(reply.body, reply.status)
