"""How recorded answers ended, in both forms and every dialect; what is not known to be whole is none."""

from __future__ import annotations

import pytest

from extproc.answers import Form
from extproc.cache.ending_shapes import Ending, How
from extproc.cache.endings import read
from tests.cache.answers import (
    chat,
    chunks,
    delta,
    encode,
    events,
    message,
    response,
    streamed,
    told,
)

COMPLETE, LENGTH, FILTERED, REFUSED = (
    Ending(how) for how in (How.COMPLETE, How.LENGTH, How.FILTERED, How.REFUSED)
)
TOOLS = Ending(How.COMPLETE, tools=True)
HOSTED = Ending(How.COMPLETE, hosted=True)


STOPPED = (delta(role="assistant"), delta(content="x"), delta("stop"))


@pytest.mark.parametrize(
    ("endpoint", "form", "body", "ending"),
    [
        # What is not known to be whole.
        pytest.param("chat", "json", b"", None, id="nothing"),
        pytest.param("chat", "json", chat("stop")[:-1], None, id="a document that was cut"),
        pytest.param("chat", "json", b"\x1f\x8b" + chat("stop"), None, id="a document that was compressed"),
        pytest.param("chat", "json", encode({"error": {"message": "m"}}), None, id="an error with status 200"),
        pytest.param("chat", "json", chat("stop")[:-1] + b',"error":{"code":1}}', None, id="an answer with an error"),
        pytest.param("chat", "json", chat(None), None, id="a chat without an end"),
        pytest.param("chat", "json", chat("of_tomorrow"), None, id="an end that is not known"),
        pytest.param("chat", "json", encode({"choices": [{"finish_reason": "stop"}] * 2}), None, id="two choices"),
        pytest.param("chat", "json", b'{"choices":' + b"[" * 100_000, None, id="100,000 levels"),
        pytest.param("chat", "sse", b"", None, id="a stream of nothing"),
        pytest.param("chat", "sse", b"data: [DONE]\n\n", None, id="a stream of only its end"),
        pytest.param("chat", "sse", chunks(*STOPPED, end=""), None, id="a stream without its last event"),
        pytest.param("chat", "sse", chunks(*STOPPED, end="data: [DON"), None, id="a stream that was cut in its last event"),
        pytest.param("chat", "sse", chunks(*STOPPED[:2]), None, id="a stream that no choice ended"),
        pytest.param("chat", "sse", chunks(*STOPPED[:2], {"error": {"message": "m"}}), None, id="an error in the stream"),
        pytest.param("chat", "sse", chunks(*STOPPED, {"error": {"message": "m"}}), None, id="an error after the end"),
        pytest.param("chat", "sse", chunks(*STOPPED, delta("stop", index=1)), None, id="a second choice in the stream"),
        pytest.param("chat", "sse", chunks(*STOPPED)[:-2] + b"\ndata: {\n\n", None, id="more after the last event"),
        pytest.param("messages", "json", message(None, "text"), None, id="a message without an end"),
        pytest.param("messages", "json", message("pause_turn", "text"), None, id="a turn that goes on"),
        pytest.param("messages", "json", message("model_context_window_exceeded", "text"), None, id="a message that ran out of context"),
        pytest.param("messages", "json", encode({"type": "error", "stop_reason": "end_turn", "content": []}), None, id="an error in place of a message"),
        pytest.param("messages", "sse", told("end_turn", "text", end="ping"), None, id="a message that was not stopped"),
        pytest.param("messages", "sse", told("end_turn", "text", end="error"), None, id="a message that failed at its end"),
        pytest.param("messages", "sse", told(None, "text"), None, id="a streamed message without an end"),
        pytest.param("messages", "sse", events(("error", {})) + told("end_turn", "text"), None, id="an error before a message"),
        pytest.param("responses", "json", encode(response("in_progress", "message")), None, id="a response in progress"),
        pytest.param("responses", "json", encode(response("failed")), None, id="a response that failed"),
        pytest.param("responses", "json", encode(response("incomplete", "message")), None, id="incomplete for no reason"),
        pytest.param("responses", "json", encode(response("incomplete", reason="steered")), None, id="incomplete for another reason"),
        pytest.param("responses", "sse", streamed("response.failed", response("failed")), None, id="a streamed response that failed"),
        pytest.param("responses", "sse", streamed("response.output_item.done", response("completed")), None, id="a response without its last event"),
        pytest.param("responses", "sse", b"", None, id="a streamed response of nothing"),
        pytest.param("embeddings", "json", encode({"object": "list", "data": []}), None, id="no vectors"),
        pytest.param("embeddings", "json", encode({"object": "list", "data": [{"index": 0}]}), None, id="a vector that is missing"),
        pytest.param("embeddings", "sse", b"data: [DONE]\n\n", None, id="embeddings do not stream"),
        pytest.param("count_tokens", "json", b'{"input_tokens":3}', None, id="an endpoint that is not kept"),
        # Stopped by somebody.
        pytest.param("chat", "json", chat("content_filter"), FILTERED, id="a filter"),
        pytest.param("chat", "sse", chunks(*STOPPED[:2], delta("content_filter")), FILTERED, id="a filter in mid-stream"),
        pytest.param("chat", "json", chat("stop", refusal="No."), REFUSED, id="a refusal"),
        pytest.param("chat", "sse", chunks(delta(refusal="No"), delta(refusal="."), delta("stop")), REFUSED, id="a streamed refusal"),
        pytest.param("messages", "json", message("refusal", "text"), REFUSED, id="a message that refuses"),
        pytest.param("messages", "sse", told("refusal", "text"), REFUSED, id="a streamed message that refuses"),
        pytest.param("responses", "json", encode(response("completed", "message", parts=("refusal",))), REFUSED, id="a response that refuses"),
        pytest.param("responses", "json", encode(response("incomplete", "message", reason="content_filter")), FILTERED, id="a response that was filtered"),
        # At a bound.
        pytest.param("chat", "json", chat("length"), LENGTH, id="a bound"),
        pytest.param("chat", "sse", chunks(*STOPPED[:2], delta("length")), LENGTH, id="a bound in the stream"),
        pytest.param("messages", "json", message("max_tokens", "text"), LENGTH, id="a message at its bound"),
        pytest.param("responses", "sse", streamed("response.incomplete", response("incomplete", "message", reason="max_output_tokens")), LENGTH, id="a response at its bound"),
        # With calls of tools.
        pytest.param("chat", "json", chat("tool_calls", tool_calls=[{"id": "c"}]), TOOLS, id="tool calls"),
        pytest.param("chat", "json", chat("stop", tool_calls=[{"id": "c"}]), TOOLS, id="a call that was forced"),
        pytest.param("chat", "json", chat("function_call", function_call={"name": "f"}), TOOLS, id="a function call of old"),
        pytest.param("chat", "sse", chunks(delta(tool_calls=[{"index": 0}]), delta("stop")), TOOLS, id="streamed tool calls"),
        pytest.param("chat", "json", chat("length", tool_calls=[{"id": "c"}]), Ending(How.LENGTH, tools=True), id="a call that was cut"),
        pytest.param("messages", "json", message("tool_use", "text", "tool_use"), TOOLS, id="a message that calls"),
        pytest.param("messages", "sse", told("tool_use", "tool_use"), TOOLS, id="a streamed message that calls"),
        pytest.param("messages", "json", message("end_turn", "server_tool_use", "web_search_tool_result", "text"), HOSTED, id="a search by the provider"),
        pytest.param("messages", "sse", told("end_turn", "of_tomorrow"), HOSTED, id="a block that is not known"),
        pytest.param("responses", "json", encode(response("completed", "function_call")), TOOLS, id="a response that calls"),
        pytest.param("responses", "json", encode(response("completed", "web_search_call", "message")), HOSTED, id="a response with a search"),
        # Complete.
        pytest.param("chat", "json", chat("stop"), COMPLETE, id="a chat"),
        pytest.param("chat", "json", chat("stop", tool_calls=[], refusal=None, function_call=None), COMPLETE, id="fields that say nothing"),
        pytest.param("chat", "json", chat("stop")[:-1] + b',"error":null}', COMPLETE, id="no error"),
        pytest.param("chat", "sse", chunks(*STOPPED), COMPLETE, id="a stream"),
        pytest.param("chat", "sse", chunks(*STOPPED, {"choices": [], "usage": {"total_tokens": 3}}), COMPLETE, id="a stream with usage"),
        pytest.param("chat", "sse", chunks(*STOPPED, gap="\r\n\r\n"), COMPLETE, id="a stream with CRLF"),
        pytest.param("chat", "sse", b": hello\n\n" + chunks(*STOPPED), COMPLETE, id="a stream with a comment"),
        pytest.param("chat", "sse", chunks(*STOPPED, end="data: [DONE]"), COMPLETE, id="a stream without its last line end"),
        pytest.param("chat", "sse", chunks(*STOPPED).replace(b'{"choices":', b'{"choices":\ndata: '), COMPLETE, id="events of several lines"),
        pytest.param("chat", "sse", chunks(*STOPPED).replace(b"data: ", b"data:"), COMPLETE, id="no space after the colon"),
        pytest.param("completions", "json", encode({"choices": [{"index": 0, "text": "x", "finish_reason": "stop", "logprobs": None}]}), COMPLETE, id="a completion"),
        pytest.param("completions", "sse", chunks({"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]}), COMPLETE, id="a streamed completion"),
        pytest.param("messages", "json", message("end_turn", "thinking", "redacted_thinking", "text"), COMPLETE, id="a message"),
        pytest.param("messages", "json", message("stop_sequence", "text"), COMPLETE, id="a message at a stop sequence"),
        pytest.param("messages", "sse", told("end_turn", "text"), COMPLETE, id="a streamed message"),
        pytest.param("responses", "json", encode(response("completed", "reasoning", "message")), COMPLETE, id="a response"),
        pytest.param("responses", "sse", streamed("response.completed", response("completed", "message")), COMPLETE, id="a streamed response"),
        pytest.param("responses", "sse", streamed("response.completed", response("completed", "message")) + b"data: [DONE]\n\n", COMPLETE, id="a streamed response of another server"),
        pytest.param("embeddings", "json", encode({"data": [{"index": 0, "embedding": [0.1]}]}), COMPLETE, id="vectors"),
        pytest.param("embeddings", "json", encode({"data": [{"index": 0, "embedding": "AACAPw=="}]}), COMPLETE, id="encoded vectors"),
    ],
)  # fmt: skip
def test_how_an_answer_ended(endpoint: str, form: Form, body: bytes, ending: Ending | None) -> None:
    assert read(endpoint, form, body) == ending


WHOLE = [("chat", chunks(*STOPPED)), ("messages", told("end_turn", "text")), ("responses", streamed("response.completed", response("completed", "message")))]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "body"), WHOLE)
def test_a_stream_cut_anywhere_before_its_end_has_none(endpoint: str, body: bytes) -> None:
    whole = body.rstrip(b"\n")
    assert read(endpoint, "sse", body) == read(endpoint, "sse", whole) == COMPLETE
    assert not [cut for cut in range(len(whole)) if read(endpoint, "sse", body[:cut]) is not None]
