"""Chunks of chat completions as Anthropic's streams: any chunking, and what breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from extproc.dialects import sse
from extproc.dialects.stream_to_anthropic import Translator

from .streams import events, run

GOLDEN = Path(__file__).parents[1] / "golden" / "stream_to_anthropic"
MADE_UP = sorted(GOLDEN.glob("*.in.txt"))
PARSE: Any = TypeAdapter(RawMessageStreamEvent)


def ordered(found: list[dict[str, Any]]) -> None:
    """Assert the order the API documents: start, blocks by index, delta, stop."""
    assert found[0]["type"] == "message_start"
    opened, closed = [], set()
    for one in found[1:-2]:
        match one["type"]:
            case "content_block_start":
                opened.append(one["index"])
            case "content_block_stop":
                closed.add(one["index"])
            case kind:
                assert kind == "content_block_delta"
                assert one["index"] in set(opened) - closed
    assert opened == list(range(len(opened)))
    assert closed == set(opened)
    assert [one["type"] for one in found[-2:]] == ["message_delta", "message_stop"]


@pytest.mark.parametrize("path", MADE_UP, ids=[path.name.partition(".")[0] for path in MADE_UP])
def test_events_are_in_the_documented_order_and_shape(path: Path) -> None:
    """Every event is one the official client's types accept."""
    found = events(run(Translator, path.read_bytes()))
    if found[-1]["type"] == "error":
        assert found[-1]["error"]["type"] == "api_error"
        return
    ordered(found)
    for one in found:
        PARSE.validate_python(one)


@given(st.sampled_from(MADE_UP), st.lists(st.integers(0, 5000), max_size=20))
def test_any_chunking_gives_the_same_bytes(path: Path, cuts: list[int]) -> None:
    """The made-up streams, cut anywhere, with either line end."""
    data = path.read_bytes()
    whole = run(Translator, data)
    assert run(Translator, data, cuts) == whole
    assert run(Translator, data.replace(b"\n", b"\r\n"), cuts) == whole


@given(st.lists(st.binary(max_size=40) | st.sampled_from(MADE_UP).map(Path.read_bytes), max_size=4))
def test_garbage_is_an_error_event_and_never_an_exception(pieces: list[bytes]) -> None:
    """Whatever comes, the caller gets a stream that ends."""
    found = events(run(Translator, b"".join(pieces)))
    assert found[-1]["type"] in {"message_stop", "error"}


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
DELTA = st.dictionaries(
    st.sampled_from(["content", "refusal", "tool_calls", "reasoning", "role"]),
    JUNK
    | st.text()
    | st.lists(st.dictionaries(st.sampled_from(["index", "function", "id"]), JUNK)),
)
CHUNK = st.fixed_dictionaries(
    {}, optional={"id": JUNK, "choices": JUNK | st.lists(st.builds(lambda d: {"delta": d}, DELTA))}
)


@settings(max_examples=40)  # drawing them costs more than what is tested
@given(st.lists(CHUNK, min_size=1))
def test_chunks_of_any_shape_are_survived(made: list[Any]) -> None:
    """Fields that are missing or of a wrong type are read as nothing; the order holds."""
    data = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in made)
    ordered(events(run(Translator, data + b"data: [DONE]\n\n")))


def test_an_event_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller is told, and nothing more is read."""
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    one = Translator()
    assert b"broke off" in one.feed(b"data: " + b"x" * 200)
    assert one.feed(b"\n\ndata: [DONE]\n\n") == one.finish() == b""
