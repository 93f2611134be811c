"""The Responses API, read by the official client."""

import pytest
from openai import AsyncOpenAI

INPUT = [
    {"role": "user", "content": "abcd"},
    {"role": "user", "content": [{"type": "input_text", "text": "abcde"}]},
]


@pytest.mark.parametrize(
    ("source", "instructions", "tokens"),
    [
        pytest.param("abcde", None, 5, id="a text"),
        pytest.param("abcde", "be nice", 7, id="a text and instructions"),
        pytest.param(INPUT, None, 6, id="messages"),
    ],
)
@pytest.mark.parametrize(
    ("limit", "status", "words"),
    [
        pytest.param(None, "completed", "tok0 tok1 tok2 tok3 ", id="whole"),
        pytest.param(2, "incomplete", "tok0 tok1 ", id="cut"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_responses(
    *,
    source: object,
    instructions: str | None,
    tokens: int,
    limit: int | None,
    status: str,
    words: str,
    streamed: bool,
    client: AsyncOpenAI,
    sim,
) -> None:
    """Whole or streamed, a response has the same text, status and usage."""
    request = {
        "model": "m",
        "input": source,
        "instructions": instructions,
        "max_output_tokens": limit,
        "extra_headers": {"x-sim-output-tokens": "4"},
    }
    if streamed:
        events = [event async for event in await client.responses.create(stream=True, **request)]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        kinds = [event.type for event in events]
        assert kinds[0] == "response.created"
        assert kinds[-1] == f"response.{status}"
        deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
        assert "".join(deltas) == words
        assert len(deltas) == len(words.split())
        response = events[-1].response
    else:
        response = await client.responses.create(**request)
    assert response.output_text == words
    assert response.status == status
    reason = response.incomplete_details and response.incomplete_details.reason
    assert reason == (None if limit is None else "max_output_tokens")
    assert response.usage.input_tokens == tokens
    assert response.usage.output_tokens == len(words.split())
    assert response.usage.total_tokens == tokens + len(words.split())
    record = sim.requests[0]
    assert record.finished
    assert record.usage_sent == response.usage.model_dump(exclude_unset=True)
    assert record.output_tokens_sent == len(words.split())


@pytest.mark.parametrize(
    ("usage", "expected"),
    [("missing", [None]), ("twice", [16, 16]), ("huge", [10**15])],
)
async def test_usage_behaviours(
    usage: str, expected: list[int | None], client: AsyncOpenAI
) -> None:
    """The final event's usage can be missing, repeated or absurd."""
    stream = await client.responses.create(
        model="m", input="hi", stream=True, extra_headers={"x-sim-usage": usage}
    )
    finals = [e.response.usage async for e in stream if e.type == "response.completed"]
    assert [one and one.output_tokens for one in finals] == expected
