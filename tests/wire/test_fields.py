"""Messages read by hand are those that protobuf's own classes read."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from extproc.pb import ext_proc_pb2
from extproc.wire import messages as wire
from extproc.wire.fields import fields
from extproc.wire.messages import Kind
from extproc.wire.structs import fields_of, text_of, texts_of

SCALARS = st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=200)
VALUES = st.dictionaries(st.text(max_size=20), SCALARS | st.lists(SCALARS, max_size=3), max_size=5)


def read(raw: bytes) -> list[tuple[int, int | bytes | None]]:
    """Return every field: its tag, and its value where it is a number or bytes."""
    found: list[tuple[int, int | bytes | None]] = []
    message = fields(raw)
    while message.more():
        values = {0: message.number, 2: message.value()}
        found.append((message.tag, values.get(message.tag & 7)))
    return found


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"\x08\x96\x01", [(8, 150)], id="a number"),
        pytest.param(b"\x08" + b"\xff" * 9 + b"\x01", [(8, 2**64 - 1)], id="of ten bytes"),
        pytest.param(b"\x12\x02ab\x18\x01", [(18, b"ab"), (24, 1)], id="bytes, then a number"),
        pytest.param(b"\x0a\x80\x01" + b"x" * 128, [(10, b"x" * 128)], id="a size of two bytes"),
        pytest.param(b"\xc2\x01\x01z", [(194, b"z")], id="a tag of two bytes"),
        pytest.param(b"\x09" + b"8" * 8 + b"\x15" + b"4" * 4, [(9, None), (21, None)], id="fixed"),
    ],
)
def test_fields_come_in_their_order(raw: bytes, found: list[Any]) -> None:
    assert read(raw) == found


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\x08", id="a number that is missing"),
        pytest.param(b"\x08" + b"\xff" * 11, id="that does not end"),
        pytest.param(b"\x0a\x03ab", id="bytes that are cut"),
        pytest.param(b"\x0a", id="without a size"),
        pytest.param(b"\x09" + b"8" * 7, id="eight bytes that are cut"),
        pytest.param(b"\x15" + b"4" * 3, id="four bytes that are cut"),
        pytest.param(b"\x02\x00", id="no field's number"),
        pytest.param(b"\x0b\x0c", id="a group"),
        pytest.param(b"\x0f", id="no kind"),
        pytest.param(b"\xff", id="a tag that does not end"),
    ],
)
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read(raw)


def test_a_message_ends_where_the_one_around_it_says() -> None:
    outer = fields(b"\x0a\x02\x08\x05\x08\x06")
    assert outer.more()
    inner = outer.inside()
    assert inner.more()
    assert (inner.number, inner.more()) == (5, False)
    assert outer.more()
    assert (outer.number, outer.more()) == (6, False)


@given(VALUES)
def test_texts_are_those_google_writes(values: dict[str, Any]) -> None:
    written = Struct()
    written.update(values)
    texts = {
        name.encode(): value.encode() if isinstance(value, str) else b""
        for name, value in values.items()
    }
    assert texts_of(written.SerializeToString()) == texts


@given(VALUES, st.data())
def test_texts_of_damaged_bytes_are_what_the_class_reads(
    values: dict[str, Any], data: st.DataObject
) -> None:
    """Where it reads any; what it refuses may be read, and never raises."""
    written = Struct()
    written.update(values)
    raw = written.SerializeToString()
    at = data.draw(st.integers(0, len(raw)))
    raw = raw[:at] + data.draw(st.binary(max_size=2)) + raw[at + data.draw(st.integers(0, 2)) :]
    found, said = texts_of(raw), fields_of(raw)
    if found and said and set(found) == {name.encode() for name in said}:
        told = {name: text_of(said, name) for name in said}
        assert {
            name.decode(): text.decode("utf-8", "replace") for name, text in found.items()
        } == told


@pytest.mark.parametrize("ends", [False, True])
def test_a_message_with_more_than_its_content_is_the_classes(ends: bool) -> None:
    """What decides which message it is counts wherever it stands; what does not, does not."""
    request = ext_proc_pb2.ProcessingRequest()
    request.request_headers.headers = b"\x0a\x06\x0a\x01a\x1a\x01b"
    request.request_headers.end_of_stream = ends
    request.metadata_context.filter_metadata["x"] = b""
    told = wire.decode(request.SerializeToString())
    assert told.kind is Kind.HEADERS
    assert told.head is not None
    assert (told.head.headers, told.head.ends) == ({"a": "b"}, ends)
    request.attributes["a"].fields["b"].bool_value = True
    assert wire.decode(request.SerializeToString()).kind is Kind.UPSTREAM
    del request.attributes["a"]
    followed = ext_proc_pb2.ProcessingRequest()
    followed.request_body.body = b"{}"
    both = request.SerializeToString() + followed.SerializeToString()
    assert wire.decode(both) == wire.decode(followed.SerializeToString())
