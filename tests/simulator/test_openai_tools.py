"""Tools in chat completions, whole and streamed, as the official client reads them."""

import json
from typing import Any

import pytest
from openai import AsyncOpenAI

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "clock"}},
]
HI: Any = [{"role": "user", "content": "hi"}]


async def ask(client: AsyncOpenAI, stream: bool, calls: int | None, choice: Any) -> Any:
    """Return message, finish reason and usage, created whole or accumulated from a stream."""
    headers = {} if calls is None else {"x-sim-tool-calls": str(calls)}
    fields = {"model": "m", "messages": HI, "tools": TOOLS, "tool_choice": choice}
    if not stream:
        answer = await client.chat.completions.create(**fields, extra_headers=headers)
        return answer.choices[0].message, answer.choices[0].finish_reason, answer.usage
    async with client.chat.completions.stream(
        **fields, extra_headers=headers, stream_options={"include_usage": True}
    ) as streamed:
        final = await streamed.get_final_completion()
    return final.choices[0].message, final.choices[0].finish_reason, final.usage


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("choice", "calls", "called", "words"),
    [
        pytest.param("auto", None, [], True, id="auto answers in words"),
        pytest.param("required", None, ["weather"], False, id="required calls one"),
        pytest.param("none", 2, [], True, id="none calls none"),
        pytest.param("auto", 3, ["weather", "clock", "weather"], True, id="parallel calls"),
        pytest.param(
            {"type": "function", "function": {"name": "clock"}},
            None,
            ["clock"],
            False,
            id="a named function",
        ),
    ],
)
async def test_tools(
    *,
    choice: Any,
    calls: int | None,
    called: list[str],
    words: bool,
    stream: bool,
    client: AsyncOpenAI,
    sim,
) -> None:
    """Functions are called as the choice and the behaviour say; the log counts their tokens."""
    message, reason, usage = await ask(client, stream, calls, choice)
    made = message.tool_calls or []
    assert [call.function.name for call in made] == called
    assert len({call.id for call in made}) == len(called)
    for call in made:
        wanted = {"city": 'tok0 "é"\n'} if call.function.name == "weather" else {}
        assert json.loads(call.function.arguments) == wanted
    assert bool(message.content) is words
    assert reason == ("tool_calls" if called else "stop")
    assert sim.requests[0].output_tokens_sent == usage.completion_tokens


async def test_cached_tokens(client: AsyncOpenAI) -> None:
    """Cached tokens are part of the prompt's, as OpenAI counts them."""
    answer = await client.chat.completions.create(
        model="m", messages=HI, extra_headers={"x-sim-cache-read-tokens": "3"}
    )
    assert answer.usage.prompt_tokens == 4
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
