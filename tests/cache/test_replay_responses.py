"""Answers of the Responses API in the other form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import omit
from openai._models import construct_type
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent

from extproc.cache.recorded import CannotTell
from extproc.cache.replay_responses import fold, unfold

from .told import events, named, stream

USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
NOTE = {"type": "url_citation", "start_index": 0, "end_index": 1, "title": "t", "url": "u"}
TOKEN = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}


def part(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": [], **more}


def message(*parts: dict[str, Any], id_: str = "msg_1") -> dict[str, Any]:
    return {
        "id": id_,
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": list(parts),
    }


def called(arguments: str, id_: str = "fc_1") -> dict[str, Any]:
    return {
        "id": id_,
        "type": "function_call",
        "status": "completed",
        "call_id": f"call_{id_}",
        "name": "f",
        "arguments": arguments,
    }


CUSTOM = {
    "id": "ct_1",
    "type": "custom_tool_call",
    "call_id": "call_2",
    "name": "f",
    "input": "x y",
}
REASONING = {
    "id": "rs_1",
    "type": "reasoning",
    "summary": [{"type": "summary_text", "text": "so"}, {"type": "summary_text", "text": ""}],
    "content": [{"type": "reasoning_text", "text": "hm"}],
    "encrypted_content": "gAAA",
}
REFUSAL = {"type": "refusal", "refusal": "no"}


def response(*output: Any, **more: Any) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 7,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": "m",
        "output": list(output),
        "usage": USAGE,
        "metadata": {},
        **more,
    }


def unfolded(whole: Any) -> list[Any]:
    return events(unfold(json.dumps(whole).encode()))


OUTPUTS: list[Any] = [
    pytest.param([], id="no output"),
    pytest.param([message(part("a"))], id="text"),
    pytest.param([message(part(""))], id="no text"),
    pytest.param([message(part("a", annotations=[NOTE, NOTE], logprobs=[TOKEN]))], id="annotations and log probabilities"),
    pytest.param([message(part("a"), REFUSAL)], id="text, then a refusal"),
    pytest.param([REASONING, message(part("a"), id_="msg_2")], id="reasoning, then text"),
    pytest.param([called("{}"), called("", "fc_2"), CUSTOM], id="calls of functions and a custom tool"),
]  # fmt: skip


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_document_comes_back_byte_for_byte(output: list[Any]) -> None:
    """Out of the last event of its stream, numbers and unknown fields as they were written."""
    body = (
        json.dumps(response(*output))
        .encode()
        .replace(b'"created_at": 7', b'"created_at": 7.0e0, "new": [1.0E2, 1234567890123456789012]')
    )
    assert fold(unfold(body)) == body


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_official_client_takes_a_stream_made_of_a_document(output: list[Any]) -> None:
    """Its accumulator accepts every event and ends with the same response."""
    whole = response(*output)
    state: Any = ResponseStreamState(input_tools=omit, text_format=omit)
    last: Any = None
    for number, event in enumerate(unfolded(whole)):
        assert event["sequence_number"] == number
        read: Any = construct_type(type_=ResponseStreamEvent, value=event)
        (last,) = state.handle_event(read)
    assert without_parsed(json.loads(last.response.to_json())) == whole


def without_parsed(value: Any) -> Any:
    """Leave out what the client adds of its own."""
    if isinstance(value, list):
        return [without_parsed(one) for one in value]
    if not isinstance(value, dict):
        return value
    added = {"parsed", "parsed_arguments"}
    return {name: without_parsed(one) for name, one in value.items() if name not in added}


def test_text_streams_as_the_api_does() -> None:
    """Every event of a message, its place in each."""
    whole = response(message(part("a", annotations=[NOTE], logprobs=[TOKEN])))
    started = {**whole, "status": "in_progress", "output": [], "usage": None}
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    (item,) = whole["output"]
    (told,) = item["content"]
    expected = [
        ("created", {"response": started}),
        ("in_progress", {"response": started}),
        (
            "output_item.added",
            {"output_index": 0, "item": {**item, "status": "in_progress", "content": []}},
        ),
        ("content_part.added", {**place, "part": part("")}),
        ("output_text.delta", {**place, "delta": "a", "logprobs": [TOKEN]}),
        ("output_text.annotation.added", {**place, "annotation_index": 0, "annotation": NOTE}),
        ("output_text.done", {**place, "text": "a", "logprobs": [TOKEN]}),
        ("content_part.done", {**place, "part": told}),
        ("output_item.done", {"output_index": 0, "item": item}),
        ("completed", {"response": whole}),
    ]
    assert unfolded(whole) == [
        {"type": f"response.{kind}", "sequence_number": number, **fields}
        for number, (kind, fields) in enumerate(expected)
    ]


@pytest.mark.parametrize(
    ("item", "kinds"),
    [
        pytest.param(called("{}"), ["function_call_arguments.delta", "function_call_arguments.done"], id="a call"),
        pytest.param(called(""), ["function_call_arguments.done"], id="a call without arguments"),
        pytest.param(CUSTOM, ["custom_tool_call_input.delta", "custom_tool_call_input.done"], id="a custom tool"),
        pytest.param(
            message(REFUSAL),
            ["content_part.added", "refusal.delta", "refusal.done", "content_part.done"],
            id="a refusal",
        ),
        pytest.param(
            REASONING,
            [
                "reasoning_summary_part.added",
                "reasoning_summary_text.delta",
                "reasoning_summary_text.done",
                "reasoning_summary_part.done",
                "reasoning_summary_part.added",
                "reasoning_summary_text.done",
                "reasoning_summary_part.done",
                "content_part.added",
                "reasoning_text.delta",
                "reasoning_text.done",
                "content_part.done",
            ],
            id="reasoning",
        ),
    ],
)  # fmt: skip
def test_items_stream_in_their_own_events(item: dict[str, Any], kinds: list[str]) -> None:
    """Between the item's beginning and its end."""
    found = [one["type"].removeprefix("response.") for one in unfolded(response(item))]
    assert found == [
        "created",
        "in_progress",
        "output_item.added",
        *kinds,
        "output_item.done",
        "completed",
    ]


def test_an_incomplete_response_ends_as_one() -> None:
    """With the event of that name, from which it comes back."""
    whole = response(
        message(part("a")), status="incomplete", incomplete_details={"reason": "max_output_tokens"}
    )
    found = unfolded(whole)
    assert found[0]["response"]["incomplete_details"] is None
    assert (found[-1]["type"], found[-1]["response"]) == ("response.incomplete", whole)
    assert json.loads(fold(named(found))) == whole


def test_lines_of_a_document_do_not_end_its_event() -> None:
    """A document over several lines, as OpenAI writes it, is put on one."""
    whole = response(message(part("a\nb")))
    body = json.dumps(whole, indent=2).encode().replace(b"\n", b"\r\n")
    assert events(unfold(body))[-1]["response"] == whole


def last(**more: Any) -> dict[str, Any]:
    return {"type": "response.completed", "response": response(message(part("a")), **more)}


DONE = {"type": "response.output_item.done", "item": message(part("a"))}


def test_the_last_event_counts() -> None:
    """Where the end is told twice, or [DONE] follows."""
    body = named([last(), last(model="n")]) + b"data: [DONE]\n\n"
    assert json.loads(fold(body))["model"] == "n"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(named([DONE]), id="no end"),
        pytest.param(named([last(), DONE]), id="events after the end"),
        pytest.param(named([last(status="failed")]), id="a status that is not the event's"),
        pytest.param(named([{**last(status="failed"), "type": "response.failed"}]), id="a failure"),
        pytest.param(named([{"type": "error", "code": "x"}]), id="an error"),
        pytest.param(named([DONE, last(output=[])]), id="output that the end leaves out"),
        pytest.param(named([DONE, last(output=None)]), id="no list of output"),
        pytest.param(b'data: {"type":"response.completed"}\n\n', id="no response"),
        pytest.param(b"data: [1]\n\n", id="an event that is a list"),
        pytest.param(stream([last()], b"").replace(b"resp_1", b"resp\xff"), id="not UTF-8"),
        pytest.param(b"data: " + b"[" * 100_000 + b"\n\n", id="nested past every stack"),
    ],
)
def test_what_cannot_be_folded_is_said_to_be(body: bytes) -> None:
    """A miss rather than a wrong answer."""
    with pytest.raises(CannotTell):
        fold(body)


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param([], id="a list"),
        pytest.param(response(status="in_progress"), id="not ended"),
        pytest.param(response(error={"code": "x"}), id="an error"),
        pytest.param({**response(), "output": None}, id="no list of output"),
        pytest.param(
            response({"type": "web_search_call", "id": "ws"}), id="a tool of OpenAI's own"
        ),
        pytest.param(response({"id": "x"}), id="an item of no kind"),
        pytest.param(response({**called("{}"), "id": None}), id="an item without an id"),
        pytest.param(response({**called("{}"), "arguments": {}}), id="arguments that are no text"),
        pytest.param(response(message({"type": "new"})), id="an unknown part"),
        pytest.param(response(message({"type": "output_text"})), id="a part without text"),
        pytest.param(response("x"), id="an item that is a string"),
    ],
)
def test_what_cannot_be_unfolded_is_said_to_be(whole: Any) -> None:
    """A miss rather than a stream that no API sends."""
    with pytest.raises(CannotTell):
        unfolded(whole)


TEXT = st.text(max_size=8)
PARTS = st.builds(part, TEXT) | st.builds(lambda text: {**REFUSAL, "refusal": text}, TEXT)
ITEMS = (
    st.lists(PARTS, max_size=3).map(lambda parts: message(*parts))
    | TEXT.map(called)
    | TEXT.map(lambda text: {**CUSTOM, "input": text})
    | st.builds(
        lambda text: {**REASONING, "summary": [{"type": "summary_text", "text": text}]}, TEXT
    )
)


@given(st.lists(ITEMS, max_size=4))
def test_deltas_add_up_to_what_is_done(output: list[Any]) -> None:
    """A caller who adds up the pieces has what the item says in the end."""
    whole = response(*output)
    texts: dict[tuple[Any, ...], str] = {}
    for event in unfolded(whole):
        kind = event["type"].rpartition(".")
        place = (
            kind[0],
            event.get("output_index"),
            event.get("content_index"),
            event.get("summary_index"),
        )
        if kind[2] == "delta":
            texts[place] = texts.get(place, "") + event["delta"]
        elif kind[2] == "done" and "part" not in event and "item" not in event:
            done = [
                event[name] for name in ("text", "refusal", "arguments", "input") if name in event
            ]
            assert done == [texts.get(place, "")]
    assert json.loads(fold(unfold(json.dumps(whole).encode()))) == whole
