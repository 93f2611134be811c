"""Usage that crosses dialects keeps what a prompt cache read and wrote, in the other's way to count.

Anthropic counts both beside the input, OpenAI within it.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.dialects import answer_to_anthropic, answer_to_openai

ANY = st.none() | st.integers(-5, 99) | st.text(max_size=2)


@given(st.tuples(*[st.integers(0, 10**9)] * 4))
def test_there_and_back_is_the_same(counts: tuple[int, ...]) -> None:
    """No token is lost or counted twice."""
    names = (
        *("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"),
        "output_tokens",
    )
    told: dict[str, Any] = dict(zip(names, counts, strict=True))
    there = answer_to_openai.usage_of(told)
    assert there is not None
    assert there["prompt_tokens"] == sum(counts[:3])
    assert answer_to_anthropic.usage_of(there) == told


@pytest.mark.parametrize(
    ("details", "parts"),
    [
        pytest.param({"cached_tokens": 4, "cache_write_tokens": 5}, (1, 5, 4), id="both"),
        pytest.param({"cache_write_tokens": 99}, (0, 10, 0), id="no more than was sent"),
        pytest.param({"cached_tokens": 8, "cache_write_tokens": 5}, (0, 2, 8), id="together too"),
        pytest.param(None, (10, 0, 0), id="no details"),
    ],
)
def test_the_parts_never_exceed_the_prompt(details: Any, parts: tuple[int, ...]) -> None:
    """Whatever a compatible server says."""
    told = {"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": details}
    made = answer_to_anthropic.usage_of(told)
    assert made is not None
    assert (
        *(made["input_tokens"], made["cache_creation_input_tokens"]),
        made["cache_read_input_tokens"],
    ) == parts


@given(st.fixed_dictionaries({"cached_tokens": ANY, "cache_write_tokens": ANY}), st.integers(0, 9))
def test_details_of_any_kind_are_survived(details: Any, prompt: int) -> None:
    """Parts are never negative and add up to the prompt."""
    made = answer_to_anthropic.usage_of({"prompt_tokens": prompt, "prompt_tokens_details": details})
    assert made is not None
    assert min(made.values()) >= 0
    assert sum(made.values()) == prompt
