"""Anthropic's answers and errors for OpenAI's clients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from extproc.dialects.answer_to_openai import answer, error

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "answer_to_openai").glob("*.in.json"))
ANY: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["text", "tool_use", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "text", "id", "name", "input", "input_tokens", "output_tokens"]
            ),
            inner,
        )
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("path", GOLDEN, ids=[path.name for path in GOLDEN])
def test_the_official_types_accept_it(path: Path) -> None:
    """What is written is a chat completion."""
    made = answer(path.read_bytes(), 1)
    assert made is not None
    ChatCompletion.model_validate_json(made)


@given(st.dictionaries(st.sampled_from(["content", "usage", "stop_reason", "id", "model"]), ANY))
def test_a_message_of_any_shape_is_a_completion(fields: dict[str, Any]) -> None:
    """Fields that are missing or of a wrong type are read as nothing."""
    made = answer(json.dumps({"type": "message", **fields}).encode(), 1)
    assert made is not None
    ChatCompletion.model_validate_json(made)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"type":"error"}', b"\xff", b"[" * 9999])
def test_what_is_no_message_is_not_translated(body: bytes) -> None:
    """Garbage is told apart, so that it can be answered as a failure."""
    assert answer(body, 1) is None


@pytest.mark.parametrize(
    ("status", "kind", "type_", "code"),
    [
        (400, "invalid_request_error", "invalid_request_error", None),
        (401, "authentication_error", "authentication_error", "invalid_api_key"),
        (403, "permission_error", "permission_error", "permission_denied"),
        (404, "not_found_error", "invalid_request_error", "model_not_found"),
        (413, "request_too_large", "invalid_request_error", "request_too_large"),
        (429, "rate_limit_error", "rate_limit_error", "rate_limit_exceeded"),
        (500, "api_error", "server_error", None),
        (529, "overloaded_error", "server_error", "overloaded"),
        (500, "a_new_error", "server_error", None),
    ],
)
def test_errors(status: int, kind: str, type_: str, code: str | None) -> None:
    """Each of Anthropic's errors has OpenAI's type and code, and its own message."""
    body = json.dumps({"type": "error", "error": {"type": kind, "message": "Because."}}).encode()
    expected = {"message": "Because.", "type": type_, "param": None, "code": code}
    assert json.loads(error(body, status)) == {"error": expected}


@pytest.mark.parametrize("body", [b"", b"<html>secret</html>", b'{"error":"secret"}'])
def test_an_unreadable_error_is_not_quoted(body: bytes) -> None:
    """A page of a proxy's is replaced by what is known: the status."""
    made = json.loads(error(body, 502))["error"]
    assert made["message"] == "The provider answered with status 502."
