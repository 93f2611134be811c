"""The table of directions is complete and the right way round."""

import json

import pytest

from extproc.dialects.directions import DIRECTIONS

SAID = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("caller", "asks_for", "error", "stream"),
    [
        ("openai", "max_tokens", {"error"}, b"data: {"),
        ("anthropic", "max_completion_tokens", {"type", "error", "request_id"}, b"event: error"),
    ],
)
def test_each_caller_gets_its_own_dialect(
    caller, asks_for: str, error: set[str], stream: bytes
) -> None:
    """The request is the other's, the error and the stream are the caller's."""
    direction = DIRECTIONS[caller]
    made = json.loads(direction.request(json.dumps(SAID).encode(), "other").body)
    assert (made["model"], asks_for in made) == ("other", True)
    assert set(json.loads(direction.error(b"", 500, "r"))) == error
    assert direction.stream(1).finish().startswith(stream)
    assert direction.answer(b"[]", 1) is None
