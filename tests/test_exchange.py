"""The whole table of one transaction: every state with every event."""

from __future__ import annotations

import pytest

from extproc.exchange import LEGAL, Event, OutOfOrder, State, advance
from extproc.wire.messages import Kind

EVENTS = sorted({*map(str, Event), *map(str, Kind), "unheard_of"})
EXPECTED = {
    ("new", "request_headers"): "awaits_body",
    ("new", "request_headers_without_body"): "ended",
    ("awaits_body", "request_body"): "ended",
    ("awaits_body", "answered_by_processor"): "ended",
    ("awaits_body", "response_headers"): "ended",
    ("ended", "answered_by_processor"): "ended",
}
REFUSED = [(s, e) for s in State for e in EVENTS if (s.value, e) not in EXPECTED]


@pytest.mark.parametrize(
    ("state", "event"), REFUSED, ids=[f"a {s} exchange refuses {e}" for s, e in REFUSED]
)
def test_an_unlisted_pair_raises_with_state_and_event(state: State, event: str) -> None:
    with pytest.raises(OutOfOrder, match=f"^{event} in state {state}$") as caught:
        advance(state, event)
    assert (caught.value.state, caught.value.event) == (state, event)


@pytest.mark.parametrize(
    ("state", "event", "following"),
    [
        pytest.param(s, e, after, id=f"a {s} exchange is {after} after {e}")
        for (s, e), after in EXPECTED.items()
    ],
)
def test_a_listed_pair_leads_on(state: str, event: str, following: str) -> None:
    assert advance(State(state), event) is State(following)


def test_the_table_holds_these_pairs_and_no_others() -> None:
    assert {(s.value, str(e)): after.value for (s, e), after in LEGAL.items()} == EXPECTED


def test_the_wire_names_its_messages_as_the_table_does() -> None:
    assert {Event.HEADERS.value, Event.BODY.value, Event.REFUSED.value} <= {
        kind.value for kind in Kind
    }
