"""How long a provider asks to be left alone."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.policies.cooling import MAX_COOL_S, cool_s, duration_s

NOW = 1_700_000_000.0


def date(offset: float) -> str:
    """Return an HTTP date so many seconds after NOW."""
    return format_datetime(datetime.fromtimestamp(NOW + offset, UTC), usegmt=True)


@pytest.mark.parametrize(
    ("retry_after", "resets", "seconds"),
    [
        pytest.param("", ";;;", 0, id="nothing is said"),
        pytest.param("7", ";;;", 7, id="seconds"),
        pytest.param("1.5", "", 1.5, id="a part of a second"),
        pytest.param("0", "0;9s;;", 0, id="at once, whatever the limits say"),
        pytest.param(date(12), "", 12, id="a date"),
        pytest.param(date(-12), "0;9s;;", 0, id="a date gone by"),
        pytest.param("86400", "", MAX_COOL_S, id="a day"),
        pytest.param("soon", "0;9s;;", 9, id="not readable, but a limit is used up"),
        pytest.param("", "0;1s;0;6m0s", 300, id="both limits used up: the longer, bounded"),
        pytest.param("", "5;1s;0;20ms", 0.02, id="the limit that is used up"),
        pytest.param("", "5;3s;7;2s", 2, id="none is used up: the shorter"),
        pytest.param("", ";;;4s", 4, id="one reset alone"),
        pytest.param("-5", "", 0, id="a negative number"),
        pytest.param("nan", "0;inf;;", 0, id="no numbers"),
    ],
)
def test_what_headers_ask_for(retry_after: str, resets: str, seconds: float) -> None:
    """Retry-After first, then the limits' resets."""
    assert cool_s(retry_after, resets, NOW) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360),
        ("120ms", 0.12),
        ("1h2m3s", 3723),
        ("1.5s", 1.5),
        ("2d", 172800),
        ("8", 8),
        ("", None),
        ("s", None),
        ("1s!", None),
        ("1 s", None),
        ("٣s", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    """Go's notation, which OpenAI uses."""
    assert duration_s(text) == (None if seconds is None else pytest.approx(seconds))


@given(st.text(max_size=60), st.text(max_size=60))
def test_whatever_a_provider_sends_is_a_bounded_wait(retry_after: str, resets: str) -> None:
    """Never an exception, never for ever."""
    assert 0 <= cool_s(retry_after, resets, NOW) <= MAX_COOL_S
