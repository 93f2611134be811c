"""Traces are continued as the W3C says, and begun where there is none to continue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.domain import Trace
from extproc.policies.trace import continued, read, traceparent_of, written

TOKEN = bytes(range(1, 25))
SPAN = int.from_bytes(TOKEN[:8])
FRESH = int.from_bytes(TOKEN[8:])
ID, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(None, id="none"),
        pytest.param("", id="an empty one"),
        pytest.param(f"00-{ID}-{PARENT}", id="a field too few"),
        pytest.param(f"00-{ID}-{PARENT}-01-x", id="a field too many for its version"),
        pytest.param(f"ff-{ID}-{PARENT}-01", id="the version that cannot be"),
        pytest.param(f"00-{'0' * 32}-{PARENT}-01", id="no trace"),
        pytest.param(f"00-{ID}-{'0' * 16}-01", id="no span"),
        pytest.param(f"00-{ID.upper()}-{PARENT}-01", id="capitals"),
        pytest.param(f"00-{ID}-{PARENT}-01, 00-{ID}-{PARENT}-01", id="two"),
        pytest.param(f"00-{ID}-{PARENT}-01\n", id="a line end"),
    ],
)
def test_what_is_no_trace_begins_a_new_one(header: str | None) -> None:
    """Take nothing from a header that is not wholly right."""
    assert continued(header, TOKEN, 1.0) == Trace(FRESH, SPAN, 0, sampled=True)


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        pytest.param(f"00-{ID}-{PARENT}-01", True, id="sampled"),
        pytest.param(f"00-{ID}-{PARENT}-00", False, id="not sampled"),
        pytest.param(f"00-{ID}-{PARENT}-03", True, id="sampled, and a later flag"),
        pytest.param(f"cc-{ID}-{PARENT}-01-what-comes", True, id="a later version"),
    ],
)
def test_a_trace_is_continued(header: str, *, sampled: bool) -> None:
    """Keep the trace and the caller's decision, whatever our own ratio, under a span of our own."""
    for ratio in (0.0, 1.0):
        trace = continued(header, TOKEN, ratio)
        assert trace == Trace(int(ID, 16), SPAN, int(PARENT, 16), sampled)


def test_the_next_one_is_called_under_our_span() -> None:
    """Write the header of version 00 with our span as the parent."""
    for flag in ("00", "01"):
        trace = continued(f"00-{ID}-{PARENT}-{flag}", TOKEN, 1.0)
        assert traceparent_of(trace).decode() == f"00-{ID}-{TOKEN[:8].hex()}-{flag}"


def test_the_ratio_is_of_new_traces() -> None:
    """Sample none, all, or the share whose ids are low."""
    low, high = TOKEN[:16] + bytes(8), TOKEN[:16] + b"\xff" * 8
    assert [continued(None, t, 0.0).sampled for t in (low, high)] == [False, False]
    assert [continued(None, t, 0.5).sampled for t in (low, high)] == [True, False]
    assert [continued(None, t, 1.0).sampled for t in (low, high)] == [True, True]


def test_no_id_is_zero() -> None:
    """Zero is no id, even where chance makes it."""
    assert continued(None, bytes(24), 1.0) == Trace(1, 1, 0, sampled=True)


ids = st.integers(1, 2**64 - 1)


@given(st.integers(1, 2**128 - 1), ids, st.integers(0, 2**64 - 1))
def test_what_is_written_is_read(trace_id: int, span_id: int, parent_id: int) -> None:
    """Carry a sampled trace as text, and nothing of one that is not."""
    trace = Trace(trace_id, span_id, parent_id, sampled=True)
    assert read(written(trace)) == trace
    assert written(Trace(trace_id, span_id, parent_id, sampled=False)) == written(None) == ""


@given(st.text())
def test_any_other_text_is_no_trace(text: str) -> None:
    """Read nothing from what was not written here."""
    assert read(text) is None
