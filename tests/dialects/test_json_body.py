"""Strict reading of a body: what is refused, where values stand, and that nothing else escapes."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from extproc.dialects.json_body import (
    MAX_DEPTH,
    MAX_MEMBERS,
    MAX_NUMBER_DIGITS,
    fit,
    members,
    spans,
)
from extproc.errors import Denied

SUITE = Path("json", "JSONTestSuite", "test_parsing")
SECRET = "hunter2"


def refusal(body: bytes) -> Denied:
    with pytest.raises(Denied) as caught:
        members(body)
    assert caught.value.status == 400
    assert caught.value.code == "invalid_request_error"
    return caught.value


def wrapped(extra: bytes) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":"x"}],"extra":' + extra + b"}"


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


DIGITS = b"1" * MAX_NUMBER_DIGITS
REFUSED = {
    "a 100,000-deep array, never closed": (b'{"a":' + b"[" * 100_000, "200 levels"),
    "a 100,000-deep array, closed": (b'{"a":' + nested(100_000) + b"}", "200 levels"),
    "a 100,000-deep object": (b'{"a":' * 100_000, "200 levels"),
    "one level too deep": (b'{"a":' + nested(MAX_DEPTH) + b"}", "200 levels"),
    "one too deep, long": (b'{"a":"' + DIGITS * 9 + b'","b":' + nested(MAX_DEPTH) + b"}", "levels"),
    "a 5,000-digit integer": (b'{"a":' + b"1" * 5000 + b"}", "640 digits"),
    "one digit too many": (b'{"a":1' + DIGITS + b"}", "640 digits"),
    "one digit too many in a fraction": (b'{"a":0.1' + DIGITS + b"}", "640 digits"),
    "a float beyond a double": (b'{"a":1e999}', "out of range"),
    "a negative float beyond a double, nested": (b'{"a":[{"b":-1e999}]}', "out of range"),
    "a long integer written as a float": (b'{"a":' + b"1" * 400 + b".0}", "out of range"),
    "more members than allowed": (
        json.dumps({f"a{i}": i for i in range(MAX_MEMBERS + 1)}).encode(),
        "1024 top-level members",
    ),
    "an empty body": (b"", "empty"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "UTF-16": ('{"a":1}'.encode("utf-16"), "not valid"),
    "a string that is not UTF-8": (b'{"a":"\xff"}', "UTF-8"),
    "a surrogate in UTF-8": (b'{"a":"\xed\xa0\x80"}', "UTF-8"),
    "a name that is not UTF-8": (b'{"\xff":1}', "UTF-8"),
    "a lone high surrogate": (rb'{"a":"\ud800"}', "not valid JSON"),
    "a lone low surrogate": (rb'{"a":["\udc00"]}', "not valid JSON"),
    "a lone surrogate in a name": (rb'{"a":{"\ud800":1}}', "not valid JSON"),
    "NaN": (b'{"a":NaN}', "not valid JSON"),
    "Infinity": (b'{"a":[-Infinity]}', "not valid JSON"),
    "a leading zero": (b'{"a":01}', "not valid JSON"),
    "a control character in a string": (b'{"a":"\x1f"}', "not valid JSON"),
    "a NUL byte in a string": (b'{"a":"\x00"}', "not valid JSON"),
    "a NUL byte after the object": (b"{}\x00", "not valid JSON"),
    "an array": (b"[1]", "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
}


@pytest.mark.parametrize(("body", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses(body: bytes, says: str) -> None:
    """Every body two parsers could read differently, or none can, is a 400 that says why."""
    assert says in refusal(body).message


LONG = b"a" * 65
DUPLICATES: dict[str, tuple[bytes, str | None]] = {
    "model twice": (b'{"model":"a","model":"b"}', "model"),
    "model twice, once escaped": (rb'{"model":"a","mod\u0065l":"b"}', "model"),
    "model twice among other escapes": (rb'{"u":"\u00e9","model":"a","model":"a"}', "model"),
    "the same value twice": (b'{"stream":true, "stream":true}', "stream"),
    "a role in a message": (b'{"messages":[{}, {"role":"u","role":"s"}]}', "messages[1].role"),
    "a role escaped": (rb'{"messages":[{"role":"u","r\u006fle":"s"}]}', "messages[0].role"),
    "deep in a part": (
        b'{"messages":[{"content":[{"image_url":{"url":"a","url":"b"}}]}]}',
        "messages[0].content[0].image_url.url",
    ),
    "inside a value that is itself replaced": (b'{"a":{"x":1,"x":2},"a":1}', "a"),
    "a caller's own name below the top is not shown": (
        b'{"tools":[{"parameters":{"hunter2":1,"hunter2":2}}]}',
        "tools[0].parameters",
    ),
    "nor what lies under it": (
        b'{"tools":[{"parameters":{"hunter2":[{"role":1,"role":2}]}}]}',
        "tools[0].parameters",
    ),
    "a top-level name that is no identifier is not shown": (b'{"hunter2 ":1,"hunter2 ":2}', None),
    "a name over 64 characters is not shown": (b'{"%b":1,"%b":1}' % (LONG, LONG), None),
    "an empty name": (b'{"":1,"":2}', None),
    "a name that hides as a path": (b'{"a":{"b":1},"a":{"b":1}}', "a"),
}


@pytest.mark.parametrize(("body", "param"), DUPLICATES.values(), ids=DUPLICATES.keys())
def test_refuses_a_name_twice(body: bytes, param: str | None) -> None:
    """A repeated name is found at any depth after unescaping, and only public names are quoted."""
    denied = refusal(body)
    assert denied.message.startswith("Duplicate key")
    assert denied.param == param
    assert SECRET not in denied.message


@pytest.mark.timeout(20)  # comparing each with each takes minutes
def test_a_late_duplicate_among_many_is_found_in_linear_time() -> None:
    """A million bytes of distinct names before the repeated one cost no more than reading them."""
    names = ",".join(f'"a{i}":0' for i in range(100_000))
    assert refusal(b'{"x":{' + names.encode() + b',"a0":1}}').param == "x"


ACCEPTED = {
    "an empty object": b"{}",
    "white space everywhere": b' \r\n\t{ "a" : 1 , "b" : [ ] } \n',
    "the deepest nesting": b'{"a":' + nested(MAX_DEPTH - 1) + b"}",
    "many brackets side by side": b'{"a":[' + b"[]," * 1000 + b"[]]}",
    "brackets in a string": b'{"a":"' + b"[{" * 1000 + b'"}',
    "the longest integer": b'{"a":' + DIGITS + b"}",
    "a million digits in a string": b'{"a":"' + b"7" * 1_000_000 + b'","b":7}',
    "digits after an escaped quote": rb'{"a":"\"' + b"7" * 1_000 + b'"}',
    "an escaped pair": rb'{"a":"\ud83d\ude00"}',
    "an escaped NUL": rb'{"a":"\u0000"}',
    "a float that underflows": b'{"a":1e-999}',
    "equal names in different objects": b'{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]}',
    "names that differ by case": b'{"model":1,"Model":2}',
    "names that differ by normal form": '{"\u00e9":1,"e\u0301":2}'.encode(),
}


@pytest.mark.parametrize("body", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepts(body: bytes) -> None:
    """Legal bodies near the limits are read to the value another parser finds."""
    assert members(body).values == json.loads(body)


SPANNED = {
    "plain": b'{"a":1}',
    "spaced": b' { "a" : [1, 2 ] , "b":\t"x" ,"c":-1.5e3 , "d":null } ',
    "escapes": rb'{"a\"b":{"a":"}"},"\\":"\\","":" "}',
    "a long escaped name": b'{"' + b"\\n" * 100_000 + b'":1,"b":2}',
    "multi-byte": '{"é":"ü", "b":"😀"}'.encode(),
}


@pytest.mark.parametrize("body", SPANNED.values(), ids=SPANNED.keys())
def test_spans_cover_exactly_the_values(body: bytes) -> None:
    """Each span holds the value's bytes and no white space."""
    read = members(body)
    assert body[: read.object_start].strip() == b"{"
    assert list(read.spans) == list(read.values)
    for name, span in read.spans.items():
        text = body[span.start : span.stop]
        assert text == text.strip()
        assert json.loads(text) == read.values[name]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(
    st.dictionaries(TEXTS, JSON, max_size=5),
    st.booleans(),
    st.sampled_from([None, 0, 1, "\t", " \r\n"]),
    st.sampled_from([(",", ":"), (" ,", " :\t"), (", ", ": ")]),
)
def test_any_object_in_any_layout_is_read(
    value: dict[str, Any], escape: bool, indent: int | str | None, separators: tuple[str, str]
) -> None:
    """Values and spans do not depend on white space or on how characters are escaped."""
    body = json.dumps(value, ensure_ascii=escape, indent=indent, separators=separators).encode()
    read = members(body)
    assert read.values == value
    assert {n: json.loads(body[s.start : s.stop]) for n, s in read.spans.items()} == value


@given(st.dictionaries(TEXTS, JSON, min_size=1, max_size=5), st.sampled_from(["", " ", "\n"]))
def test_a_body_as_msgspec_writes_it_is_read_like_one_with_white_space(
    value: dict[str, Any], space: str
) -> None:
    """The shorter way, for bodies without white space, finds what the other one does."""
    written = msgspec.json.encode(value)
    body = written + space.encode()
    read = members(body)
    assert read.values == value
    assert list(read.spans) == list(value)
    assert {n: json.loads(body[s.start : s.stop]) for n, s in read.spans.items()} == value
    assert body[: read.object_start] == b"{"
    assert read.spans == spans(written)


@given(st.dictionaries(TEXTS, JSON, min_size=1, max_size=5), st.data(), st.booleans())
def test_repeating_any_member_is_refused(
    value: dict[str, Any], data: st.DataObject, escape: bool
) -> None:
    """A body that repeats one of its names, at the top or one level down, is a duplicate."""
    name = data.draw(st.sampled_from(sorted(value)))
    again = json.dumps({name: data.draw(JSON)}, ensure_ascii=escape)
    text = json.dumps(value, ensure_ascii=not escape)[:-1] + "," + again[1:]
    assert refusal(text.encode()).message.startswith("Duplicate key")
    assert refusal(b'{"o":[' + text.encode() + b"]}").message.startswith("Duplicate key")


@given(st.binary() | st.text(alphabet='{}[]",:\\u0d8e1.-tn ').map(str.encode))
@example(b'{"a":1e')
@example(b"\xff\xfe")
def test_garbage_in_one_error_out(body: bytes) -> None:
    """Any bytes are an object or a 400; what is accepted, the standard parser accepts."""
    with suppress(Denied):
        assert members(body).values == json.loads(body)


@pytest.mark.parametrize("kind", ["n_*.json", "y_*.json", "i_*.json"])
def test_json_test_suite(shared_data: Path, kind: str) -> None:
    """JSONTestSuite: n_ is refused whole and as a member, y_ is read unless a name repeats."""
    files = sorted((shared_data / SUITE).glob(kind))
    assert files
    for file in files:
        content = file.read_bytes()
        if kind.startswith("n_"):
            refusal(content)
            refusal(wrapped(content))
        elif file.name.startswith("y_object_duplicated_key"):
            assert refusal(wrapped(content)).message.startswith("Duplicate key")
        elif kind.startswith("y_"):
            assert members(wrapped(content)).values["extra"] == json.loads(content), file.name
        else:
            for body in (content, wrapped(content)):
                with suppress(Denied):
                    members(body)


def test_no_setting_of_python_changes_an_answer() -> None:
    """The limit on integer conversion may be at its lowest: the longest number is still read."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        assert members(rb'{"a":"\u0041","b":' + DIGITS + b"}").values["b"] == int(DIGITS)
    finally:
        sys.set_int_max_str_digits(before)


def test_a_caller_deep_in_the_stack_gets_a_refusal() -> None:
    """A parser that runs out of stack answers 400, never RecursionError."""

    def down(levels: int) -> Denied | None:
        if levels:
            return down(levels - 1)
        try:
            members(b'{"a":' + nested(150) + b"}")
        except Denied as denied:
            return denied
        return None

    frame, used = sys._getframe(), 0
    while frame is not None:
        frame, used = frame.f_back, used + 1  # type: ignore[assignment]
    denied = down(sys.getrecursionlimit() - used - 60)
    assert denied is not None
    assert denied.status == 400


class Inner(msgspec.Struct):
    """A shape for `fit`."""

    kind: int


class Outer(msgspec.Struct):
    """A shape for `fit`."""

    items: list[Inner | None]
    names: list[str] = []


@pytest.mark.parametrize(
    ("values", "param", "message"),
    [
        ({}, "items", "Missing required parameter: 'items'."),
        ({"items": [None, {}]}, "items[1].kind", "Missing required parameter: 'items[1].kind'."),
        (
            {"items": [{"kind": SECRET}]},
            "items[0].kind",
            "Invalid value for 'items[0].kind': expected a kind.",
        ),
        ({"items": [], "names": [1]}, "names[0]", "Invalid value for 'names[0]': expected names."),
    ],
    ids=["a member is missing", "a nested one is missing", "a wrong type", "an item of a list"],
)
def test_fit_names_the_field_and_what_is_legal(
    values: dict[str, Any], param: str, message: str
) -> None:
    """A misfit is named in bracket notation; an item without an entry takes its list's."""
    with pytest.raises(Denied) as caught:
        fit(values, Outer, {"items[].kind": "a kind", "names": "names"})
    assert (caught.value.param, caught.value.message) == (param, message)
