"""Embeddings, read by the official client."""

import math
import struct
from base64 import b64decode

import pytest
from openai import AsyncOpenAI

from extproc.simulator.openai_embeddings import vector


def _cosine(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    ("source", "count", "tokens"),
    [
        pytest.param("hello world", 1, 3, id="a text"),
        pytest.param(["abcd", "abcde"], 2, 3, id="two texts"),
        pytest.param([5, 6, 7], 1, 3, id="token ids"),
        pytest.param([[5, 6], [7]], 2, 3, id="two lists of token ids"),
    ],
)
async def test_inputs(source: object, count: int, tokens: int, client: AsyncOpenAI, sim) -> None:
    """Every kind of input gets one unit vector per text."""
    answer = await client.embeddings.create(model="e", input=source)
    assert [one.index for one in answer.data] == list(range(count))
    assert answer.model == "e"
    for one in answer.data:
        assert len(one.embedding) == 1536
        assert math.isclose(_cosine(one.embedding, one.embedding), 1, abs_tol=1e-5)
    assert answer.usage.model_dump() == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert sim.requests[0].usage_sent == answer.usage.model_dump()
    assert sim.requests[0].finished


async def test_both_encodings_hold_the_same_vector(send) -> None:
    """Base64 is the little-endian floats of the list."""
    body = {"model": "e", "input": "hello world", "dimensions": 8}
    as_float, as_base64 = [
        (await send("POST", "/v1/embeddings", body | {"encoding_format": encoding})).json
        for encoding in ("float", "base64")
    ]
    raw = b64decode(as_base64["data"][0]["embedding"])
    floats = as_float["data"][0]["embedding"]
    assert list(struct.unpack("<8f", raw)) == pytest.approx(floats, abs=1e-6)


async def test_similar_texts_are_near(client: AsyncOpenAI) -> None:
    """A semantic cache has something to find: equal 1, similar high, different low."""
    texts = ["how do I bake bread", "How do I bake BREAD", "how do I bake cake", "red quick fox"]
    data = (await client.embeddings.create(model="e", input=texts)).data
    base, *others = [one.embedding for one in data]
    same, similar, different = [_cosine(base, other) for other in others]
    assert same == pytest.approx(1, abs=1e-5)
    assert 0.6 < similar < 0.95
    assert different < 0.3


@pytest.mark.parametrize(("usage", "tokens"), [("missing", None), ("huge", 10**15)])
async def test_usage_behaviours(usage: str, tokens: int | None, send) -> None:
    """Usage can be missing or absurd."""
    body = {"model": "e", "input": "a"}
    answer = (await send("POST", "/v1/embeddings", body, {"x-sim-usage": usage})).json
    assert answer.get("usage", {}).get("total_tokens") == tokens


@pytest.mark.parametrize("words", [[], ["a", "b", "c", "d"]])
def test_every_vector_is_a_unit_vector(words: list[str]) -> None:
    """Even no words, and words that share one place."""
    values = list(vector(words, 1))
    assert _cosine(values, values) == pytest.approx(1)
