"""Anthropic's streams as chunks: the recorded ones, any chunking of them, and what breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from extproc.dialects import sse
from extproc.dialects.stream_to_openai import Translator

from .streams import events, run

GOLDEN = Path(__file__).parents[1] / "golden" / "stream_to_openai"
MADE_UP = sorted(GOLDEN.glob("*.in.txt"))
# Of each recording: text, names and arguments of calls, the end, prompt and completion tokens.
RECORDED: dict[str, tuple[str, list[tuple[str, str]], str, tuple[int, int]]] = {
    "basic_response": ("Hello there!", [], "stop", (11, 6)),
    "compaction_response": ("Hello there!", [], "stop", (30, 8)),
    "fallback_credit_response": ("Hello there!", [], "stop", (25, 8)),
    "fallback_response": ("Hello there!", [], "stop", (25, 8)),
    "refusal_response": ("", [], "content_filter", (20, 0)),
    "tool_use_response": (
        "I'll check the current weather in Paris for you.",
        [("get_weather", '{"location": "Paris"}')],
        "tool_calls",
        (377, 65),
    ),
}


def translator() -> Translator:
    return Translator(created=1)


def told(chunks: list[Any]) -> tuple[str, list[tuple[str, str]], str]:
    """Return text, calls and end of validated chunks."""
    parsed = [ChatCompletionChunk.model_validate(one) for one in chunks]
    assert {(one.id, one.model) for one in parsed} == {(parsed[0].id, parsed[0].model)}
    text, calls, end = "", {}, ""
    for choice in (choice for one in parsed for choice in one.choices):
        text += choice.delta.content or ""
        end = choice.finish_reason or end
        for call in choice.delta.tool_calls or []:
            name, arguments = calls.get(call.index, ("", ""))
            function = call.function
            calls[call.index] = (function.name or name, arguments + (function.arguments or ""))
    return text, [calls[index] for index in sorted(calls)], end


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_recorded_stream_says_the_same(name: str, shared_data: Path) -> None:
    """Text, tool calls, reason and usage of Anthropic's own recordings, parsed by OpenAI's types."""
    data = (shared_data / "sse" / "anthropic" / f"{name}.txt").read_bytes()
    *chunks, done = events(run(translator, data))
    usage = chunks[-1]["usage"]
    assert (*told(chunks), (usage["prompt_tokens"], usage["completion_tokens"])) == RECORDED[name]
    assert (chunks[-1]["choices"], done) == ([], "[DONE]")
    assert all("usage" not in chunk for chunk in chunks[:-1])


def test_a_recording_whose_arguments_are_cut_keeps_what_there_is(shared_data: Path) -> None:
    """The bound cut the arguments: they arrive as they were, with the reason."""
    data = (shared_data / "sse/anthropic/incomplete_partial_json_response.txt").read_bytes()
    *chunks, _ = events(run(translator, data))
    _, calls, end = told(chunks)
    assert end == "length"
    assert calls[0][0] == "make_file"
    assert calls[0][1].startswith('{"filename": "taxes.txt", "lines_of_text": [\n"# COMP')
    assert calls[0][1].endswith('\n"Filing taxes')
    assert chunks[-1]["usage"]["completion_tokens"] == 124


def test_any_chunking_of_a_recording_gives_the_same_bytes(shared_data: Path) -> None:
    """Every recording, cut at every place once and in single bytes."""
    for path in (shared_data / "sse" / "anthropic").glob("*.txt"):
        data = path.read_bytes()
        whole = run(translator, data)
        assert run(translator, data, range(len(data))) == whole
        assert run(translator, data.replace(b"\n", b"\r\n"), range(0, 9999, 7)) == whole
        for place in range(0, len(data), 11):
            assert run(translator, data, [place]) == whole


@given(st.sampled_from(MADE_UP), st.lists(st.integers(0, 5000), max_size=20))
def test_any_chunking_gives_the_same_bytes(path: Path, cuts: list[int]) -> None:
    """The made-up streams, cut anywhere."""
    data = path.read_bytes()
    assert run(translator, data, cuts) == run(translator, data)


@given(st.lists(st.binary(max_size=40) | st.sampled_from(MADE_UP).map(Path.read_bytes), max_size=4))
def test_garbage_is_an_error_event_and_never_an_exception(pieces: list[bytes]) -> None:
    """Whatever comes, the caller gets a stream that ends."""
    found = events(run(translator, b"".join(pieces)))
    assert found[-1] == "[DONE]" or "error" in found[-1]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
FIELDS = st.dictionaries(
    st.sampled_from(["index", "message", "content_block", "delta", "usage", "error"]),
    JUNK
    | st.dictionaries(
        st.sampled_from(
            [
                "type",
                "text",
                "id",
                "name",
                "usage",
                "input",
                "stop_reason",
                "partial_json",
                "thinking",
            ]
        ),
        JUNK | st.sampled_from(["tool_use", "text", "input_json_delta", "text_delta"]),
    ),
)
KINDS = ["message_start", "content_block_start", "content_block_delta", "content_block_stop"]


@settings(max_examples=40)  # drawing them costs more than what is tested
@given(st.lists(st.tuples(st.sampled_from([*KINDS, "message_delta", "error", "x"]), FIELDS)))
def test_events_of_any_shape_are_survived(made: list[tuple[str, dict[str, Any]]]) -> None:
    """Fields that are missing or of a wrong type are read as nothing."""
    data = b"".join(b"data: %b\n\n" % json.dumps({"type": k, **f}).encode() for k, f in made)
    assert "error" in events(run(translator, data))[-1]


def test_an_event_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller is told, and nothing more is read."""
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    one = translator()
    assert b"broke off" in one.feed(b"data: " + b"x" * 200)
    assert one.feed(b'\n\ndata: {"type":"message_stop"}\n\n') == one.finish() == b""
