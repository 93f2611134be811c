"""Writing the record of an admission, as `record` reads it back.

Knows: the record's members in their order. Must not know: who carries it. Apart from `record`,
because this is compiled and its classes cannot be.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import msgspec

from extproc.answers import Told
from extproc.domain import Forward, Price, Target, once
from extproc.gateway import Hit
from extproc.record import Attempt

_encode: Final = msgspec.json.Encoder().encode


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
        hold = b"null" if forward.hold is None else _encode(forward.hold)
        shared = b"%b,%b,%b]" % (shared[:-1], hold, _encode(forward.filling))
    elif forward.hold is not None:
        shared = b"%b,%b]" % (shared[:-1], _encode(forward.hold))
    return b'[%b,%d,"%b",%b' % (_encode(forward.id), call.text_bytes, trace.encode(), shared)


def encode_hit(hit: Hit, trace: str = "") -> bytes:
    """Write the record of a call that a kept answer was told to."""
    call, principal, entry = hit.call, hit.principal, hit.entry
    told = _told(
        principal.tenant,
        principal.key_id,
        call.endpoint.name,
        call.model,
        call.stream,
        entry.provider,
        entry.served_model,
        hit.told,
    )
    return b'[%b,%d,"%b",%b' % (_encode(hit.id), call.text_bytes, trace.encode(), told)


@lru_cache(maxsize=4096)  # keys by models
def _told(  # noqa: PLR0917 (the cache's key is its arguments)
    tenant: str,
    key_id: str,
    endpoint: str,
    model: str,
    stream: bool,
    provider: str,
    served_model: str,
    told: Told,
) -> bytes:
    """Encode the members after the first three of a told answer, closing bracket included."""
    attempts = [Attempt(provider, served_model, None)]
    return _encode((tenant, key_id, endpoint, model, stream, attempts, None, None, told))[1:]


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
