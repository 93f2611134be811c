"""A HeaderMap read by hand, against Google's own code."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from extproc.pb.core_pb2 import HeaderMap
from extproc.wire.headers import read_pairs

TEXT = st.text(max_size=300)


def by_google(raw: bytes) -> list[tuple[str, str]]:
    """Read with the generated class."""
    return [
        (one.key, one.raw_value.decode("utf-8", "replace") or one.value)
        for one in HeaderMap.FromString(raw).headers
    ]


@st.composite
def maps(draw: st.DrawFn) -> bytes:
    """A map as Envoy writes it, with values in either field."""
    made = HeaderMap()
    for name, value, raw in draw(st.lists(st.tuples(TEXT, TEXT, st.binary(max_size=300)))):
        made.headers.add(key=name, raw_value=raw) if raw else made.headers.add(
            key=name, value=value
        )
    return made.SerializeToString()


@given(maps())
def test_pairs_are_googles(raw: bytes) -> None:
    assert read_pairs(raw) == by_google(raw)


@given(maps(), st.data())
def test_damaged_bytes_are_read_the_same_or_refused(raw: bytes, data: st.DataObject) -> None:
    """What is taken is what Google's code takes; all else is a ValueError."""
    at = data.draw(st.integers(0, len(raw)))
    damaged = raw[:at] + data.draw(st.binary(max_size=3)) + raw[at + data.draw(st.integers(0, 2)) :]
    try:
        found = read_pairs(damaged)
    except ValueError:
        return
    try:
        assert found == by_google(damaged)
    except DecodeError:
        return  # Google's code looks into what is left out here


@pytest.mark.parametrize(
    "extra", [b"\x22\x02hi", b"\x20\x07", b"\xa2\x06\x01x"], ids=["bytes", "a number", "far"]
)
def test_what_a_later_envoy_may_add_is_left_out(extra: bytes) -> None:
    header = b"\x0a\x03x-a\x1a\x01b" + extra
    assert read_pairs(b"\x0a%c%b" % (len(header), header)) == [("x-a", "b")]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\x0a", id="no size"),
        pytest.param(b"\x0a\x05\x0a\x09abc", id="longer than its header"),
        pytest.param(b"\x0a\xff\xff\xff\xff\xff\xff", id="a size without end"),
        pytest.param(b"\x12\x00", id="another field"),
        pytest.param(b"\x0a\x03\x0a\x01\xff", id="a name that is not UTF-8"),
        pytest.param(b"\x0a\x05\x0d\x00\x00\x00\x00", id="a number of fixed size"),
    ],
)
def test_what_is_no_map_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (any: the codec says Malformed of all of them)
        read_pairs(raw)
