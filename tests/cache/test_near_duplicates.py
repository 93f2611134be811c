"""Prompts that look alike and ask for something else: none is answered with another's answer."""

from __future__ import annotations

import json
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest

from extproc.cache import canonical
from extproc.domain import EndpointName

PAIRS: list[dict[str, str]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "near_duplicates.json").read_text()
)


def body(endpoint: EndpointName, prompt: str) -> dict[str, Any]:
    """Return a call that asks the prompt, after a turn that all of them have."""
    turns = [{"role": "user", "content": "Hi."}, {"role": "user", "content": prompt}]
    match endpoint:
        case "completions":
            return {"prompt": prompt, "max_tokens": 50}
        case "embeddings":
            return {"input": [prompt]}
        case "responses":
            return {"input": prompt, "store": False}
        case _:
            return {"messages": turns, "max_tokens": 50, "temperature": 0}


def form(endpoint: EndpointName, prompt: str) -> bytes:
    """Return the canonical text of a call that asks the prompt."""
    values = canonical.read(json.dumps(body(endpoint, prompt)).encode())
    assert values is not None
    found = canonical.form(endpoint, values)
    assert found is not None
    return found


def test_there_are_80_pairs_that_look_alike() -> None:
    assert len(PAIRS) == 80
    alike = [SequenceMatcher(None, pair["a"], pair["b"]).ratio() for pair in PAIRS]
    assert min(alike) > 0.6
    assert sum(alike) / len(alike) > 0.9


@pytest.mark.parametrize("endpoint", ["chat", "completions", "embeddings", "responses", "messages"])
def test_no_prompt_is_taken_for_another(endpoint: EndpointName) -> None:
    prompts = [prompt for pair in PAIRS for prompt in (pair["a"], pair["b"])]
    assert len({form(endpoint, prompt) for prompt in prompts}) == len(prompts) == 160
