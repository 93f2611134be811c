"""Chat and legacy completions, read by the official client."""

import json

import pytest
from openai import AsyncOpenAI

MESSAGES = [
    {"role": "system", "content": "abcd"},
    {"role": "user", "content": [{"type": "text", "text": "abcde"}, {"type": "text", "text": "f"}]},
    {"role": "assistant", "content": None},
]
PROMPT_TOKENS = 1 + 2 + 1 + 3
SIX = {"x-sim-output-tokens": "6"}


@pytest.mark.parametrize(
    ("options", "tokens", "reason"),
    [
        pytest.param({}, 6, "stop", id="no limit"),
        pytest.param({"max_tokens": 4}, 4, "length", id="max_tokens cuts"),
        pytest.param({"max_completion_tokens": 3}, 3, "length", id="max_completion_tokens cuts"),
        pytest.param(
            {"max_completion_tokens": 5, "max_tokens": 2}, 5, "length", id="the newer name wins"
        ),
        pytest.param({"max_tokens": 6}, 6, "stop", id="a limit just reached"),
        pytest.param({"n": 3}, 6, "stop", id="three choices"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_chat(
    *,
    options: dict[str, int],
    tokens: int,
    reason: str,
    streamed: bool,
    client: AsyncOpenAI,
    sim,
) -> None:
    """Whole or streamed, an answer has the same words, reasons and usage, and the log agrees."""
    choices = options.get("n", 1)
    words = "".join(f"tok{index} " for index in range(tokens))
    request = {"model": 'a "model"', "messages": MESSAGES, "extra_headers": SIX, **options}
    if streamed:
        texts, reasons = [""] * choices, [""] * choices
        usages = []
        stream = await client.chat.completions.create(
            stream=True, stream_options={"include_usage": True}, **request
        )
        async for chunk in stream:
            assert chunk.model == 'a "model"'
            usages += [chunk.usage] if chunk.usage else []
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        (usage,) = usages
    else:
        answer = await client.chat.completions.create(**request)
        assert answer.model == 'a "model"'
        texts = [choice.message.content for choice in answer.choices]
        reasons = [choice.finish_reason for choice in answer.choices]
        usage = answer.usage
    assert texts == [words] * choices
    assert reasons == [reason] * choices
    assert usage.prompt_tokens == PROMPT_TOKENS
    assert usage.completion_tokens == tokens * choices
    assert usage.total_tokens == PROMPT_TOKENS + tokens * choices
    assert usage.prompt_tokens_details.cached_tokens == 0
    record = sim.requests[0]
    assert record.usage_sent == usage.model_dump(exclude_unset=True)
    assert (record.finished, record.broke, record.status) == (True, None, 200)
    assert (record.stream, record.include_usage) == (streamed, streamed)
    assert (record.prompt_tokens, record.output_tokens_sent) == (PROMPT_TOKENS, tokens * choices)


async def test_the_chunks_of_a_stream(stream) -> None:
    """Role, content, reason, usage, end: in this order, with usage null until it comes."""
    answer = await stream({"x-sim-output-tokens": "5", "x-sim-tokens-per-chunk": "2"})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.events[-1] == "[DONE]"
    role, *content, reason, usage = map(json.loads, answer.events[:-1])
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    deltas = [chunk["choices"][0]["delta"]["content"] for chunk in content]
    assert deltas == ["tok0 tok1 ", "tok2 tok3 ", "tok4 "]
    assert reason["choices"][0]["finish_reason"] == "stop"
    assert [chunk["usage"] for chunk in (role, *content, reason)] == [None] * 5
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    assert len({chunk["id"] for chunk in (role, *content, reason, usage)}) == 1


async def test_a_stream_nobody_asked_usage_of_has_none(stream, sim) -> None:
    """Without include_usage no chunk has the key."""
    answer = await stream(stream_options=None)
    assert b"usage" not in answer.body
    assert sim.requests[0].usage_sent is None
    assert sim.requests[0].include_usage is False


@pytest.mark.parametrize(
    ("usage", "count", "tokens"),
    [("normal", 1, 16), ("missing", 0, None), ("twice", 2, 16), ("huge", 1, 10**15)],
)
async def test_usage_behaviours_streamed(
    usage: str, count: int, tokens: int | None, stream, sim
) -> None:
    """A stream's usage can be missing, repeated or absurd; the log says what was sent."""
    answer = await stream({"x-sim-usage": usage})
    chunks = [json.loads(event) for event in answer.events[:-1]]
    sent = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert [one["completion_tokens"] for one in sent] == [tokens] * count
    assert sim.requests[0].usage_sent == (sent[0] if sent else None)


@pytest.mark.parametrize(("usage", "tokens"), [("missing", None), ("huge", 10**15), ("twice", 16)])
async def test_usage_behaviours_whole(
    usage: str, tokens: int | None, client: AsyncOpenAI, sim
) -> None:
    """A whole answer's usage can be missing or absurd."""
    answer = await client.chat.completions.create(
        model="m", messages=MESSAGES, extra_headers={"x-sim-usage": usage}
    )
    assert (answer.usage and answer.usage.completion_tokens) == tokens
    assert (sim.requests[0].usage_sent is None) == (usage == "missing")


async def test_no_tokens_at_all(stream) -> None:
    """An empty answer still has a role, a reason and an end."""
    answer = await stream({"x-sim-output-tokens": "0"})
    assert answer.words == ""
    assert len(answer.events) == 4


@pytest.mark.parametrize(
    ("prompt", "choices", "tokens"),
    [
        pytest.param("abcde", 1, 2, id="a text"),
        pytest.param(["abcd", "abcde"], 2, 3, id="two texts"),
        pytest.param([1, 2, 3], 1, 3, id="token ids"),
        pytest.param([[1, 2], [3]], 2, 3, id="two lists of token ids"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_completions(
    *, prompt: object, choices: int, tokens: int, streamed: bool, client: AsyncOpenAI, sim
) -> None:
    """Legacy completions answer every prompt, whole or streamed."""
    texts = [""] * choices
    if streamed:
        stream = await client.completions.create(
            model="m",
            prompt=prompt,
            max_tokens=3,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            usage = chunk.usage
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    else:
        answer = await client.completions.create(model="m", prompt=prompt, max_tokens=3)
        usage = answer.usage
        assert [choice.finish_reason for choice in answer.choices] == ["length"] * choices
        texts = [choice.text for choice in answer.choices]
    assert texts == ["tok0 tok1 tok2 "] * choices
    assert (usage.prompt_tokens, usage.completion_tokens) == (tokens, 3 * choices)
    assert sim.requests[0].output_tokens_sent == 3 * choices
