"""Chat completions in the other form: what adds up, what comes apart, and what must not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.cache.recorded import CannotTell
from extproc.cache.replay_chat import fold, unfold

from .told import END, STAMP, USAGE, chunk, events, says, stream


def call(index: Any, arguments: str | None = None, **more: Any) -> dict[str, Any]:
    function = {
        k: v
        for k, v in (("name", more.pop("name", None)), ("arguments", arguments))
        if v is not None
    }
    return {"index": index, "function": function, **more}


def calls(*made: dict[str, Any]) -> dict[str, Any]:
    return says({"tool_calls": list(made)})


def message(content: str | None = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "refusal": None, "annotations": [], **more}


def made(id_: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


A_TOKEN = {"token": "a", "logprob": -0.25, "bytes": [97], "top_logprobs": []}
B_TOKEN = {"token": "b", "logprob": -1e-05, "bytes": None, "top_logprobs": [{"token": "x"}]}

MESSAGES: list[Any] = [
    pytest.param([says({"role": "assistant", "content": ""})], message(""), id="nothing said"),
    pytest.param([says({"role": "assistant", "content": None})], message(), id="no text at all"),
    pytest.param(
        [says({"content": "a"}), says({"content": "é"})], message("aé"), id="text in pieces"
    ),
    pytest.param(
        [says({"content": ""}), says({"refusal": "I "}), says({"refusal": "won't"})],
        message(refusal="I won't"),
        id="a refusal",
    ),
    pytest.param(
        [
            says({"reasoning_content": "h"}),
            says({"reasoning_content": "m"}),
            says({"content": "a"}),
        ],
        message("a", reasoning_content="hm"),
        id="thoughts before text",
    ),
    pytest.param(
        [says({"content": "a", "reasoning": None, "annotations": [], "audio": None})],
        message("a"),
        id="empty fields say nothing",
    ),
    pytest.param(
        [
            says({"role": "assistant", "content": ""}),
            calls(call(0, "", id="a", type="function", name="f")),
            calls(call(0, '{"x"'), call(1, "", id="b", type="function", name="g")),
            calls(call(1, "{}"), call(0, ":1}")),
        ],
        message(tool_calls=[made("a", "f", '{"x":1}'), made("b", "g", "{}")]),
        id="parallel calls in turns",
    ),
    pytest.param(
        [
            calls(call(1, "[]", id="b", name="g")),
            calls(call(0, "{", id="a", name="f")),
            calls(call(0, "}", id="a", name="f", type="function")),
            calls(call(1, None, id="", name="")),
        ],
        message(tool_calls=[made("a", "f", "{}"), made("b", "g", "[]")]),
        id="calls out of order, names repeated or repeated as nothing",
    ),
    pytest.param(
        [
            says({"content": "a"}),
            calls(call(0, "{}", id="a", name="f", extra_content={"sig": "s"})),
        ],
        message("a", tool_calls=[{**made("a", "f", "{}"), "extra_content": {"sig": "s"}}]),
        id="text, and a call with a field no page names",
    ),
]


@pytest.mark.parametrize(("chunks", "expected"), MESSAGES)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_deltas_add_up_to_a_message(chunks: list[Any], expected: Any, newline: bytes) -> None:
    """Whatever the pieces, and whatever ends the lines."""
    body = stream([*chunks, END, chunk(usage=USAGE)]).replace(b"\n", newline)
    choice = {"index": 0, "message": expected, "logprobs": None, "finish_reason": "stop"}
    whole = {**STAMP, "object": "chat.completion", "choices": [choice], "usage": USAGE}
    assert json.loads(fold(body)) == whole


def test_log_probabilities_add_up() -> None:
    """Token by token, and of refusals too."""
    pieces = [{"content": [A_TOKEN], "refusal": None}, None, {"content": [B_TOKEN, A_TOKEN]}]
    chunks = [chunk({"index": 0, "delta": {"content": "a"}, "logprobs": one}) for one in pieces]
    (choice,) = json.loads(fold(stream([*chunks, END])))["choices"]
    assert choice["logprobs"] == {"content": [A_TOKEN, B_TOKEN, A_TOKEN], "refusal": None}


def test_fields_of_a_choice_are_kept() -> None:
    """Those that no page names, where the chunks do not contradict each other."""
    one = chunk({"index": 0, "delta": {"content": "a"}, "stop_reason": None, "filter": {"a": 1}})
    end = chunk({"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "###"})
    (choice,) = json.loads(fold(stream([one, end])))["choices"]
    assert (choice["stop_reason"], choice["filter"]) == ("###", {"a": 1})


A = says({"content": "a"})
CANNOT_FOLD: list[Any] = [
    pytest.param(stream([says({"content": 5}), END]), id="content that is no text"),
    pytest.param(stream([says({"content": ["a"]}), END]), id="content in parts"),
    pytest.param(stream([says({"audio": {"data": "x"}}), END]), id="audio"),
    pytest.param(stream([says({"annotations": [{"type": "url_citation"}]}), END]), id="annotations"),
    pytest.param(stream([says({"function_call": {"name": "f"}}), END]), id="the call of old"),
    pytest.param(stream([says({"new": False}), END]), id="an unknown delta"),
    pytest.param(stream([says({"role": "user"}), says({"role": "x"}), END]), id="two roles"),
    pytest.param(stream([chunk({"index": 0, "finish_reason": "stop"})]), id="no delta"),
    pytest.param(stream([says([]), END]), id="a delta that is a list"),
    pytest.param(stream([calls({"id": "a", "function": {"name": "f"}}), END]), id="a call without an index"),
    pytest.param(stream([calls(call(0, "{}", name="f")), END]), id="a call without an id"),
    pytest.param(stream([calls(call(0, "{}", id="a")), END]), id="a call without a name"),
    pytest.param(stream([calls(call(0, id="a", name="f"), call(0, id="b", name="f")), END]), id="two calls in one"),
    pytest.param(stream([calls(call(0, id="a", name="f", type="custom")), END]), id="a custom tool"),
    pytest.param(stream([calls({**call(0, id="a", name="f"), "function": {"name": "f", "x": 1}}), END]), id="a function's unknown field"),
    pytest.param(stream([says({"tool_calls": {"a": 1}}), END]), id="calls that are an object"),
    pytest.param(stream([chunk({"index": 0, "delta": {}, "logprobs": {"x": []}}), END]), id="unknown log probabilities"),
    pytest.param(stream([chunk({"index": 0, "delta": {}, "logprobs": {"content": 5}}), END]), id="log probabilities that are none"),
]  # fmt: skip


@pytest.mark.parametrize("body", CANNOT_FOLD)
def test_what_cannot_be_folded_is_said_to_be(body: bytes) -> None:
    """A miss rather than a wrong answer."""
    with pytest.raises(CannotTell):
        fold(body)


def document(
    *messages: dict[str, Any], logprobs: Any = None, end: Any = "stop", **more: Any
) -> dict[str, Any]:
    choices = [
        {"index": number, "message": one, "logprobs": logprobs, "finish_reason": end}
        for number, one in enumerate(messages)
    ]
    return {**STAMP, "object": "chat.completion", "choices": choices, **more}


def unfolded(whole: Any) -> list[Any]:
    return events(unfold(json.dumps(whole).encode()))


@pytest.mark.parametrize("told", [False, True], ids=["no usage", "usage"])
def test_a_document_streams_as_the_api_does(told: bool) -> None:
    """Role, text, end, usage where the document tells it, and [DONE]."""
    usage = {"usage": USAGE} if told else {}
    more = {"service_tier": "default", "system_fingerprint": "fp"}
    whole = document(message("Hi."), **more, x=[1], **usage)
    same = {**STAMP, "object": "chat.completion.chunk", **more}
    none: dict[str, Any] = {"usage": None} if told else {}
    nothing = {"logprobs": None, "finish_reason": None}
    role = {"index": 0, "delta": {"role": "assistant", "content": "", "refusal": None}, **nothing}
    text = {"index": 0, "delta": {"content": "Hi."}, **nothing}
    end = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert unfolded(whole) == [
        {**same, "choices": [role], "x": [1], **none},
        {**same, "choices": [text], **none},
        {**same, "choices": [end], **none},
        *([{**same, "choices": [], **usage}] if told else []),
        "[DONE]",
    ]


def test_tool_calls_stream_as_a_name_and_its_arguments() -> None:
    """Two chunks each; the index is the place in the list."""
    whole = document(
        message(tool_calls=[made("a", "f", "{}"), made("b", "g", "")]), end="tool_calls"
    )
    deltas = [one["choices"][0]["delta"] for one in unfolded(whole)[:-1]]
    assert deltas == [
        {"role": "assistant", "content": None, "refusal": None},
        {"tool_calls": [{"index": 0, **made("a", "f", "")}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {"tool_calls": [{"index": 1, **made("b", "g", "")}]},
        {},
    ]


@pytest.mark.parametrize(
    ("spoken", "place"),
    [
        pytest.param(message("ab"), 1, id="with the text"),
        pytest.param(message(refusal="no"), 1, id="with the refusal"),
        pytest.param(message("a", reasoning="hm"), 2, id="not with the thoughts"),
        pytest.param(message(), 1, id="with the end where nothing is said"),
    ],
)
def test_log_probabilities_are_told_once(spoken: dict[str, Any], place: int) -> None:
    """All of them, on one chunk."""
    logprobs = {"content": [A_TOKEN, B_TOKEN], "refusal": None}
    told = [
        one["choices"][0]["logprobs"] for one in unfolded(document(spoken, logprobs=logprobs))[:-1]
    ]
    assert [number for number, one in enumerate(told) if one is not None] == [place]
    assert told[place] == logprobs


CUSTOM = {"id": "a", "type": "custom", "custom": {"name": "f", "input": ""}}
CANNOT_UNFOLD: list[Any] = [
    pytest.param([], id="a list"),
    pytest.param({}, id="an empty object"),
    pytest.param(document(), id="no choices"),
    pytest.param({**document(message("a")), "error": {"message": "x"}}, id="an error"),
    pytest.param(document(message("a"), end=None), id="no finish reason"),
    pytest.param(document(message("a"), usage=5), id="usage that is a number"),
    pytest.param({"choices": [{"index": 0, "finish_reason": "stop"}]}, id="no message"),
    pytest.param({"choices": [{"index": "0", "finish_reason": "stop", "message": {}}]}, id="no index"),
    pytest.param({"choices": document(message("a"))["choices"] * 2}, id="an index twice"),
    pytest.param(document(message("a", audio={"id": "x"})), id="audio"),
    pytest.param(document(message("a") | {"annotations": [{}]}), id="annotations"),
    pytest.param(document(message("a", new=0)), id="an unknown field of a message"),
    pytest.param(document(message("a") | {"content": ["a"]}), id="content in parts"),
    pytest.param(document(message(tool_calls=[CUSTOM])), id="a custom tool"),
    pytest.param(document(message(tool_calls=[{**made("a", "f", ""), "function": {"name": "f"}}])), id="no arguments"),
    pytest.param(document(message(tool_calls=[made("a", "f", 5)])), id="arguments that are no text"),  # type: ignore[arg-type]
    pytest.param(document(message(tool_calls={"a": 1})), id="calls that are an object"),
]  # fmt: skip


@pytest.mark.parametrize("whole", CANNOT_UNFOLD)
def test_what_cannot_be_unfolded_is_said_to_be(whole: Any) -> None:
    """A miss rather than a stream that no API sends."""
    with pytest.raises(CannotTell):
        unfolded(whole)


TEXT = st.text(max_size=12)
NAME = st.text(min_size=1, max_size=6)
TOKENS = st.lists(st.sampled_from([A_TOKEN, B_TOKEN]), max_size=3)
LOGPROBS = st.none() | st.fixed_dictionaries(
    {"content": st.none() | TOKENS, "refusal": st.none() | TOKENS}
)
EXTRA = (
    st.none()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | st.lists(TEXT)
)
CALLS = st.lists(st.builds(made, NAME, NAME, TEXT), min_size=1, max_size=3)
SPOKEN = (
    TEXT.map(message)
    | st.builds(lambda text, thought: message(text, reasoning_content=thought), TEXT, NAME)
    | st.builds(lambda text: message(refusal=text), NAME)
    | st.builds(lambda text, made: message(text, tool_calls=made), st.none() | NAME, CALLS)
)
DOCUMENTS = st.builds(
    lambda spoken, logprobs, end, usage, more: document(
        *spoken, logprobs=logprobs, end=end, **usage, **more
    ),
    st.lists(SPOKEN, min_size=1, max_size=3),
    LOGPROBS,
    st.sampled_from(["stop", "length", "tool_calls", "content_filter"]),
    st.sampled_from([{"usage": USAGE}, {"usage": {**USAGE, "completion_tokens": 10**15}}]),
    st.dictionaries(
        st.sampled_from(["service_tier", "system_fingerprint", "provider", "x"]), EXTRA
    ),
)


@given(DOCUMENTS)
def test_unfolding_and_folding_again_changes_nothing(whole: dict[str, Any]) -> None:
    """Whatever is said, with every field that is known and some that are not."""
    body = json.dumps(whole, ensure_ascii=False).encode()
    assert json.loads(fold(unfold(body))) == whole


@given(DOCUMENTS, st.data())
def test_how_a_stream_is_cut_into_chunks_changes_nothing(
    whole: dict[str, Any], data: st.DataObject
) -> None:
    """Texts and arguments in any pieces, choices in any turns."""
    *chunks, done = events(unfold(json.dumps(whole).encode()))
    assert done == "[DONE]"
    recut = [piece for one in chunks for piece in pieces_of(one, data)]
    turns = data.draw(st.permutations(range(len(whole["choices"]))))
    order = {index: turn for turn, index in enumerate(turns)}
    recut.sort(key=lambda one: order[one["choices"][0]["index"]] if one["choices"] else len(order))
    assert json.loads(fold(stream(recut))) == whole


def pieces_of(one: dict[str, Any], data: st.DataObject) -> list[dict[str, Any]]:
    """Return the chunk with its text cut in two, where it is of text and nothing else."""
    if not one["choices"] or one["choices"][0]["logprobs"]:
        return [one]
    delta = one["choices"][0]["delta"]
    texts = [name for name in ("content", "refusal", "reasoning_content") if delta.get(name)]
    if len(delta) == 1 and texts:
        cut = data.draw(st.integers(0, len(delta[texts[0]])))
        halves = [{texts[0]: delta[texts[0]][:cut]}, {texts[0]: delta[texts[0]][cut:]}]
    elif "tool_calls" in delta and delta["tool_calls"][0]["function"].get("arguments"):
        (made_,) = delta["tool_calls"]
        text = made_["function"]["arguments"]
        cut = data.draw(st.integers(0, len(text)))
        halves = [
            {"tool_calls": [{"index": made_["index"], "function": {"arguments": half}}]}
            for half in (text[:cut], text[cut:])
        ]
    else:
        return [one]
    return [{**one, "choices": [{**one["choices"][0], "delta": half}]} for half in halves]
