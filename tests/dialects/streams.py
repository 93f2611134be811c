"""Running a stream translator over bytes cut at chosen places.

Knows: translators' two methods and SSE. Must not know: what is asserted.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

from extproc.dialects.sse import Reader


def run(make: Callable[[], Any], data: bytes, cuts: Iterable[int] = ()) -> bytes:
    """Translate the bytes, cut at the places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    translator, out = make(), b""
    for start, stop in itertools.pairwise(places):
        out += translator.feed(data[start:stop])
    return out + bytes(translator.finish())


def events(data: bytes) -> list[Any]:
    """Return the decoded events of a stream, [DONE] as it is."""
    reader = Reader()
    found = [one.data for one in reader.feed(data) + reader.finish()]
    return [one.decode() if one == b"[DONE]" else json.loads(one) for one in found]
