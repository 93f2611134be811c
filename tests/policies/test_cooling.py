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


def moment(offset: float) -> str:
    """Return a moment by RFC 3339 so many seconds after NOW."""
    return datetime.fromtimestamp(NOW + offset, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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
        pytest.param("", f"0;{moment(12)}", 12, id="Anthropic's moment"),
        pytest.param(
            "",
            f"5;{moment(3)};9;{moment(7)};0;{moment(40)};0;{moment(30)}",
            40,
            id="Anthropic's four limits, two of them used up",
        ),
        pytest.param("", f"5;{moment(3)};9;{moment(7)}", 3, id="none of Anthropic's is used up"),
        pytest.param("", f"0;{moment(-3)}", 0, id="a moment gone by"),
        pytest.param("", f"0;{moment(86400)}", MAX_COOL_S, id="a moment of tomorrow"),
        pytest.param("", "0;2023-11-14T23:13:25.5+01:00", 5.5, id="a moment with an offset"),
        pytest.param("", "0;2023-11-14T22:13:25", 0, id="a moment of no zone"),
        pytest.param("", "0;2023-11-14", 0, id="a day is no moment"),
        pytest.param("", "0;2023-13-14T22:13:25Z", 0, id="a month too many"),
        pytest.param("", "0;0001-01-01T00:00:00+14:00", 0, id="before the first year"),
        pytest.param("", "0;9999-12-31T23:59:59-14:00", MAX_COOL_S, id="after the last year"),
        pytest.param("2", f"0;{moment(12)}", 2, id="Retry-After counts before a moment"),
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


MOMENTS = st.from_regex(
    r"\A[0-9]{0,2};[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2})\Z"
)


@given(st.text(max_size=60), st.text(max_size=60) | MOMENTS)
def test_whatever_a_provider_sends_is_a_bounded_wait(retry_after: str, resets: str) -> None:
    """Never an exception, never for ever."""
    assert 0 <= cool_s(retry_after, resets, NOW) <= MAX_COOL_S
