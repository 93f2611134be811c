"""Anthropic messages in the other form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from extproc.cache.recorded import CannotTell
from extproc.cache.replay_messages import fold, unfold

from .told import events, named

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
CITATION = {
    "type": "char_location",
    "cited_text": "c",
    "document_index": 0,
    "document_title": "d",
    "file_id": None,
    "start_char_index": 0,
    "end_char_index": 1,
}
USAGE = {
    "input_tokens": 9,
    "cache_creation_input_tokens": 2,
    "cache_read_input_tokens": 1,
    "output_tokens": 7,
    "service_tier": "standard",
}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def tool(given_: Any, id_: str = "toolu_1", kind: str = "tool_use") -> dict[str, Any]:
    return {"type": kind, "id": id_, "name": "web_search", "input": given_}


def thinking(thought: str, signature: str = "c2ln") -> dict[str, Any]:
    return {"type": "thinking", "thinking": thought, "signature": signature}


REDACTED = {"type": "redacted_thinking", "data": "EmwK"}
RESULT = {"type": "web_search_tool_result", "tool_use_id": "toolu_1", "content": []}
COMPACTION = {"type": "compaction", "content": "so far", "encrypted_content": "Epw"}


def message(*content: Any, reason: Any = "end_turn", **more: Any) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": list(content),
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": USAGE,
        **more,
    }


def unfolded(whole: Any) -> list[Any]:
    return events(unfold(json.dumps(whole).encode()))


WHOLES: list[Any] = [
    pytest.param(message(), id="no content"),
    pytest.param(message(text("")), id="no text"),
    pytest.param(message(text("a"), text("b")), id="two texts"),
    pytest.param(message(text("a", citations=[CITATION, CITATION])), id="citations"),
    pytest.param(message(text("a", citations=[]), text("b", citations=None)), id="no citations"),
    pytest.param(message(tool({"x": [1, "é"]}), tool({}, "toolu_2"), reason="tool_use"), id="parallel tools"),
    pytest.param(message(thinking("hm"), REDACTED, thinking("", ""), text("a")), id="thoughts"),
    pytest.param(message(tool({"query": "q"}, kind="server_tool_use"), RESULT, text("a")), id="a tool of Anthropic's own"),
    pytest.param(message(text("a"), reason="stop_sequence", stop_sequence="###"), id="a stop sequence"),
    pytest.param(
        message(reason="refusal", stop_details={"type": "refusal", "category": "cyber", "explanation": "e"}),
        id="a refusal",
    ),
    pytest.param(
        message(
            text("a"),
            container={"id": "c", "expires_at": "2030-01-01T00:00:00Z"},
            usage={**USAGE, "server_tool_use": {"web_search_requests": 1, "web_fetch_requests": 0}},
        ),
        id="a container and uses of tools",
    ),
    pytest.param(message(text("a"), container=None, usage={**USAGE, "server_tool_use": None}), id="none of them"),
]  # fmt: skip
ODD: list[Any] = [
    pytest.param(message(COMPACTION, context_management={"applied_edits": []}), id="a compaction"),
    pytest.param(
        message({"type": "new", "x": [1]}, new={"y": 2}), id="fields and blocks no page names"
    ),
    pytest.param({k: v for k, v in message(text("a")).items() if k != "usage"}, id="no usage"),
]


@pytest.mark.parametrize("whole", [*WHOLES, *ODD])
def test_unfolding_and_folding_again_changes_nothing(whole: dict[str, Any]) -> None:
    """Every kind of block, end and count."""
    body = json.dumps(whole, ensure_ascii=False).encode()
    assert json.loads(fold(unfold(body))) == whole


@pytest.mark.parametrize("whole", WHOLES)
def test_the_official_client_adds_up_a_stream_made_of_a_document(whole: dict[str, Any]) -> None:
    """Every event is one the client knows, and the sum is the document."""
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in unfolded(whole):
        if event["type"] == "message_stop":
            continue
        read = EVENT.validate_python(event)
        snapshot = accumulate_event(event=read, current_snapshot=snapshot, json_bufs=buffers)
    assert snapshot is not None
    found = json.loads(snapshot.to_json(warnings=False))
    assert {name: found[name] for name in whole} == whole


def test_a_document_streams_as_the_api_does() -> None:
    """Blocks one after the other, counts at the start and at the end."""
    whole = message(thinking("hm"), text("a", citations=[CITATION]), tool({"x": 1}))
    start = {"content": [], "stop_reason": None, "usage": {**USAGE, "output_tokens": 1}}
    counted = {name: USAGE[name] for name in USAGE if name != "service_tier"}

    def delta(index: int, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}

    def begins(index: int, block: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_start", "index": index, "content_block": block}

    assert unfolded(whole) == [
        {"type": "message_start", "message": {**whole, **start}},
        begins(0, thinking("", "")),
        delta(0, "thinking_delta", thinking="hm"),
        delta(0, "signature_delta", signature="c2ln"),
        {"type": "content_block_stop", "index": 0},
        begins(1, text("", citations=[])),
        delta(1, "text_delta", text="a"),
        delta(1, "citations_delta", citation=CITATION),
        {"type": "content_block_stop", "index": 1},
        begins(2, tool({})),
        delta(2, "input_json_delta", partial_json='{"x":1}'),
        {"type": "content_block_stop", "index": 2},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": counted,
        },
        {"type": "message_stop"},
    ]


def test_what_is_known_at_the_end_is_null_at_the_start() -> None:
    """Where the document has it at all."""
    usage = {
        **USAGE,
        "server_tool_use": {"web_search_requests": 1},
        "output_tokens_details": {"x": 1},
    }
    first, *_, end, _stop = unfolded(message(usage=usage, container={"id": "c"}))
    started = first["message"]
    assert started["usage"] == usage | {
        "output_tokens": 1,
        "server_tool_use": None,
        "output_tokens_details": None,
    }
    assert (started["container"], end["delta"]["container"]) == (None, {"id": "c"})
    assert end["usage"] == {name: usage[name] for name in usage if name != "service_tier"}


def test_counts_at_the_end_stand_for_those_at_the_start() -> None:
    """They are cumulative; null says nothing; what is said once stays."""
    told = unfolded(message(text("a")))
    told[0]["message"]["usage"] = {"input_tokens": 5, "output_tokens": 1, "service_tier": "batch"}
    told[-2]["usage"] = {"input_tokens": 6, "output_tokens": 2, "service_tier": None}
    told.insert(-1, {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 3}})
    found = json.loads(fold(named(told)))
    assert found["usage"] == {"input_tokens": 6, "output_tokens": 3, "service_tier": "batch"}


def test_the_model_that_took_over_is_the_models_name() -> None:
    """As the API names it in a document."""
    told = unfolded(
        message({"type": "fallback", "from": {"model": "claude"}, "to": {"model": "haiku"}})
    )
    assert json.loads(fold(named(told)))["model"] == "haiku"


def changed(number: int, **fields: Any) -> bytes:
    """Return a stream of a text and a tool with one event changed, or left out."""
    told = unfolded(message(text("a"), tool({"x": 1}), thinking("h")))
    if fields:
        told[number] = {**told[number], **fields}
    else:
        del told[number]
    return named(told)


(
    START,
    TEXT_START,
    TEXT,
    TEXT_STOP,
    TOOL_START,
    TOOL,
    TOOL_STOP,
    _,
    THOUGHT,
    SIGNED,
    _,
    END,
    STOP,
) = range(13)


def test_a_stream_in_which_nothing_is_changed_folds() -> None:
    """Or the rows below would say nothing."""
    assert json.loads(fold(changed(STOP, x=None)))["stop_reason"] == "end_turn"


CANNOT_FOLD: list[Any] = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"garbage", id="no stream"),
    pytest.param(changed(START), id="no start"),
    pytest.param(changed(START, type="new"), id="a first event that is no start"),
    pytest.param(changed(START, message=None), id="no message"),
    pytest.param(named([{"type": "message_start", "message": message(text("a"))}, {"type": "message_stop"}]), id="a whole message at the start"),
    pytest.param(changed(START, message=message(text("a"))), id="a start with content"),
    pytest.param(changed(TEXT_START), id="a block without a start"),
    pytest.param(changed(TEXT_START, index=1), id="a first block that is the second"),
    pytest.param(changed(TEXT_START, index=False), id="an index that is false"),
    pytest.param(changed(TEXT_START, content_block=[]), id="a block that is a list"),
    pytest.param(changed(TEXT_START, content_block={"type": "text"}), id="a text without text"),
    pytest.param(changed(TEXT, index=1), id="a delta of a block that is not open"),
    pytest.param(changed(TEXT, delta={"type": "new_delta"}), id="an unknown delta"),
    pytest.param(changed(TEXT, delta={"type": "text_delta", "text": "a", "new": 1}), id="an unknown field of a delta"),
    pytest.param(changed(TEXT, delta={"type": "text_delta"}), id="a delta without text"),
    pytest.param(changed(TEXT, delta=None), id="no delta"),
    pytest.param(changed(TEXT, delta={"type": "citations_delta"}), id="a citation that is none"),
    pytest.param(changed(TEXT, type="new"), id="an unknown event"),
    pytest.param(changed(TEXT, type="error", error={"type": "overloaded_error"}), id="an error"),
    pytest.param(changed(TEXT_STOP), id="a block without a stop"),
    pytest.param(changed(TOOL_START, content_block=tool({"y": 1})), id="two inputs of a tool"),
    pytest.param(changed(TOOL, delta={"type": "input_json_delta", "partial_json": '{"x":'}), id="an input cut short"),
    pytest.param(changed(TOOL, delta={"type": "input_json_delta", "partial_json": "[1]"}), id="an input that is a list"),
    pytest.param(changed(THOUGHT, delta={"type": "signature_delta", "signature": "x"}), id="two signatures"),
    pytest.param(changed(SIGNED + 1), id="a last block without a stop"),
    pytest.param(changed(END), id="no stop reason"),
    pytest.param(changed(END, delta=None), id="an end without a delta"),
    pytest.param(changed(END, usage=5), id="usage that is a number"),
    pytest.param(changed(STOP), id="no stop"),
]  # fmt: skip


@pytest.mark.parametrize("body", CANNOT_FOLD)
def test_what_cannot_be_folded_is_said_to_be(body: bytes) -> None:
    """A miss rather than a wrong answer."""
    with pytest.raises(CannotTell):
        fold(body)


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param([], id="a list"),
        pytest.param({"type": "error", "error": {}}, id="an error"),
        pytest.param(message(reason=None), id="no stop reason"),
        pytest.param(message() | {"content": None}, id="no content"),
        pytest.param(message("a"), id="a block that is a string"),
        pytest.param(message({"x": 1}), id="a block of no kind"),
        pytest.param(message({"type": "text"}), id="a text without text"),
        pytest.param(message({"type": "thinking"}), id="thoughts without any"),
        pytest.param(message(thinking("a") | {"signature": 5}), id="a signature that is a number"),
        pytest.param(message(tool("x")), id="an input that is a string"),
        pytest.param(message(text("a", citations={"a": 1})), id="citations that are an object"),
        pytest.param(message(usage={"input_tokens": 1}), id="usage without output"),
        pytest.param(message(usage=5), id="usage that is a number"),
    ],
)
def test_what_cannot_be_unfolded_is_said_to_be(whole: Any) -> None:
    """A miss rather than a stream that no API sends."""
    with pytest.raises(CannotTell):
        unfolded(whole)


WORDS = st.text(max_size=8)
INPUTS = st.dictionaries(WORDS, WORDS | st.integers() | st.lists(WORDS, max_size=2), max_size=3)
BLOCKS = (
    WORDS.map(text)
    | st.builds(
        lambda words, times: text(words, citations=[CITATION] * times), WORDS, st.integers(0, 2)
    )
    | INPUTS.map(tool)
    | st.builds(thinking, WORDS, WORDS)
    | st.sampled_from([REDACTED, RESULT, COMPACTION])
)
CUT = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
PING = {"type": "ping"}


@given(st.lists(BLOCKS, max_size=4), st.data())
def test_how_a_stream_is_cut_into_deltas_changes_nothing(
    blocks: list[Any], data: st.DataObject
) -> None:
    """Text, thoughts and inputs in any pieces, with pings between them."""
    whole = message(*blocks)
    told: list[Any] = []
    for event in unfolded(whole):
        field = CUT.get(event.get("delta", {}).get("type"))
        if field is None:
            told.append(event)
            continue
        words = event["delta"][field]
        cut = data.draw(st.integers(0, len(words)))
        told += [
            {**event, "delta": {**event["delta"], field: half}}
            for half in (words[:cut], words[cut:])
        ]
        told.append(PING)
    assert json.loads(fold(named(told))) == whole
