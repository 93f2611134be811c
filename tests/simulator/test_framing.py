"""However a stream is cut, it is the same stream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.simulator.behaviour import Behaviour
from extproc.simulator.dialect import Event
from extproc.simulator.framing import frame

EVENTS = st.lists(
    st.builds(
        Event,
        data=st.binary(min_size=1, max_size=300),
        tokens=st.integers(0, 5),
        paced=st.booleans(),
        usage=st.none(),
        chunks=st.just(1),
    ),
    max_size=30,
)
FRAMINGS = st.sampled_from(["event", "byte", "random"])


@given(events=EVENTS, framing=FRAMINGS, seed=st.integers(0, 99))
def test_cuts_join_to_the_same_bytes(events: list[Event], framing: str, seed: int) -> None:
    """No cut loses or adds a byte, a token or a chunk."""
    behaviour = Behaviour(framing=framing)  # type: ignore[arg-type]
    pieces = list(frame(iter(events), behaviour, seed))
    assert b"".join(piece.data for piece in pieces) == b"".join(event.data for event in events)
    assert sum(piece.tokens for piece in pieces) == sum(event.tokens for event in events)
    assert sum(piece.chunks for piece in pieces) == len(events)
    assert all(piece.data for piece in pieces)


@given(events=EVENTS, framing=FRAMINGS, count=st.integers(0, 40))
def test_breaking_off_hands_over_exactly_so_many_events(
    events: list[Event], framing: str, count: int
) -> None:
    """Bytes of later events never leak into a stream that breaks before them."""
    behaviour = Behaviour(framing=framing, abort_after_chunks=count)  # type: ignore[arg-type]
    pieces = list(frame(iter(events), behaviour, 1))
    assert b"".join(piece.data for piece in pieces) == b"".join(e.data for e in events[:count])


def test_random_cuts_repeat_with_their_seed_and_span_events() -> None:
    """A failure can be repeated, and readers cannot rely on a piece being an event."""
    events = [Event(b"data: %d\n\n" % index) for index in range(200)]
    behaviour = Behaviour(framing="random")
    first, again, other = (list(frame(iter(events), behaviour, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert {piece.chunks for piece in first} > {0, 1, 2}


def test_usage_is_sent_with_the_last_byte_of_its_event() -> None:
    """A usage of which the client has all bytes but one was not sent."""
    usage = {"total_tokens": 3}
    pieces = list(frame(iter([Event(b"abc", usage=usage)]), Behaviour(framing="byte"), 1))
    assert [piece.usage for piece in pieces] == [None, None, usage]


@pytest.mark.parametrize("framing", ["event", "byte", "random"])
def test_crlf(framing: str) -> None:
    """Lines may end in CRLF, whatever the framing."""
    behaviour = Behaviour(framing=framing, newline="crlf")  # type: ignore[arg-type]
    pieces = frame(iter([Event(b"event: a\ndata: b\n\n")]), behaviour, 1)
    assert b"".join(piece.data for piece in pieces) == b"event: a\r\ndata: b\r\n\r\n"
