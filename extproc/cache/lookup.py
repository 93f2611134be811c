"""What one call may have of the cache: the verdict and the key, before it is routed.

Knows: the parts of this package in their order. Must not know: stores, the wire, the clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from extproc.answers import Entry
from extproc.cache import canonical, rules
from extproc.cache.asked import Asked
from extproc.cache.control import ANYTHING, Control, read
from extproc.cache.key import NO_HEADERS, digest, scope_of, varying
from extproc.cache.reasons import Reason
from extproc.cache_policy import Policy
from extproc.dialects.json_body import Members
from extproc.domain import Call, Head, Principal

# Of all of a call but its inputs, which is part of each one's key, times the inputs: 10 ms of the
# loop, where 2,048 inputs beside 10 MB of something else would take 45 s.
MAX_REPEATED_BYTES: Final = 4 * 1024 * 1024
# What stands for bytes of a header that are no UTF-8: which ones they were is not known any more.
REPLACED: Final = "\ufffd"


class Use(Enum):
    """What became of a look-up."""

    HIT = auto()
    MISS = auto()
    STALE = auto()  # older than what is good for this caller
    REFUSED = auto()  # fresh, but older than the caller wants
    PARTIAL = auto()  # some of the inputs of a batch


_HIT: Final = Use.HIT
_MISS: Final = Use.MISS
_STALE: Final = Use.STALE
_REFUSED: Final = Use.REFUSED


def ask(  # noqa: PLR0917 (what a verdict is made of, all of it needed)
    policy: Policy,
    head: Head,
    principal: Principal,
    call: Call,
    body: bytes,
    members: Members | None = None,
) -> Asked:
    """Decide what a call may have of the cache. Never raises for a body that `dialects` accepted.

    The caller's permission for the model is checked elsewhere, and must be before an answer is
    given. `members` are the body's, where it has been taken apart. Pure; 10 us for 1 KB of chat.
    """
    if not policy.enabled:
        return _without(Reason.OFF, head)
    endpoint = call.endpoint.name
    model = call.model
    embeds = endpoint == "embeddings"
    ttl_ms = rules.ttl_of(policy, model, principal.tier, principal.key_id, embeddings=embeds)
    if ttl_ms is None:
        return _without(Reason.OFF, head)
    if endpoint not in rules.CACHEABLE:
        return _without(Reason.ENDPOINT, head)
    values = canonical.read(body) if members is None else canonical.exact(members, body)
    if values is None:
        return _without(Reason.NOT_CANONICAL, head)
    reason = rules.bypass(policy, call, values)
    if reason is not None:
        return _without(reason, head)
    api_defaults = policy.models[model].api_defaults
    form = canonical.form(endpoint, values, api_defaults=api_defaults)
    headers = varying(head.headers)
    if (
        form is None
        or REPLACED in head.query
        or (headers is not NO_HEADERS and any(REPLACED in value for value in headers))
    ):
        return _without(Reason.NOT_CANONICAL, head)
    key = _key(policy, head, principal, call, headers, form=form)
    return Asked(key, None, _control(head), ttl_ms)


def ask_each(
    policy: Policy,
    head: Head,
    principal: Principal,
    call: Call,
    body: bytes,
    *,
    inputs: Sequence[bytes],
) -> list[bytes] | None:
    """Return the key of each input of an embeddings call for which `ask` gave a key.

    `inputs` are their canonical JSON, as in `embeddings.Batch.pieces`. Each key is the one that a
    call for this input alone has, so a batch finds what single calls left and the other way round.
    None where the rest of the call is too long to be digested again for each input.
    """
    values = canonical.read(body)
    api_defaults = policy.models[call.model].api_defaults
    around = values and canonical.around_input(values, api_defaults=api_defaults)
    assert around, "ask found a canonical form"
    before, after = around
    headers = varying(head.headers)
    rest = (before, after, head.query, *headers)
    if sum([len(one) for one in rest]) * len(inputs) > MAX_REPEATED_BYTES:
        return None
    return [
        _key(policy, head, principal, call, headers, form=b"".join((before, one, after)))
        for one in inputs
    ]


def judge(entry: Entry | None, asked: Asked, now_ms: int) -> Use:
    """Say whether a call is answered with what was found under its key."""
    if entry is None:
        return _MISS
    if remaining_ms(entry, asked, now_ms) <= 0:
        return _STALE
    limit = asked.control.max_age_s
    # Because whoever says 0 wants none, and a clock that is behind must not give it one.
    if limit is not None and max(0, now_ms - entry.stored_ms) >= limit * 1000:
        return _REFUSED
    return _HIT


def remaining_ms(entry: Entry, asked: Asked, now_ms: int) -> int:
    """Return for how long an entry is good for this caller; 0 or less: it is not."""
    return min(entry.expires_ms, entry.stored_ms + asked.ttl_ms) - now_ms


def _without(reason: Reason, head: Head) -> Asked:
    return Asked(None, reason, _control(head))


def _control(head: Head) -> Control:
    written = head.headers.get("cache-control")
    return read(written) if written else ANYTHING


def _key(
    policy: Policy,
    head: Head,
    principal: Principal,
    call: Call,
    headers: tuple[str, ...],
    *,
    form: bytes,
) -> bytes:
    return digest(
        secret=policy.secret,
        scope=scope_of(policy.scope, principal),
        policy=policy.models[call.model].version,
        tier=principal.tier,
        endpoint=call.endpoint.name,
        model=call.model,
        query=head.query,
        headers=headers,
        form=form,
    )
