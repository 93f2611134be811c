"""What admission leaves for settlement: one line of text that travels with the request in Envoy.

Knows: its own fields. Must not know: who carries it. It holds all that a bill needs, so an answer
that ends after the processor restarted is settled like any other, at the prices it was planned at.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

import msgspec

from extproc.answers import Filling, Told
from extproc.domain import Forward, Price, Target, once
from extproc.gateway import Hit
from extproc.limits import Hold


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
_encode = msgspec.json.Encoder().encode


class Foreign(Exception):
    """Text in the record's place that no admission of ours wrote."""


def beginning(worker: int) -> str:
    """Return what the records of one of several workers begin with: its ids do with its number.

    Envoy sends each of them the log entries of its own calls by this.
    """
    return f'["{worker:02x}'


def encode(forward: Forward, trace: str = "") -> bytes:
    """Write the record of one admission; `trace` is plain text, empty where none is recorded."""
    call = forward.call
    principal = forward.principal
    shared = _shared(
        principal.tenant,
        principal.key_id,
        call.endpoint.name,
        call.model,
        call.stream,
        forward.plan.attempts,
    )
    if forward.complete is not None:
        rest = _encode((forward.hold, forward.filling, "", True))
        shared = b"%b,%b" % (shared[:-1], rest[1:])
    elif forward.filling is not None:
        hold = _encode(forward.hold)
        shared = b"%b,%b,%b]" % (shared[:-1], hold, _encode(forward.filling))
    elif forward.hold is not None:
        shared = b"%b,%b]" % (shared[:-1], _encode(forward.hold))
    return b'[%b,%d,"%b",%b' % (_encode(forward.id), call.text_bytes, trace.encode(), shared)


def encode_hit(hit: Hit, trace: str = "") -> bytes:
    """Write the record of a call that a kept answer was told to."""
    call, principal, entry = hit.call, hit.principal, hit.entry
    return _encode(
        Record(
            id=hit.id,
            prompt_bytes=call.text_bytes,
            trace=trace,
            tenant=principal.tenant,
            key_id=principal.key_id,
            endpoint=call.endpoint.name,
            model=call.model,
            stream=call.stream,
            attempts=[Attempt(entry.provider, entry.served_model, None)],
            told=hit.told,
        )
    )


@lru_cache(maxsize=4096)  # keys by models by orders of their targets; a miss costs 5 us
def _shared(  # noqa: PLR0917 (the cache's key is its arguments)
    tenant: str, key_id: str, endpoint: str, model: str, stream: bool, targets: tuple[Target, ...]
) -> bytes:
    """Encode the members after the first three, closing bracket included."""
    attempts = [
        Attempt(
            target.provider,
            target.model,
            (target.price.input, target.price.output, target.price.cached_input)
            if target.price
            else None,
            _above(target.price),
            _writes(target.price),
        )
        for target in once(targets)
    ]
    return _encode((tenant, key_id, endpoint, model, stream, attempts))[1:]


def decode(text: str) -> Record:
    """Read a record back. Raises Foreign."""
    try:
        return _decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise Foreign from error


@lru_cache(maxsize=4096)  # as above
def price_of(attempt: Attempt) -> Price | None:
    """Return the attempt's price as planned."""
    if attempt.price is None:
        return None
    short, long, above_short, above_long = attempt.writes or (None, None, None, None)
    if attempt.above is None:
        return Price(*attempt.price, cache_write=short, cache_write_1h=long)
    above = Price(*attempt.above[1:], cache_write=above_short, cache_write_1h=above_long)
    return Price(*attempt.price, attempt.above[0], above, short, long)


def _above(price: Price | None) -> tuple[int, int, int, int] | None:
    if price is None or price.above is None:
        return None
    above = price.above
    return price.above_tokens, above.input, above.output, above.cached_input


def _writes(
    price: Price | None,
) -> tuple[int | None, int | None, int | None, int | None] | None:
    if price is None:
        return None
    above = price.above or price
    found = (price.cache_write, price.cache_write_1h, above.cache_write, above.cache_write_1h)
    return None if found == (None, None, None, None) else found
