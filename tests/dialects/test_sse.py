"""The event stream reader: the format's rules, and that no chunking confuses it."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.dialects import sse
from extproc.dialects.sse import Event, Reader, TooLong


def read(data: bytes, cuts: list[int] | None = None) -> list[Event]:
    """Feed the bytes, cut at the places, and finish."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts or [])})
    reader, events = Reader(), []
    for start, stop in itertools.pairwise(places):
        events += reader.feed(data[start:stop])
    return events + reader.finish()


@pytest.mark.parametrize(
    ("data", "events"),
    [
        pytest.param(b"data: a\n\n", [(b"", b"a")], id="one event"),
        pytest.param(b"data:a\n\n", [(b"", b"a")], id="no space after the colon"),
        pytest.param(b"data:  a\n\n", [(b"", b" a")], id="one space alone is not data"),
        pytest.param(b"event: x\ndata: a\n\n", [(b"x", b"a")], id="a name"),
        pytest.param(b"data: a\ndata: b\n\n", [(b"", b"a\nb")], id="lines of data are joined"),
        pytest.param(b"data\n\n", [(b"", b"")], id="a field without a colon"),
        pytest.param(
            b"event: x\n\ndata: a\n\n", [(b"", b"a")], id="a name without data is dropped"
        ),
        pytest.param(b": c\n\ndata: a\n: d\n\n", [(b"", b"a")], id="comments"),
        pytest.param(b"id: 1\nretry: 2\nfoo: 3\ndata: a\n\n", [(b"", b"a")], id="other fields"),
        pytest.param(b"data: a\r\n\r\ndata: b\r\n\r\n", [(b"", b"a"), (b"", b"b")], id="CRLF"),
        pytest.param(b"data: a\r\rdata: b\r\r", [(b"", b"a"), (b"", b"b")], id="CR"),
        pytest.param(b"data: a\r\n\ndata: b\n\r\n", [(b"", b"a"), (b"", b"b")], id="mixed ends"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")], id="a byte order mark"),
        pytest.param(b"\n\n\ndata: a\n\n\n\n", [(b"", b"a")], id="blank lines around"),
        pytest.param(b"data: a", [(b"", b"a")], id="no end of line at the end"),
        pytest.param(b"data: \xff\xfe\n\n", [(b"", b"\xff\xfe")], id="bytes that are no text"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_events(data: bytes, events: list[tuple[bytes, bytes]]) -> None:
    """What the format says, whole and byte by byte."""
    assert read(data) == [Event(*one) for one in events]
    assert read(data, list(range(len(data)))) == [Event(*one) for one in events]


LINE = st.sampled_from(
    [b"data: a", b"data: \xc3\xa9", b"data:", b"event: x", b": c", b"", b"", b"id: 1", b"data: b:c"]
)
END = st.sampled_from([b"\n", b"\r\n", b"\r"])
STREAM = st.lists(st.tuples(LINE, END).map(b"".join), max_size=12).map(b"".join)


@given(STREAM | st.binary(max_size=60), st.lists(st.integers(0, 200), max_size=12))
def test_any_chunking_gives_the_same_events(data: bytes, cuts: list[int]) -> None:
    """Cuts between CR and LF, within names and within characters are no different."""
    assert read(data, cuts) == read(data) == read(data, list(range(len(data))))


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, whether lines end or not."""
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    for piece in (b"data: " + b"x" * 100, b"data: " + b"x" * 100 + b"\n"):
        reader = Reader()
        taken = [reader.feed(piece) for _ in range(9)]
        assert taken == [[]] * 9
        with pytest.raises(TooLong):
            reader.feed(piece)


def test_many_events_are_no_long_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is of one event, not of a stream."""
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    data = b"data: " + b"x" * 100 + b"\n\n"
    cuts = random.Random(1)
    reader, events, stream = Reader(), 0, data * 100
    while stream:
        size = cuts.randint(1, 300)
        events += len(reader.feed(stream[:size]))
        stream = stream[size:]
    assert events == 100
