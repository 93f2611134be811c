"""Renaming a model in a body, byte by byte."""

from hypothesis import given
from hypothesis import strategies as st

from extproc.dialects.splice import splice
from extproc.domain import Span


@given(st.binary(), st.binary(), st.text(min_size=1))
def test_what_is_around_the_name_stays(before: bytes, after: bytes, name: str) -> None:
    """Whatever the bytes, only the span changes, and the new span covers the new name."""
    body = before + b'"m"' + after
    span = Span(len(before), len(before) + 3)
    made = splice(body, span, name)
    assert made.body is not None
    assert made.body[: made.model_span.start] == before
    assert made.body[made.model_span.stop :] == after
    assert splice(body, span, None).body is None
