"""What admission leaves for settlement: one line of text that travels with the request in Envoy.

Knows: its own fields. Must not know: who carries it. It holds all that a bill needs, so an answer
that ends after the processor restarted is settled like any other, at the prices it was planned at.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

import msgspec

from extproc.answers import Filling, Told
from extproc.domain import Price
from extproc.hold import Hold


class Attempt(msgspec.Struct, array_like=True, frozen=True):
    """One planned target; prices in pico-USD per token, None where unknown.

    `price` is input, output, cached input; `above` the same of long prompts after their threshold;
    `writes` the prices of cache writes, for minutes and an hour, then those of long prompts.
    """

    provider: str
    model: str
    price: tuple[int, int, int] | None
    above: tuple[int, int, int, int] | None = None
    writes: tuple[int | None, int | None, int | None, int | None] | None = None


class Record(msgspec.Struct, array_like=True, frozen=True):
    """The admission of one call. `id` is the processor's own, never the client's.

    What differs from call to call comes first, so that the rest is encoded once for many.
    `attempts` without the repetitions of the last one; `trace` as `policies.trace` writes it.
    """

    id: str
    prompt_bytes: int
    trace: str
    tenant: str
    key_id: str
    endpoint: str
    model: str
    stream: bool
    attempts: Annotated[list[Attempt], msgspec.Meta(min_length=1)]
    hold: Hold | None = None  # where the ledger does not keep it itself
    filling: Filling | None = None  # where the answer is to be kept
    told: Told = ""  # where a kept answer was told, by the one attempt that is listed
    part: bool = False  # of a batch was sent, and what it was answered with is completed here


_decoder = msgspec.json.Decoder(Record)


class Foreign(Exception):
    """Text in the record's place that no admission of ours wrote."""


def beginning(worker: int) -> str:
    """Return what the records of one of several workers begin with: its ids do with its number.

    Envoy sends each of them the log entries of its own calls by this.
    """
    return f'["{worker:02x}'


def decode(text: str) -> Record:
    """Read a record back. Raises Foreign."""
    try:
        return _decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise Foreign from error


@lru_cache(maxsize=4096)  # models by their targets
def price_of(attempt: Attempt) -> Price | None:
    """Return the attempt's price as planned."""
    if attempt.price is None:
        return None
    short, long, above_short, above_long = attempt.writes or (None, None, None, None)
    if attempt.above is None:
        return Price(*attempt.price, cache_write=short, cache_write_1h=long)
    above = Price(*attempt.above[1:], cache_write=above_short, cache_write_1h=above_long)
    return Price(*attempt.price, attempt.above[0], above, short, long)
