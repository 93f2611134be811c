"""What admission leaves for settlement: one line of text that travels with the request in Envoy.

Knows: its own fields. Must not know: who carries it. It holds all that a bill needs, so an answer
that ends after the processor restarted is settled like any other, at the prices it was planned at.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from extproc.domain import Forward, Price


class Attempt(msgspec.Struct, array_like=True, frozen=True):
    """One planned target; prices in pico-USD per token, None where unknown."""

    provider: str
    model: str
    price: tuple[int, int, int] | None


class Record(msgspec.Struct, array_like=True, frozen=True):
    """The admission of one call. `id` is the processor's own, never the client's."""

    id: str
    tenant: str
    key_id: str
    endpoint: str
    model: str
    stream: bool
    prompt_bytes: int
    attempts: Annotated[list[Attempt], msgspec.Meta(min_length=1)]


_decoder = msgspec.json.Decoder(Record)
_encoder = msgspec.json.Encoder()


class Foreign(Exception):
    """Text in the record's place that no admission of ours wrote."""


def encode(forward: Forward) -> bytes:
    """Write the record of one admission."""
    call = forward.call
    attempts = [
        Attempt(
            target.provider,
            target.model,
            (target.price.input, target.price.output, target.price.cached_input)
            if target.price
            else None,
        )
        for target in forward.plan.attempts
    ]
    return _encoder.encode(
        Record(
            forward.id,
            forward.principal.tenant,
            forward.principal.key_id,
            call.endpoint.name,
            call.model,
            call.stream,
            call.text_bytes,
            attempts,
        )
    )


def decode(text: str) -> Record:
    """Read a record back. Raises Foreign."""
    try:
        return _decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise Foreign from error


def price_of(attempt: Attempt) -> Price | None:
    """Return the attempt's price as planned."""
    return Price(*attempt.price) if attempt.price else None
