"""What chat and completions share of a stream: everything but what a choice says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from extproc.cache.recorded import CannotTell
from extproc.cache.replay_chat import fold

from .told import END, STAMP, USAGE, chunk, says, stream

A = says({"content": "a"})
MESSAGE = {"role": "assistant", "content": "a", "refusal": None, "annotations": []}
FRAMES: list[Any] = [
    pytest.param([says({"content": "a"}), END], {}, id="no usage"),
    pytest.param(
        [says({"content": "a"}, usage=None), {**END, "usage": USAGE}],
        {"usage": USAGE},
        id="usage in the last chunk",
    ),
    pytest.param(
        [says({"content": "a"}), END, chunk(usage=USAGE), chunk(usage={**USAGE, "x": 2**80})],
        {"usage": {**USAGE, "x": 2**80}},
        id="usage twice, past 64 bits",
    ),
    pytest.param(
        [
            says({"content": "a"}, service_tier=None, system_fingerprint="fp"),
            {**END, "service_tier": "default", "system_fingerprint": "fp"},
        ],
        {"service_tier": "default", "system_fingerprint": "fp"},
        id="tier and fingerprint",
    ),
    pytest.param(
        [says({"content": "a"}, obfuscation="xx"), {**END, "obfuscation": "y"}],
        {},
        id="padding is dropped",
    ),
    pytest.param(
        [
            {
                "id": "",
                "object": "",
                "created": 0,
                "model": "",
                "choices": [],
                "prompt_filter_results": [1],
            },
            says({"content": "a"}),
            END,
        ],
        {"prompt_filter_results": [1]},
        id="Azure's first chunk",
    ),
    pytest.param(
        [says({"content": "a"}, provider="p"), {**END, "provider": "p"}],
        {"provider": "p"},
        id="a field in every chunk",
    ),
]


@pytest.mark.parametrize(("chunks", "more"), FRAMES)
def test_chunks_add_up_to_a_document(chunks: list[Any], more: dict[str, Any]) -> None:
    """What is not of a choice."""
    choice = {"index": 0, "message": MESSAGE, "logprobs": None, "finish_reason": "stop"}
    whole = {**STAMP, "object": "chat.completion", "choices": [choice], **more}
    assert json.loads(fold(stream(chunks))) == whole


CANNOT_FOLD = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"garbage", id="no stream"),
    pytest.param(stream([A, END], b""), id="no [DONE]"),
    pytest.param(stream([A]), id="no finish reason"),
    pytest.param(stream([A, says({}, end=5)]), id="a finish reason that is none"),
    pytest.param(stream([A, says({}, index=1), END]), id="a choice without an end"),
    pytest.param(stream([chunk(usage=USAGE)]), id="no choices"),
    pytest.param(stream([A, {"error": {"message": "x"}}, END]), id="an error without choices"),
    pytest.param(stream([A, {**END, "error": {"message": "x"}}]), id="an error beside choices"),
    pytest.param(stream([[]]), id="a chunk that is a list"),
    pytest.param(b"data: {\n\ndata: [DONE]\n\n", id="a chunk cut short"),
    pytest.param(b'data: {"a":"\xff"}\n\ndata: [DONE]\n\n', id="not UTF-8"),
    pytest.param(b"data: " + b"[" * 100_000 + b"\n\n", id="nested past every stack"),
    pytest.param(b'data: {"a":1e999}\n\n', id="a number past a double"),
    pytest.param(stream([A, {**END, "id": "c2"}]), id="two ids"),
    pytest.param(stream([A, {**END, "model": "n"}]), id="two models"),
    pytest.param(stream([says({}, x=1), {**END, "x": 2}]), id="a field that changes"),
    pytest.param(stream([says({}, index=None), END]), id="no index"),
    pytest.param(stream([says({}, index=True), END]), id="an index that is true"),
    pytest.param(stream([says({}, index=-1), END]), id="an index below 0"),
    pytest.param(stream([chunk("x")]), id="a choice that is a string"),
    pytest.param(stream([A, {**END, "usage": 5}]), id="usage that is a number"),
    pytest.param(stream([A, {**END, "choices": {}}]), id="choices that are an object"),
]  # fmt: skip


@pytest.mark.parametrize("body", CANNOT_FOLD)
def test_what_cannot_be_folded_is_said_to_be(body: bytes) -> None:
    """A miss rather than a wrong answer."""
    with pytest.raises(CannotTell):
        fold(body)
