"""Text completions in the other form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.cache.recorded import CannotTell
from extproc.cache.replay_completions import fold, unfold

from .told import events, stream

STAMP = {"id": "c1", "object": "text_completion", "created": 7, "model": "m"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def piece(text: Any, index: Any = 0, end: Any = None, logprobs: Any = None) -> dict[str, Any]:
    choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": end}
    return {**STAMP, "choices": [choice]}


def logprobs(*tokens: str, offset: int = 0) -> dict[str, Any]:
    places = [offset + sum(map(len, tokens[:number])) for number in range(len(tokens))]
    return {
        "tokens": list(tokens),
        "token_logprobs": [None, *[-0.5] * (len(tokens) - 1)],
        "top_logprobs": None,
        "text_offset": places,
    }


def test_choices_add_up() -> None:
    """Texts and log probabilities of two choices in turns."""
    chunks = [
        piece("b", 1),
        piece("a ", logprobs=logprobs("a", " ")),
        piece("", 1, "length"),
        piece("é", logprobs=logprobs("é", offset=2)),
        piece("", end="stop"),
        {**STAMP, "choices": [], "usage": USAGE},
    ]
    found = {
        "tokens": ["a", " ", "é"],
        "token_logprobs": [None, -0.5, None],
        "top_logprobs": None,
        "text_offset": [0, 1, 2],
    }
    assert json.loads(fold(stream(chunks))) == {
        **STAMP,
        "choices": [
            {"text": "a é", "index": 0, "logprobs": found, "finish_reason": "stop"},
            {"text": "b", "index": 1, "logprobs": None, "finish_reason": "length"},
        ],
        "usage": USAGE,
    }


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(stream([piece("a")]), id="no finish reason"),
        pytest.param(stream([piece("a", end="stop")], b""), id="no [DONE]"),
        pytest.param(stream([piece(5, end="stop")]), id="text that is none"),
        pytest.param(
            stream([piece("a", end="stop", logprobs={"new": [1]})]), id="unknown log probabilities"
        ),
        pytest.param(stream([piece("a", end="stop"), {"error": {}}]), id="an error"),
    ],
)
def test_what_cannot_be_folded_is_said_to_be(body: bytes) -> None:
    """A miss rather than a wrong answer."""
    with pytest.raises(CannotTell):
        fold(body)


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param({**STAMP, "choices": []}, id="no choices"),
        pytest.param(piece("a"), id="no finish reason"),
        pytest.param(piece(None, end="stop"), id="no text"),
        pytest.param({**piece("a", end="stop"), "error": {"message": "x"}}, id="an error"),
    ],
)
def test_what_cannot_be_unfolded_is_said_to_be(whole: Any) -> None:
    """A miss rather than a stream that no API sends."""
    with pytest.raises(CannotTell):
        unfold(json.dumps(whole).encode())


def test_a_document_streams_as_the_api_does() -> None:
    """The text, then the end, then usage where the document tells it."""
    whole = piece("a", end="stop")
    text, end = piece("a"), piece("", end="stop")
    assert events(unfold(json.dumps(whole).encode())) == [text, end, "[DONE]"]
    whole["usage"] = USAGE
    assert events(unfold(json.dumps(whole).encode())) == [
        {**text, "usage": None},
        {**end, "usage": None},
        {**STAMP, "choices": [], "usage": USAGE},
        "[DONE]",
    ]


TEXTS = st.lists(st.lists(st.text(max_size=5), max_size=4), min_size=1, max_size=3)


@given(TEXTS, st.booleans(), st.randoms(use_true_random=False))
def test_how_a_stream_is_cut_into_chunks_changes_nothing(
    texts: list[list[str]], told: bool, turns: Any
) -> None:
    """One document, from its own events and from any others that say the same."""
    wholes, queues = [], []
    for index, tokens in enumerate(texts):
        found = logprobs(*tokens) if told and tokens else None
        wholes += piece("".join(tokens), index, "stop", found)["choices"]
        cut = [
            piece(one, index, logprobs=found and {k: v and [v[place]] for k, v in found.items()})
            for place, one in enumerate(tokens)
        ]
        queues.append([*cut, piece("", index, "stop")])
    whole = {**STAMP, "choices": wholes, "usage": USAGE}
    body = json.dumps(whole).encode()
    assert json.loads(fold(unfold(body))) == whole
    order = [number for number, queue in enumerate(queues) for _ in queue]
    turns.shuffle(order)
    chunks = [queues[number].pop(0) for number in order]
    assert json.loads(fold(stream([*chunks, {**STAMP, "choices": [], "usage": USAGE}]))) == whole
