"""Translations against reviewed files: `tests/golden/<translation>/<name>.in.*` and `.out.*`; of
recorded streams the outputs alone.

`LLM_EDGE_WRITE_GOLDEN=1` writes the outputs anew; a change of theirs is reviewed as code is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extproc.dialects import (
    answer_to_anthropic,
    answer_to_openai,
    request_to_anthropic,
    request_to_openai,
    stream_to_anthropic,
    stream_to_openai,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CREATED = 1_700_000_000
WRITE = bool(os.environ.get("LLM_EDGE_WRITE_GOLDEN"))


def request(translate: Callable[[bytes, str], Any]) -> Callable[[bytes], str]:
    def made(body: bytes) -> str:
        found = translate(body, "upstream-model")
        return pretty({"lossy": list(found.lossy), "body": json.loads(found.body)})

    return made


def answer(body: bytes | None) -> str:
    assert body is not None
    return pretty(json.loads(body))


def stream(translator: Any, data: bytes) -> str:
    return (translator.feed(data) + translator.finish()).decode()


def pretty(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


TRANSLATIONS: dict[str, Callable[[bytes], str]] = {
    "request_to_anthropic": request(request_to_anthropic.translate),
    "request_to_openai": request(request_to_openai.translate),
    "answer_to_anthropic": lambda data: answer(answer_to_anthropic.answer(data)),
    "answer_to_openai": lambda data: answer(answer_to_openai.answer(data, CREATED)),
    "stream_to_anthropic": lambda data: stream(stream_to_anthropic.Translator(), data),
    "stream_to_openai": lambda data: stream(stream_to_openai.Translator(CREATED), data),
}
CASES = sorted(GOLDEN.glob("*/*.in.*"))


@pytest.mark.parametrize(
    "given", CASES, ids=[f"{one.parent.name} {one.name.partition('.')[0]}" for one in CASES]
)
def test_a_translation_is_the_reviewed_one(given: Path) -> None:
    """The output is, byte for byte, what was reviewed."""
    made = TRANSLATIONS[given.parent.name](given.read_bytes())
    expected = given.with_name(given.name.replace(".in.", ".out."))
    if WRITE:
        expected.write_text(made)
    assert made == expected.read_text()


RECORDED = sorted((GOLDEN / "recorded_to_openai").glob("*.out.txt"))


@pytest.mark.parametrize("expected", RECORDED, ids=lambda one: one.name.partition(".")[0])
def test_a_recorded_stream_is_translated_as_reviewed(expected: Path, shared_data: Path) -> None:
    """Anthropic's own recordings, which are not ours to keep here, byte for byte."""
    name = expected.name.replace(".out.", ".")
    data = (shared_data / "sse" / "anthropic" / name).read_bytes()
    made = stream(stream_to_openai.Translator(CREATED), data)
    if WRITE:
        expected.write_text(made)
    assert made == expected.read_text()


def test_every_recorded_stream_has_a_reviewed_translation(shared_data: Path) -> None:
    """None is forgotten when one is added."""
    recorded = {one.stem for one in (shared_data / "sse" / "anthropic").glob("*.txt")}
    assert {one.name.partition(".")[0] for one in RECORDED} == recorded


def test_every_translation_has_cases() -> None:
    """No direction is forgotten, and no file lies unused."""
    assert {one.parent.name for one in CASES} == set(TRANSLATIONS)
    written = set(GOLDEN.glob("*/*.out.*")) - set(RECORDED)
    outputs = {one.name.replace(".out.", ".in.") for one in written}
    assert outputs == {one.name for one in CASES}
