"""Reading usage out of whatever stood last in an answer."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.domain import Usage, UsageSource
from extproc.policies.usage import MAX_BELIEVED_TOKENS, read_usage


def provider(
    given_input: int, output: int, cached: int = 0, written: int = 0, hour: int = 0
) -> Usage:
    return Usage(given_input, output, cached, UsageSource.PROVIDER, written, hour)


CHAT = (
    '{"id":"c","choices":[],"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,'
    '"prompt_tokens_details":{"cached_tokens":5,"audio_tokens":0}}}'
)
RESPONSES = (
    '{"type":"response.completed","response":{"usage":{"input_tokens":36,'
    '"input_tokens_details":{"cached_tokens":6},"output_tokens":87,"total_tokens":123}}}'
)
START = (
    '"usage":{"input_tokens":377,"cache_creation_input_tokens":7,"cache_read_input_tokens":40,'
    '"cache_creation":{"ephemeral_5m_input_tokens":7},"output_tokens":1,"service_tier":"standard"}'
)
FORGED_SCHEMA = '"tools":[{"properties":{"usage":{"prompt_tokens":0,"completion_tokens":0}}}]'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "{" + FORGED_SCHEMA + ',"usage":{"prompt_tokens":9,"completion_tokens":8}}',
            provider(9, 8),
            id="a caller's tool schema named usage does not hide the provider's count",
        ),
        pytest.param(
            "{" + FORGED_SCHEMA + ',"usage":{"prompt_tokens":9,"comple',
            None,
            id="a caller's tool schema does not stand in for a count that is cut",
        ),
        pytest.param(
            r'{"content":"\"usage\":{\"prompt_tokens\":1}","usage":null}',
            None,
            id="text of the answer is never usage",
        ),
        pytest.param('{"usage":{"prompt_tokens":true}}', None, id="a bool is not a count"),
        pytest.param('{"usage":{"prompt_tokens":-1}}', None, id="a count is not negative"),
        pytest.param('{"usage":{"prompt_tokens":"7"}}', None, id="a string is not a count"),
        pytest.param('{"usage":{"prompt_tokens":1.5}}', None, id="half a token is not a count"),
        pytest.param('{"usage":{"prompt_tokens":NaN}}', None, id="NaN is not JSON"),
        pytest.param('{"usage":{"prompt_tokens":1e400}}', None, id="infinity is not a count"),
        pytest.param(
            '{"usage":{"prompt_tokens":1,"completion_tokens":1000000001}}',
            None,
            id="a count over 10**9 is not believed",
        ),
        pytest.param('{"usage":{"prompt_tokens":' + "9" * 5000 + "}}", None, id="5,000 digits"),
        pytest.param('{"usage":' + '{"usage":' * 9999, None, id="braces without end"),
        pytest.param('{"usage":{"a":' + "[" * 99999, None, id="brackets without end"),
        pytest.param('{"usage":{"completion_tokens":3}}', None, id="input must be there"),
        pytest.param('{"usage":{}}', None, id="an empty object"),
        pytest.param('{"usage":null}', None, id="null"),
        pytest.param('{"usage":[1]}', None, id="an array"),
        pytest.param('"usage"', None, id="the name alone"),
        pytest.param("", None, id="nothing"),
        pytest.param(CHAT, provider(19, 10, 5), id="chat"),
        pytest.param("data: " + CHAT + "\n\n", provider(19, 10, 5), id="an SSE event"),
        pytest.param(CHAT[20:-1], provider(19, 10, 5), id="cut at both ends, usage whole"),
        pytest.param(RESPONSES, provider(36, 87, 6), id="responses"),
        pytest.param(
            '{"usage":{"prompt_tokens":8,"total_tokens":8}}', provider(8, 0), id="embeddings"
        ),
        pytest.param(
            '{"usage" :\r\n\t{"prompt_tokens":2,"completion_tokens":1}}',
            provider(2, 1),
            id="white space around the colon",
        ),
        pytest.param(
            '{"usage":{"prompt_tokens":2.0,"completion_tokens":null}}',
            provider(2, 0),
            id="a whole float counts, null is missing",
        ),
        pytest.param(
            '{"usage":{"prompt_tokens":2,"prompt_tokens_details":null}}',
            provider(2, 0),
            id="details may be null",
        ),
        pytest.param(
            '{"usage":{"prompt_tokens":2,"prompt_tokens_details":{"cached_tokens":3}}}',
            provider(2, 0, 2),
            id="no more is cached than was sent",
        ),
        pytest.param(
            '{"usage":{"prompt_tokens":1}}{"usage":{"prompt_tokens":2}}',
            provider(2, 0),
            id="the last one counts",
        ),
        pytest.param(
            f'message_start {START} "usage":{{"output_tokens":65}}',
            provider(377 + 40 + 7, 65, 40, 7),
            id="an Anthropic stream tells its input first and its output last",
        ),
        pytest.param(
            f'message_start {START} "usage":{{"input_tokens":500,"output_tokens":65}}',
            provider(500, 65),
            id="cumulative input of the last event is the truth",
        ),
        pytest.param(
            f"message_start {START}",
            Usage(424, 0, 40, UsageSource.PARTIAL, 7),
            id="a stream that was cut has its input alone",
        ),
        pytest.param(
            'message_start "usage":{"input_tokens":0,"output_tokens":0}',
            None,
            id="an input of nothing at the start is not known yet",
        ),
        pytest.param(
            'message_start "usage":{"input_tokens":0,"output_tokens":0} "usage":{"output_tokens":0}',
            None,
            id="an input of nothing at the end was never told",
        ),
        pytest.param(f"message_start {START[:-9]}", None, id="a start that is cut"),
        pytest.param(f'message_start {START} "usage":{{"outp', None, id="an end that is cut"),
        pytest.param(
            'message_start "usage":{"x" "usage":{"output_tokens":5}', None, id="no input at all"
        ),
        pytest.param(
            "{" + START + ',"stop_reason":"end_turn"}',
            provider(424, 1, 40, 7),
            id="an Anthropic message",
        ),
        pytest.param(
            '{"usage":{"prompt_tokens":50,"cache_read_input_tokens":40,"completion_tokens":1}}',
            provider(50, 1),
            id="beside OpenAI's names Anthropic's add nothing",
        ),
        pytest.param(
            '{"usage":{"input_tokens":10,"cache_creation_input_tokens":30,"output_tokens":2,'
            '"cache_creation":{"ephemeral_5m_input_tokens":10,"ephemeral_1h_input_tokens":20}}}',
            provider(40, 2, 0, 30, 20),
            id="what a cache keeps for an hour is told apart",
        ),
        pytest.param(
            'message_start "usage":{"input_tokens":10,"cache_creation_input_tokens":30,'
            '"cache_creation":{"ephemeral_1h_input_tokens":20}} "usage":{"output_tokens":2}',
            provider(40, 2, 0, 30, 20),
            id="an Anthropic stream tells what its cache keeps in the first event",
        ),
        pytest.param(
            '{"usage":{"input_tokens":10,"cache_creation":{"ephemeral_1h_input_tokens":20}}}',
            provider(10, 0),
            id="nothing is kept for an hour of what was not written",
        ),
        pytest.param(
            '{"usage":{"input_tokens":10,"cache_creation_input_tokens":5,'
            '"cache_creation":{"ephemeral_1h_input_tokens":20}}}',
            provider(15, 0, 0, 5, 5),
            id="no more is kept for an hour than was written",
        ),
        pytest.param(
            '{"usage":{"input_tokens":10,"cache_creation_input_tokens":5,"cache_creation":7}}',
            provider(15, 0, 0, 5),
            id="a breakdown that is a number says nothing",
        ),
        pytest.param(
            '{"usage":{"input_tokens":10,"cache_creation_input_tokens":-5}}',
            None,
            id="a negative write is not a count",
        ),
        *(
            pytest.param(
                f'{{"usage":{{"prompt_tokens":50,"completion_tokens":1,{told}}}}}',
                provider(50, 1, cached, written),
                id=f"written within the prompt: {server}",
            )
            for server, told, cached, written in (
                (
                    "OpenAI, OpenRouter",
                    '"prompt_tokens_details":{"cached_tokens":40,"cache_write_tokens":9}',
                    *(40, 9),
                ),
                (
                    "LiteLLM",
                    (
                        '"cache_creation_input_tokens":9,"cache_read_input_tokens":40,'
                        '"prompt_tokens_details":{"cached_tokens":40,"cache_creation_tokens":9}'
                    ),
                    *(40, 9),
                ),
                ("LiteLLM, older", '"cache_creation_input_tokens":9', *(0, 9)),
                (
                    "more than was sent",
                    '"prompt_tokens_details":{"cached_tokens":40,"cache_write_tokens":90}',
                    *(40, 10),
                ),
            )
        ),
        pytest.param(
            '{"usage":{"input_tokens":50,"output_tokens":1,'
            '"input_tokens_details":{"cached_tokens":40,"cache_write_tokens":9}}}',
            provider(50, 1, 40, 9),
            id="written within the input: responses",
        ),
        pytest.param(
            '{"usage":{"prompt_tokens":1},"other":{"usage":null}}',
            provider(1, 0),
            id="a null after it does not hide it",
        ),
    ],
)
def test_read_usage(text: str, expected: Usage | None) -> None:
    """The last usage object is believed if it is whole and plausible."""
    assert read_usage(text) == expected


@given(st.text())
def test_any_text(text: str) -> None:
    """Garbage in, None out."""
    read_usage(text)


NAMES = (
    *("usage", "prompt_tokens", "completion_tokens", "prompt_tokens_details", "cached_tokens"),
    *("cache_write_tokens", "cache_creation_input_tokens"),
)
fragments = st.lists(
    st.sampled_from(
        [*(f'"{name}"' for name in NAMES), *':{} \\"[]1-,', "e9", "null", "\ud800"],
    )
)


@given(fragments)
def test_any_fragments(parts: list[str]) -> None:
    """What is returned holds the invariants of a usage."""
    usage = read_usage("".join(parts))
    if usage is not None:
        assert 0 <= usage.cached_input <= usage.input <= MAX_BELIEVED_TOKENS
        assert 0 <= usage.cache_write_1h <= usage.cache_write
        assert usage.cached_input + usage.cache_write <= usage.input
        assert 0 <= usage.output <= MAX_BELIEVED_TOKENS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(["prompt_tokens", "completion_tokens", "input_tokens_details"]),
        json_values | st.fixed_dictionaries({"cached_tokens": json_values}),
    ),
    st.integers(0, 60),
)
def test_any_values(members: dict[str, object], cut: int) -> None:
    """No type or cut is an exception."""
    text = json.dumps({"usage": members})
    read_usage(text)
    read_usage(text[: len(text) - cut])


@pytest.mark.parametrize(
    "unit", ['"usage"', '"usage":', '"usage":{', '"usage" ', ' :{"', '{"usage":1,']
)
def test_time_is_linear(unit: str) -> None:
    """A megabyte of traps costs well under a second."""
    text = unit * (1_000_000 // len(unit))
    start = time.process_time()
    read_usage(text)
    read_usage('"usage"' + text)
    assert time.process_time() - start < 2
