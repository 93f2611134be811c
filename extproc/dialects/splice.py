"""Changing a request body by splicing bytes: what is not named stays as the caller wrote it.

Knows: byte spans, and calls as far as they name some. Must not know: any API's fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from extproc.domain import Call, Span

Edit: TypeAlias = tuple[Span, bytes]  # what to replace, and by what


class Rewritten:
    """A body as forwarded; `body` is None where the caller's bytes stay as they are.

    `model_span` covers the JSON string of the model in the body as forwarded. `strip_usage`: the
    usage event of the stream was asked for by the gateway, so the caller must not see it.
    """

    __slots__ = ("body", "model_span", "strip_usage")

    def __init__(self, body: bytes | None, model_span: Span, strip_usage: bool) -> None:
        self.body = body
        self.model_span = model_span
        self.strip_usage = strip_usage


def splice(
    body: bytes,
    model_span: Span,
    name: str | None,
    edits: Sequence[Edit] = (),
    *,
    strip_usage: bool = False,
) -> Rewritten:
    """Make the edits, and put another model's name in where one is given. Spans do not overlap."""
    start, stop = model_span.start, model_span.stop
    if name is not None:
        text = msgspec.json.encode(name)
        edits = (*edits, (model_span, text))
        stop = start + len(text)
    if not edits:
        return Rewritten(None, model_span, False)
    shift = sum(len(text) - at.stop + at.start for at, text in edits if at.start < start)
    pieces: list[bytes] = []
    done = 0
    for at, text in sorted(edits, key=_start):
        pieces += (body[done : at.start], text)
        done = at.stop
    pieces.append(body[done:])
    return Rewritten(b"".join(pieces), Span(start + shift, stop + shift), strip_usage)


def bound_edits(body: bytes, call: Call, tokens: int, name: str) -> list[Edit]:
    """Return what to replace, and by what, so that no choice is longer than `tokens`.

    `name` is the member to add where the caller wrote none.
    """
    written = b"%d" % tokens
    bounds = [span for span in call.limit_spans if body[span.start : span.stop] != b"null"]
    if bounds:
        # A float, because JSON may write a whole number as one.
        return [(s, written) for s in bounds if float(body[s.start : s.stop]) > tokens]
    if call.limit_spans:
        return [(call.limit_spans[0], written)]
    start = call.object_start
    return [(Span(start, start), b'"' + name.encode() + b'":' + written + b",")]


def _start(edit: Edit) -> int:
    return edit[0].start
