"""The event of a stream that carries usage alone, and a stream without it.

Knows: what the probe (`extproc/bundle/lua/probe.lua`) takes for that event and what it leaves of
it, so that a caller who did not ask for usage gets the same bytes from the cache as from upstream.
Must not know: anything else of any API. Both sides are compared by a test in a real Envoy.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_EMPTY: Final = re.compile(rb"\[\s*\]")  # half the cost of a search for the key and all
_KEY_BYTES: Final = 64  # a key, a colon and spacing, as much as the probe keeps of a cut one
_SOME_CHOICES: Final = re.compile(rb'"choices"\s*:\s*\[\s*[^\]\s]')
_USAGE_OBJECT: Final = re.compile(rb'"usage"\s*:\s*\{')
_EMPTY_LIST: Final = re.compile(rb"\s*:\s*\[\s*\]")
_OBJECT: Final = re.compile(rb"\s*:\s*\{")
_NO_DATA: Final = re.compile(rb":|data:\s*[^\s{]")
_BLANK_LINE: Final = re.compile(rb"\n\r?\n")
# A quote that is left over opens a string that does not end.
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}\[\]]', re.DOTALL)

_decode: Final = msgspec.json.Decoder().decode


def without_usage(stream: bytes) -> bytes:
    """Return the stream without the events that carry usage alone; line ends before them stay."""
    pieces: list[bytes] = []
    kept = passed = at = 0
    while (found := _EMPTY.search(stream, at)) is not None:
        place = found.start()
        if not _is_of_choices(stream[max(at, place - _KEY_BYTES) : place]):
            at = found.end()
            continue
        start = _start(stream, place, passed)
        blank = _BLANK_LINE.search(stream, place)
        passed = at = len(stream) if blank is None else blank.end()
        if _is_usage(stream[start:at]):
            pieces.append(stream[kept:start])
            kept = at
    if not pieces:
        return stream
    pieces.append(stream[kept:])
    return b"".join(pieces)


def _is_of_choices(before: bytes) -> bool:
    before = before.rstrip()
    return before.endswith(b":") and before[:-1].rstrip().endswith(b'"choices"')


def _start(stream: bytes, at: int, passed: int) -> int:
    """Return where the event around a place begins, after the lines before it."""
    lf, crlf = stream.rfind(b"\n\n", passed, at), stream.rfind(b"\n\r\n", passed, at)
    start = max(passed, lf + 2 if lf >= 0 else 0, crlf + 3 if crlf >= 0 else 0)
    while stream[start : start + 1] in (b"\r", b"\n"):
        start += 1
    return start


def _is_usage(event: bytes) -> bool:
    if (
        _USAGE_OBJECT.search(event) is None
        or _SOME_CHOICES.search(event) is not None
        or _NO_DATA.match(event) is not None
    ):
        return False
    if b"\\" not in event:  # so that what a parser reads is what is written
        try:
            read = _decode(event.removeprefix(b"data: "))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # more than one line of data, or no JSON: the tokens decide as the probe's do
        else:
            return (
                type(read) is dict and read.get("choices") == [] and type(read.get("usage")) is dict
            )
    depth, empty, used = 0, False, False
    for token in _TOKEN.finditer(event, max(event.find(b"{"), 0)):
        text = token.group()
        if text == b'"':
            return False
        if text[0] == ord('"'):
            if depth == 1 and text == b'"choices"':
                empty = _EMPTY_LIST.match(event, token.end()) is not None
            elif depth == 1 and text == b'"usage"':
                used = _OBJECT.match(event, token.end()) is not None
        else:
            depth += 1 if text in b"{[" else -1
    return empty and used
