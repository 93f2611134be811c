"""Embeddings as OpenAI writes them: similar texts get similar vectors.

Knows the JSON of the endpoint and how a text becomes a vector. Knows no HTTP, no pacing, no faults.
"""

import base64
import math
import sys
import zlib
from array import array
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from extproc.simulator.behaviour import Behaviour
from extproc.simulator.dialect import Call, Stamp, Usage, Whole
from extproc.simulator.openai_chat import HUGE_TOKENS, TokenIds, prompt_tokens

DEFAULT_DIMENSIONS = 1536  # text-embedding-3-small
MAX_DIMENSIONS = 3072  # text-embedding-3-large


class EmbeddingsRequest(msgspec.Struct, gc=False):
    """What of an embeddings request changes the answer."""

    model: str
    input: str | Annotated[list[str | int | TokenIds], Meta(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)] | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("you must provide a model parameter")
        if self.input == "" or (isinstance(self.input, list) and "" in self.input):
            raise ValueError("'input' cannot be an empty string")


def embeddings(request: EmbeddingsRequest) -> Call:
    """Return the call of an embeddings request."""
    prompt = sum(prompt_tokens(request.input))
    return Call(partial(_whole, request, prompt), request.model, prompt_tokens=prompt)


def vector(words: Sequence[str], dimensions: int) -> "array[float]":
    """Return the unit vector of a bag of words: each word adds or takes one at a place of its own.

    The cosine of two texts is then about the share of words they have in common.
    """
    values = array("f", bytes(4 * dimensions))
    for word in words:
        digest = zlib.crc32(word.encode())
        values[(digest >> 1) % dimensions] += 1.0 if digest & 1 else -1.0
    length = math.sqrt(sum([value * value for value in values if value]))
    if not length:
        values[0] = length = 1.0  # words that cancel each other out still get a unit vector
    return array("f", [value / length for value in values])


def _texts(source: str | list[Any]) -> list[Sequence[str]]:
    if isinstance(source, str):
        return [source.lower().split()]
    if all(isinstance(item, int) for item in source):
        return [[str(item) for item in source]]
    return [
        item.lower().split() if isinstance(item, str) else [str(token) for token in item]
        for item in source
    ]


def _encode(values: "array[float]", encoding: str | None) -> str | list[float]:
    if encoding != "base64":
        return values.tolist()
    if sys.byteorder == "big":
        values.byteswap()  # the API sends little-endian floats
    return base64.b64encode(values.tobytes()).decode()


def _usage(behaviour: Behaviour, prompt: int) -> Usage | None:
    if behaviour.usage == "missing":
        return None
    tokens = HUGE_TOKENS if behaviour.usage == "huge" else prompt
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _whole(request: EmbeddingsRequest, prompt: int, behaviour: Behaviour, stamp: Stamp) -> Whole:
    del stamp  # an embedding has no id
    dimensions = request.dimensions or DEFAULT_DIMENSIONS
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _encode(vector(words, dimensions), request.encoding_format),
        }
        for index, words in enumerate(_texts(request.input))
    ]
    usage = _usage(behaviour, prompt)
    answer: dict[str, object] = {"object": "list", "data": data, "model": request.model}
    if usage is not None:
        answer["usage"] = usage
    return Whole(msgspec.json.encode(answer), usage=usage)
