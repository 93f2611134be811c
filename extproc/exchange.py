"""The legal order of messages of one HTTP transaction, as a table.

Knows: the names of messages and states. Must not know: what the messages hold or what they mean.
An unlisted pair raises with state and event; the transport then ends that stream alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where one transaction stands."""

    NEW = "new"
    AWAITS_BODY = "awaits_body"
    ENDED = "ended"


class Event(StrEnum):
    """What may happen to it."""

    HEADERS = "request_headers"
    HEADERS_ENDING = "request_headers_without_body"
    BODY = "request_body"
    ANSWERED = "answered_by_processor"
    REFUSED = "response_headers"  # by Envoy: no provider has been asked yet


LEGAL: Final[Mapping[tuple[State, str], State]] = {
    (State.NEW, Event.HEADERS): State.AWAITS_BODY,
    (State.NEW, Event.HEADERS_ENDING): State.ENDED,
    (State.AWAITS_BODY, Event.BODY): State.ENDED,
    # Because an answer from here ends the transaction wherever it stands.
    (State.AWAITS_BODY, Event.ANSWERED): State.ENDED,
    # Because a body may be too long or too late, and some endpoints' answers are asked for.
    (State.AWAITS_BODY, Event.REFUSED): State.ENDED,
    (State.ENDED, Event.ANSWERED): State.ENDED,
}


class OutOfOrder(Exception):
    """A message the table does not list."""

    def __init__(self, state: str, event: str) -> None:
        super().__init__(f"{event} in state {state}")
        self.state = state
        self.event = event


def advance(state: State, event: str) -> State:
    """Return the next state. Raises OutOfOrder."""
    following = LEGAL.get((state, event))
    if following is None:
        raise OutOfOrder(state, event)
    return following
