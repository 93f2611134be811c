"""Messages, whole and streamed: what the official client reads and what the truth log says."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from anthropic import AsyncAnthropic

from extproc.simulator.server import Simulator, start

TOOLS: Any = [
    {
        "name": "weather",
        "input_schema": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "unit": {"enum": ["C", "F"]},
                "place": {"type": "object", "properties": {"lat": {"type": "number"}}},
            },
        },
    },
    {"name": "clock", "input_schema": {"type": "object"}},
]
ARGUMENTS = {"city": 'tok0 "é"\n', "days": 7, "unit": "C", "place": {"lat": 1.5}}
GOOD: Any = {"model": "m", "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    simulator = await start("127.0.0.1", 0, name="test", dialect="anthropic")
    yield simulator
    await simulator.close()


@pytest.fixture
async def client(sim: Simulator) -> AsyncIterator[AsyncAnthropic]:
    base_url = f"http://127.0.0.1:{sim.port}"
    async with AsyncAnthropic(base_url=base_url, api_key="sk-test", max_retries=0) as made:
        yield made


async def ask(client: AsyncAnthropic, stream: bool, sim: dict[str, Any], **fields: Any) -> Any:
    """Return the final message, created whole or accumulated from a stream."""
    headers = {f"x-sim-{name.replace('_', '-')}": str(value) for name, value in sim.items()}
    wanted = {**GOOD, **fields, "extra_headers": headers}
    if not stream:
        return await client.messages.create(**wanted)
    async with client.messages.stream(**wanted) as streamed:
        return await streamed.get_final_message()


both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@both
async def test_words_reason_and_usage(stream: bool, client: AsyncAnthropic, sim) -> None:
    """An answer ends by itself, and its usage is in the truth log."""
    message = await ask(client, stream, {"output_tokens": 3})
    assert [block.text for block in message.content] == ["tok0 tok1 tok2 "]
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (4, 3)
    record = sim.requests[0]
    assert (record.usage_sent["input_tokens"], record.usage_sent["output_tokens"]) == (4, 3)
    assert (record.output_tokens_sent, record.finished, record.stream) == (3, True, stream)


@both
async def test_max_tokens_cuts(stream: bool, client: AsyncAnthropic) -> None:
    """The caller's bound cuts the answer and is the reason."""
    message = await ask(client, stream, {"output_tokens": 9}, max_tokens=2)
    assert message.content[0].text == "tok0 tok1 "
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 2)


@both
async def test_cached_tokens_are_apart_from_input_tokens(
    stream: bool, client: AsyncAnthropic
) -> None:
    """Input, cache reads and cache writes add up to the prompt, as Anthropic counts them."""
    long = [{"role": "user", "content": "x" * 400}]
    behaviour = {"cache_read_tokens": 60, "cache_creation_tokens": 30}
    usage = (await ask(client, stream, behaviour, messages=long)).usage
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (60, 30)
    assert usage.input_tokens == 103 - 90


@both
@pytest.mark.parametrize(
    ("choice", "behaviour", "called", "words"),
    [
        pytest.param({"type": "auto"}, {}, [], True, id="auto answers in words"),
        pytest.param({"type": "any"}, {}, ["weather"], False, id="any calls one"),
        pytest.param({"type": "tool", "name": "clock"}, {}, ["clock"], False, id="a named tool"),
        pytest.param({"type": "none"}, {"tool_calls": 2}, [], True, id="none calls none"),
        pytest.param(
            {"type": "auto"},
            {"tool_calls": 3},
            ["weather", "clock", "weather"],
            True,
            id="parallel calls in turn",
        ),
    ],
)
async def test_tools(
    *,
    choice: Any,
    behaviour: dict[str, Any],
    called: list[str],
    words: bool,
    stream: bool,
    client: AsyncAnthropic,
    sim,
) -> None:
    """Tools are called as the choice and the behaviour say, with arguments of the schema."""
    message = await ask(client, stream, behaviour, tools=TOOLS, tool_choice=choice)
    calls = [block for block in message.content if block.type == "tool_use"]
    assert [call.name for call in calls] == called
    assert len({call.id for call in calls}) == len(called)
    assert all(call.input == (ARGUMENTS if call.name == "weather" else {}) for call in calls)
    assert any(block.type == "text" for block in message.content) is words
    assert message.stop_reason == ("tool_use" if called else "end_turn")
    assert sim.requests[0].output_tokens_sent == message.usage.output_tokens


@both
async def test_thinking_comes_first_and_is_signed(stream: bool, client: AsyncAnthropic) -> None:
    """Asked to think, the answer begins with a signed thinking block."""
    thinking = {"type": "enabled", "budget_tokens": 1024}
    message = await ask(client, stream, {"output_tokens": 2}, max_tokens=2048, thinking=thinking)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].signature == "c2ltdWxhdGVk"
    assert message.usage.output_tokens == 4 + 2


async def test_the_order_of_events(send) -> None:
    """Input tokens stand in message_start alone, output tokens in message_delta."""
    answer = await send(
        "POST",
        "/v1/messages",
        {**GOOD, "stream": True},
        {"anthropic-version": "2023-06-01", "x-sim-output-tokens": "2"},
    )
    names = [event.split("\n")[0] for event in answer.body.decode().split("\n\n") if event]
    assert names == [
        "event: message_start",
        "event: content_block_start",
        "event: ping",
        "event: content_block_delta",
        "event: content_block_delta",
        "event: content_block_stop",
        "event: message_delta",
        "event: message_stop",
    ]
    assert '"usage":{"output_tokens":2}' in answer.body.decode()


@both
@pytest.mark.parametrize(
    ("usage", "deltas", "tokens"),
    [("missing", 1, None), ("twice", 2, 16), ("huge", 1, 10**15)],
)
async def test_untruthful_usage(
    *, usage: str, deltas: int, tokens: int | None, stream: bool, send, sim
) -> None:
    """Usage can be missing, sent twice or absurd."""
    headers = {"anthropic-version": "2023-06-01", "x-sim-usage": usage}
    answer = await send("POST", "/v1/messages", {**GOOD, "stream": stream}, headers)
    text = answer.body.decode()
    assert ('"usage"' in text) is (usage != "missing")
    if stream:
        assert text.count("event: message_delta") == deltas
    sent = sim.requests[0].usage_sent
    assert (sent and sent["output_tokens"]) == tokens


@pytest.mark.parametrize(
    "behaviour",
    [{"abort_after_chunks": 3}, {"framing": "byte"}, {"framing": "random", "newline": "crlf"}],
    ids=["cut", "byte by byte", "random cuts and CRLF"],
)
async def test_the_other_behaviours_hold(behaviour: dict[str, Any], send, sim) -> None:
    """Cuts and framings are the same as in the other dialect."""
    headers = {f"x-sim-{name.replace('_', '-')}": str(v) for name, v in behaviour.items()}
    headers |= {"anthropic-version": "2023-06-01"}
    answer = await send("POST", "/v1/messages", {**GOOD, "stream": True}, headers)
    cut = "abort_after_chunks" in behaviour
    assert answer.complete is not cut
    assert sim.requests[0].broke == ("abort" if cut else None)
    assert ("message_stop" in answer.body.decode()) is not cut
