"""What a request's `Cache-Control` asks of the cache.

Knows: RFC 9111 section 5.2.1, as far as a cache that never serves stale answers needs it. Must not
know: what is stored, or the answer's own header, which the gateway does not go by.

Names are in any case, repeats and unknown directives are fine, and both forms of an argument are
read (section 5.2). What is malformed never gets a caller an answer from the cache that it may not
have wanted: `max-age` without a number, or with two that differ, is `max-age=0` (section 4.2.1).
`max-stale` has no effect, `min-fresh` and `no-transform` are not implemented: they are advisory.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import msgspec

MAX_AGE_S: Final = 2**31  # what a larger number means (section 1.2.2)
_MAX_KEPT_CHARS: Final = 64  # of a header that is remembered with what it says

# An argument: a quoted string, or whatever stands before the next comma.
_DIRECTIVE: Final = re.compile(
    r"""([^\s,="]++)[ \t]*+(?:=[ \t]*+("(?:[^"\\]|\\.)*+"[ \t]*+(?=,|\Z)|[^,]*+))?+[^,]*+"""
)
_DIGITS: Final = re.compile(r"[0-9]+", re.ASCII)


class Control(msgspec.Struct, frozen=True, gc=False):
    """`max_age_s` None: any age that is fresh."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age_s: int | None = None


ANYTHING: Final = Control()


def read(header: str) -> Control:
    """Read the header's value, repeats joined by commas; empty where there is none. Never raises.

    `no-cache` and `max-age` bear on what may be answered with, `no-store` on what may be kept.
    """
    if not header:
        return ANYTHING
    return _remembered(header) if len(header) <= _MAX_KEPT_CHARS else _read(header)


def _read(header: str) -> Control:
    names = set()
    ages = set()
    for found in _DIRECTIVE.finditer(header):  # what is between them, no name begins with
        name = found[1].lower()
        names.add(name)
        if name == "max-age":
            ages.add(_seconds(found[2] or ""))
    return Control(
        no_cache="no-cache" in names,
        no_store="no-store" in names,
        only_if_cached="only-if-cached" in names,
        max_age_s=None if not ages else ages.pop() if len(ages) == 1 else 0,
    )


_remembered: Final = lru_cache(maxsize=256)(_read)


def _seconds(argument: str) -> int:
    text = argument.strip(" \t")
    if len(text) > 1 and text.startswith('"') and text.endswith('"'):
        text = text[1:-1]
    if _DIGITS.fullmatch(text) is None:
        return 0
    text = text.lstrip("0")
    return min(int(text or 0), MAX_AGE_S) if len(text) <= len(str(MAX_AGE_S)) else MAX_AGE_S
