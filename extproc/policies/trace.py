"""Continue a caller's trace, or begin one: the W3C Trace Context header and what we make of it.

Knows: `traceparent`. Must not know: who records spans, randomness (an argument), the wire.
Source: W3C Trace Context, level 1.
"""

from __future__ import annotations

import re
from typing import Final

from extproc.domain import Trace

TOKEN_BYTES: Final = 24  # of a trace id and a span id
_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?",
    re.ASCII,
)
_TEXT: Final = re.compile(r"([0-9a-f]{32})([0-9a-f]{16})([0-9a-f]{16})", re.ASCII)
_SAMPLED: Final = 1


def continued(traceparent: str | None, token: bytes, ratio: float) -> Trace:
    """Return the span of a call under the caller's, or the first one of a new trace.

    `token` is TOKEN_BYTES fresh random bytes. The caller's decision to sample is kept; of new
    traces the share `ratio` is sampled, by their ids, so that everybody decides alike.
    """
    span_id = int.from_bytes(token[:8]) or 1
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent is not None else None
    # Version 00 has four fields; a later one may have more, and begins with the same.
    if found is not None and (found[1] != "00" or found[5] is None):
        sampled = bool(int(found[4], 16) & _SAMPLED)
        return Trace(int(found[2], 16), span_id, int(found[3], 16), sampled)
    trace_id = int.from_bytes(token[8:]) or 1
    return Trace(trace_id, span_id, 0, (trace_id & (2**64 - 1)) < ratio * 2**64)


def traceparent_of(trace: Trace) -> bytes:
    """Return the header for whoever is called next."""
    return b"00-%032x-%016x-%02x" % (trace.trace_id, trace.span_id, trace.sampled)


def written(trace: Trace | None) -> str:
    """Return what settlement needs of a trace as text: empty where nothing is to be recorded."""
    if trace is None or not trace.sampled:
        return ""
    return f"{trace.trace_id:032x}{trace.span_id:016x}{trace.parent_id:016x}"


def read(text: str) -> Trace | None:
    """Read back what `written` wrote."""
    found = _TEXT.fullmatch(text)
    if found is None:
        return None
    return Trace(int(found[1], 16), int(found[2], 16), int(found[3], 16), sampled=True)
