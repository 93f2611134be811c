"""Reading a request body as one strict JSON object, by offset, without re-serialising it.

Knows: JSON (RFC 8259, read strictly: what two parsers could read differently is refused) and how
to say what is wrong without quoting content. Must not know: any API's fields or endpoints.

msgspec checks syntax, UTF-8, surrogates and ranges; duplicate keys are absent when what was decoded
encodes back to the same text, else `json` looks for them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from extproc.domain import Span
from extproc.errors import Denied

Shape = TypeVar("Shape")

MAX_DEPTH: Final = 200  # far above any real call; C parsers recurse, Python stops them at ~1000
MAX_MEMBERS: Final = 1024  # no API has 100 fields; a span each for 10 MB of members took 1.4 s
# The lowest limit Python can be set to for int <-> str, so no setting of it changes an answer;
# conversion is quadratic: 10 MB of 4,300-digit integers took 0.7 s of the event loop.
MAX_NUMBER_DIGITS: Final = 640
_DIGIT_WINDOW: Final = MAX_NUMBER_DIGITS // 2  # a longer run covers one aligned window whole

_decode: Final = msgspec.json.Decoder().decode
_decode_raw: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode: Final = msgspec.json.Encoder().encode
# Possessive, or a long key full of escapes costs 50 bytes of backtracking stack per byte.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
_MEMBER: Final = re.compile(
    rb'[ \t\r\n]*+[{,][ \t\r\n]*+"[^"\\]*+(?:\\.[^"\\]*+)*+"[ \t\r\n]*+:[ \t\r\n]*+'
)
_BLANK: Final = 0x20  # white space is no more than this, and no value begins so
_ZERO: Final = 0x30
_NINE: Final = 0x39
# The lookbehind keeps a search from trying every start within a run: linear, not digits squared.
_LONG_NUMBER: Final = re.compile(rb"(?<![0-9])[0-9]{%d}" % (MAX_NUMBER_DIGITS + 1))
_MISSING: Final = re.compile("Object missing required field `([a-z_]+)`")
_INDEX: Final = re.compile(r"\[\d+\]")
_TOP_LEVEL_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# Below the top only names of the public APIs are shown: others are the callers' own (schemas).
_NESTED_NAMES: Final = frozenset(
    re.findall(
        r"\w+",
        """
        arguments cache_control content data description detail effort file file_data file_id format
        function id image_url include_usage input input_audio input_schema json_schema media_type
        name output parameters properties required role schema source strict summary text
        tool_call_id tool_calls tool_use_id type url
        """,
    )
)


class Members:
    """The top-level members of a body: decoded values, and where each value stands in the bytes.

    `object_start` is the offset just after the opening brace.
    """

    __slots__ = ("object_start", "spans", "values")

    def __init__(self, values: dict[str, Any], spans: dict[str, Span], object_start: int) -> None:
        self.values = values
        self.spans = spans
        self.object_start = object_start


def members(body: bytes) -> Members:
    """Read a body as one JSON object, strictly.

    Names are unescaped; spans are byte offsets without surrounding white space. Pure; 4 us per KB.

    Raises `Denied` (400) for: an empty body, a byte order mark, bytes that are not UTF-8, any
    syntax error (NaN, leading zeros, trailing bytes, control characters), a lone surrogate, a
    value that is not an object, a name twice in one object at any depth (RFC 8259 section 4 leaves
    open which one counts), nesting over `MAX_DEPTH`, a number of more than `MAX_NUMBER_DIGITS`
    digits in a row or beyond a double, more than `MAX_MEMBERS` members at the top.
    """
    if not body:
        raise _bad("The request body is empty: expected a JSON object.")
    if body.startswith(b"\xef\xbb\xbf"):
        raise _bad("The request body starts with a byte order mark: send UTF-8 without one.")
    if _has_long_number(body):
        raise _bad(f"A number in the request body has more than {MAX_NUMBER_DIGITS} digits.")
    try:
        values = _strictly(body)
        found = _as_written(body, values)
        if found is not None:
            return Members(values, found, 1)
        # Text written from a dict cannot repeat a name, so a body equal to it, white space aside,
        # does not. Unequal (escapes, number forms) proves nothing and takes the slower look.
        written = _encode(values)
        if written != body and written != msgspec.json.format(body, indent=-1):
            _refuse_duplicates(body)
        return Members(values, spans(body), body.index(b"{") + 1)
    except RecursionError:
        raise _too_deep() from None


def spans(text: bytes) -> dict[str, Span]:
    """Return member name -> span of its value, for the text of an object `members` accepted.

    The text may be that of a nested object; offsets count from the start of `text`.
    """
    found: dict[str, Span] = {}
    stop = 0
    opening = b'{"'
    for name, raw in _decode_raw(text).items():
        # As most clients write it, without white space; the pattern takes ten times as long.
        written = opening + name.encode() + b'":'
        start = stop + len(written)
        if text[stop:start] != written or text[start] <= _BLANK:
            member = _MEMBER.match(text, stop)
            assert member is not None
            start = member.end()
        stop = start + len(memoryview(raw))
        found[name] = Span(start, stop)
        opening = b',"'
    return found


def fit(values: Mapping[str, Any], shape: type[Shape], legal: Mapping[str, str]) -> Shape:
    """Convert decoded members to a msgspec struct, naming the field that does not fit.

    `legal` says per path, indices as `[]` (`messages[].role`), what is accepted there; an item
    without an entry takes its list's. Values never appear in the message.

    Raises `Denied` (400) with `param` in OpenAI's notation, for example `messages[0].role`.
    """
    try:
        return msgspec.convert(values, shape)
    except msgspec.ValidationError as error:
        raise _misfit(str(error), legal) from None


def _misfit(reason: str, legal: Mapping[str, str]) -> Denied:
    # "Expected `int`, got `str` - at `$.messages[0].role`"; the part before the path may quote
    # content, so only the last " - at " is msgspec's. No path: the body itself.
    what, at, path = reason.rpartition(" - at `$")
    param = path.removesuffix("`").removeprefix(".") if at else ""
    missing = _MISSING.fullmatch(what if at else reason)
    if missing:
        param = f"{param}.{missing[1]}" if param else missing[1]
        return _bad(f"Missing required parameter: '{param}'.", param)
    place = _INDEX.sub("[]", param)
    while place not in legal and place.endswith("[]"):
        place = place.removesuffix("[]")
    return _bad(f"Invalid value for '{param}': expected {legal[place]}.", param)


def _strictly(body: bytes) -> dict[str, Any]:
    try:
        values = _decode(body)
    except UnicodeDecodeError:
        raise _bad("The request body is not valid UTF-8.") from None
    except msgspec.ValidationError:  # no type is asked for, so only a number can be at fault
        raise _bad("A number in the request body is out of range.") from None
    except msgspec.DecodeError as error:  # states kind and offset, quotes nothing
        reason = str(error).removeprefix("JSON is malformed: ")
        raise _bad(f"The request body is not valid JSON: {reason}.") from None
    if not isinstance(values, dict):
        raise _bad("The request body must be a JSON object.")
    if _is_deep(values, MAX_DEPTH):
        raise _too_deep()
    if len(values) > MAX_MEMBERS:
        raise _bad(f"The request body has more than {MAX_MEMBERS} top-level members.")
    return values


def _as_written(body: bytes, values: dict[str, Any]) -> dict[str, Span] | None:
    """Return what `spans` does where a body is its values, written without white space.

    None where it is not. A body that is repeats no name, at any depth: what is written from a dict
    cannot. Both answers at once, because each costs as much as reading the body.
    """
    found: dict[str, Span] = {}
    stop = 0
    opening = b'{"'
    for name, value in values.items():
        head = opening + name.encode() + b'":'  # a name with escapes never matches
        start = stop + len(head)
        if body[stop:start] != head:
            return None
        text = _encode(value)
        stop = start + len(text)
        if not body.startswith(text, start):
            return None
        found[name] = Span(start, stop)
        opening = b',"'
    return found if found and body[stop:] == b"}" else None


def _has_long_number(body: bytes) -> bool:
    size = _DIGIT_WINDOW
    for start in range(0, len(body) - size + 1, size):
        if _ZERO <= body[start] <= _NINE and body[start : start + size].isdigit():
            return _LONG_NUMBER.search(_STRING.sub(b"", body)) is not None
    return False


def _is_deep(node: dict[str, Any] | list[Any], levels: int) -> bool:
    """Say whether there are more than so many levels in a value."""
    if not levels:
        return True
    for child in node.values() if isinstance(node, dict) else node:
        kind = type(child)
        if (kind is dict or kind is list) and _is_deep(child, levels - 1):
            return True
    return False


def _refuse_duplicates(body: bytes) -> None:
    repeated: dict[int, str] = {}
    kept: list[dict[str, Any]] = []  # alive until the search ends: ids must not be reused

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            kept.append(found)
            repeated[id(found)] = Counter(name for name, _ in pairs).most_common(1)[0][0]
        return found

    root = json.JSONDecoder(object_pairs_hook=collect).decode(body.decode())
    if repeated:
        path, exact = _first_repeated(root, repeated)
        where = f"Duplicate key '{path}'" if exact else f"Duplicate key inside '{path}'"
        raise _bad(f"{where if path else 'Duplicate key'} in the request body.", path or None)


def _first_repeated(root: dict[str, Any], repeated: Mapping[int, str]) -> tuple[str, bool]:
    stack: list[tuple[Any, str, bool]] = [(root, "", True)]
    while stack:
        node, path, exact = stack.pop()
        if id(node) in repeated:
            return _step(path, repeated[id(node)], exact=exact)
        if isinstance(node, dict):
            stack.extend((v, *_step(path, name, exact=exact)) for name, v in node.items())
        elif isinstance(node, list):
            stack.extend((v, f"{path}[{i}]" if exact else path, exact) for i, v in enumerate(node))
    raise AssertionError("a repeated name was seen and not found")


def _step(path: str, name: str, *, exact: bool) -> tuple[str, bool]:
    """Return the path to a member as far as it may be shown, and whether that is all of it."""
    if not exact:
        return path, False
    if path:
        return (f"{path}.{name}", True) if name in _NESTED_NAMES else (path, False)
    return (name, True) if _TOP_LEVEL_NAME.fullmatch(name) else ("", False)


def _too_deep() -> Denied:
    return _bad(f"The request body is nested more than {MAX_DEPTH} levels deep.")


def _bad(message: str, param: str | None = None) -> Denied:
    return Denied("invalid_request_error", message, param=param)
