"""What a request's Cache-Control asks for, well-formed or not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.cache.control import ANYTHING, Control, read

NO_CACHE, NO_STORE = Control(no_cache=True), Control(no_store=True)
MOST = 2**31


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        # What is malformed gets no answer from the cache.
        pytest.param("max-age", Control(max_age_s=0), id="an age without a number"),
        pytest.param("max-age=", Control(max_age_s=0), id="an age that is empty"),
        pytest.param("max-age=-1", Control(max_age_s=0), id="an age below zero"),
        pytest.param("max-age=1.5", Control(max_age_s=0), id="an age that is no integer"),
        pytest.param("max-age=soon", Control(max_age_s=0), id="an age that is no number"),
        pytest.param("max-age=1 2", Control(max_age_s=0), id="an age of two numbers"),
        pytest.param("max-age=5 no-cache", Control(max_age_s=0), id="a missing comma"),
        pytest.param("max-age=\u0665", Control(max_age_s=0), id="digits of another script"),
        pytest.param("max-age=5, max-age=600", Control(max_age_s=0), id="two ages that differ"),
        pytest.param('max-age="5', Control(max_age_s=0), id="a quote that does not end"),
        pytest.param('no-store, max-age="5, no-cache', Control(True, True, max_age_s=0), id="what follows a quote that does not end"),
        pytest.param("no-store=1", NO_STORE, id="an argument where there is none"),
        pytest.param('"no-cache', NO_CACHE, id="a quote before a name"),
        # What is well-formed.
        pytest.param("", ANYTHING, id="nothing"),
        pytest.param("no-cache", NO_CACHE, id="no cache"),
        pytest.param("no-store", NO_STORE, id="no store"),
        pytest.param("only-if-cached", Control(only_if_cached=True), id="only if cached"),
        pytest.param("max-age=0", Control(max_age_s=0), id="an age of nothing"),
        pytest.param("max-age=60", Control(max_age_s=60), id="an age"),
        pytest.param("MAX-Age=60, No-Cache", Control(no_cache=True, max_age_s=60), id="names in any case"),
        pytest.param('max-age="60"', Control(max_age_s=60), id="a quoted age"),
        pytest.param("max-age=60, max-age=60", Control(max_age_s=60), id="one age twice"),
        pytest.param("max-age=007", Control(max_age_s=7), id="leading zeros"),
        pytest.param(f"max-age={MOST - 1}", Control(max_age_s=MOST - 1), id="an age below the most there is"),
        pytest.param(f"max-age={MOST + 5}", Control(max_age_s=MOST), id="an age above the most there is"),
        pytest.param("max-age=" + "9" * 10_000, Control(max_age_s=MOST), id="an age of 10,000 digits"),
        pytest.param(" , ,no-cache ,\t, no-store,", Control(True, True), id="empty members"),
        pytest.param('private="a, no-cache, b", no-store', NO_STORE, id="names inside a quoted argument"),
        pytest.param(r'x="\", no-cache", no-store', NO_STORE, id="an escaped quote"),
        pytest.param("max-stale=10, min-fresh=5, no-transform, x=y", ANYTHING, id="what has no effect here"),
        pytest.param("no-cache, no-store, max-age=1, only-if-cached", Control(True, True, True, 1), id="everything"),
        pytest.param("not-no-cache, no-cacheable, xmax-age=1", ANYTHING, id="names that contain others"),
    ],
)  # fmt: skip
def test_what_a_header_asks_for(header: str, asked: Control) -> None:
    assert read(header) == asked


@given(st.text('noche-stramxgliyfd=0123456789", \t\\') | st.text())
def test_no_header_is_an_error_and_longer_ones_say_the_same(header: str) -> None:
    assert read(header) == read(header + " " * 100)  # too long to be remembered


@given(
    st.lists(st.sampled_from(["no-cache", "no-store", "only-if-cached", "max-age=5", "a=b", ""]))
)
def test_members_say_what_they_say_alone_in_any_order(members: list[str]) -> None:
    asked = read(", ".join(members))
    assert asked == Control(
        "no-cache" in members,
        "no-store" in members,
        "only-if-cached" in members,
        5 if "max-age=5" in members else None,
    )


UNITS = ['"', ",", " ", 'a="\\', "a =", '="', 'a="x,', r'a="\",', "max-age=1,"]


@pytest.mark.parametrize("unit", UNITS)
def test_reading_takes_time_in_proportion_to_the_header(unit: str) -> None:
    read(unit * 500_000)  # far more than any proxy lets pass: the time limit is what fails
