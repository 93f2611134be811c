"""The exchange that watches one attempt's stream, which passes as it is, for silence.

Knows: the order of its messages. Must not know: protobuf, transports, plans.
It runs in the own cluster of a provider with `stall_events`, from the answer's headers on: what is
no stream costs one message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from extproc.dialects.unchanged import Unchanged, api_of
from extproc.upstream import Event, State, step
from extproc.wire import attempts as wire

PLAIN: Final = frozenset({"", "identity"})  # an event cannot follow what is compressed
LEGAL: Final[Mapping[tuple[State, Event], State]] = {
    (State.NEW, Event.DOCUMENT): State.ENDED,
    (State.NEW, Event.EVENTS): State.STREAMS,
    (State.NEW, Event.NOTHING): State.ENDED,
    (State.STREAMS, Event.CHUNK): State.STREAMS,
    (State.STREAMS, Event.LAST_CHUNK): State.ENDED,
    (State.STREAMS, Event.TRAILERS): State.ENDED,
}


class Watch:
    """One attempt, whose stream may be silent for `silence_s`."""

    __slots__ = ("_silence_s", "_stream", "owed", "state")

    def __init__(self, silence_s: float) -> None:
        self.state = State.NEW
        self.owed = b""
        self._silence_s = silence_s
        self._stream: Unchanged | None = None

    def end(self) -> None:
        """Have nothing follow."""
        self.state = State.ENDED

    @property
    def patience_s(self) -> float | None:
        """Return for how long no chunk may come, None where none is waited for."""
        return self._silence_s if self.state is State.STREAMS else None

    def overdue(self) -> bytes:
        """Say in the caller's dialect that the stream fell silent, as `Translation.overdue`."""
        assert self._stream is not None, "only streams are waited for"
        self.state = State.ENDED
        return wire.encode_chunk(self._stream.broken(), ends=False)

    def receive(self, raw: bytes) -> bytes:
        """Answer one message; what is `owed` then goes before it. Raises OutOfOrder, Malformed."""
        message = wire.decode(raw)
        event, self.state = step(LEGAL, self.state, message)
        stream = self._stream
        if stream is None:
            return self._begin(message, streamed=event is Event.EVENTS)
        if event is Event.TRAILERS:
            if rest := stream.rest():
                self.owed = wire.encode_chunk(rest, ends=False)
            return wire.encode_trailers()
        data = stream.feed(message.body)
        if message.ends:
            data += stream.rest()
        return wire.encode_chunk(data, ends=message.ends)

    def _begin(self, message: wire.Message, *, streamed: bool) -> bytes:
        if streamed and message.headers.get("content-encoding", "") in PLAIN:
            self._stream = Unchanged(api_of(message.path))
            return wire.encode_watched()
        self.state = State.ENDED
        return wire.encode_answered()
