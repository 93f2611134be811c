"""OpenAI's answers and errors for Anthropic's clients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import Message
from hypothesis import given
from hypothesis import strategies as st

from extproc.dialects.answer_to_anthropic import answer, error

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "answer_to_anthropic").glob("*.in.json"))
ANY: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["stop", "{}", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["content", "tool_calls", "function", "arguments", "id", "name"]), inner
        )
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("path", GOLDEN, ids=[path.name for path in GOLDEN])
def test_the_official_types_accept_it(path: Path) -> None:
    """What is written is a message; one without usage is that alone."""
    made = answer(path.read_bytes())
    assert made is not None
    fields = json.loads(made)
    fields.setdefault("usage", {"input_tokens": 0, "output_tokens": 0})
    Message.model_validate(fields)


@given(ANY, ANY, ANY)
def test_a_completion_of_any_shape_is_a_message(message: Any, usage: Any, finish: Any) -> None:
    """Fields that are missing or of a wrong type are read as nothing."""
    body = {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}
    made = answer(json.dumps(body).encode())
    assert made is not None
    assert json.loads(made)["type"] == "message"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"choices":[]}', b"\xff", b"[" * 9999])
def test_what_is_no_completion_is_not_translated(body: bytes) -> None:
    """Garbage is told apart, so that it can be answered as a failure."""
    assert answer(body) is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_errors(status: int, kind: str) -> None:
    """Each status has Anthropic's word, and the provider's own message."""
    body = json.dumps({"error": {"message": "Because.", "type": "x", "code": None}}).encode()
    made = {"type": "error", "error": {"type": kind, "message": "Because."}, "request_id": "r"}
    assert json.loads(error(body, status, "r")) == made


@pytest.mark.parametrize("body", [b"", b"<html>secret</html>", b'{"error":"secret"}'])
def test_an_unreadable_error_is_not_quoted(body: bytes) -> None:
    """A page of a proxy's is replaced by what is known: the status."""
    made = json.loads(error(body, 502, "r"))["error"]
    assert made["message"] == "The provider answered with status 502."
