"""The life of an API key: made, rotated, ended, described.

Knows: key records and what makes one unsafe. Must not know: where records are kept, requests,
clocks and randomness (both are arguments).
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from extproc.domain import EndpointName, KeyRecord
from extproc.policies.auth import ANONYMOUS, TENANT_PATTERN, digest_of, is_live, new_api_key

MAX_NAME_CHARS: Final = 100
MAX_LIFE_S: Final = 100 * 365 * 86_400.0  # keeps every time a date that can be printed
MAX_TAGS: Final = 16
TAG_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=/@+-]{0,62}", re.ASCII)

State = Literal["active", "retiring", "revoked", "expired"]


class UnknownKeyError(LookupError):
    """No key has this id."""


class DeadKeyError(LookupError):
    """The key is expired or revoked."""


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """What a new key shall be; None stands for a tenant of its own, every model, no end."""

    name: str
    tier: str
    tenant: str | None = None
    models: frozenset[str] | None = None
    endpoints: frozenset[str] | None = None
    tags: frozenset[str] = frozenset()
    expires_at: float | None = None  # unix seconds


def make(request: KeyRequest, tenant: str, *, now: float, token: bytes) -> tuple[KeyRecord, str]:
    """Return the record and the key for 32 fresh random bytes; ValueError names what is wrong."""
    key_id, plaintext = new_api_key(token)
    record = KeyRecord(
        key_id=key_id,
        digest=digest_of(plaintext),
        name=request.name,
        tenant=tenant,
        tier=request.tier,
        models=request.models,
        endpoints=request.endpoints,
        created_at=now,
        expires_at=request.expires_at,
        revoked_at=None,
        tags=request.tags,
    )
    check_record(record)
    return record, plaintext


def own_tenant(name: str, taken: Container[str]) -> str:
    """Return a tenant named after a key that none of the `taken` ones is.

    Sharing limits and cache with another key is said aloud, never the accident of two like names.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].rstrip("-") or "tenant"
    tenant, count = slug, 1
    while tenant in taken or tenant == ANONYMOUS:
        count += 1
        tenant = f"{slug}-{count}"
    return tenant


def check_grace(grace_s: float) -> None:
    """Raise ValueError for a grace period that is no time."""
    if not 0 <= grace_s <= MAX_LIFE_S:
        raise ValueError("grace: 0 to 100 years")


def rotate(
    old: KeyRecord, *, grace_s: float, now: float, token: bytes, expires_at: float | None = None
) -> tuple[KeyRecord, KeyRecord, str]:
    """Return the old record with its end, the new record, and the new key.

    The new key has the attributes of the old one; the old one dies `grace_s` from now, or earlier
    where it already had an earlier end. `expires_at` gives the new key another end than the old
    one's. Raises DeadKeyError, or ValueError naming the argument that is wrong.
    """
    check_grace(grace_s)
    if not is_live(old, now):
        raise DeadKeyError(old.key_id)
    new_id, plaintext = new_api_key(token)
    new = replace(
        old,
        key_id=new_id,
        digest=digest_of(plaintext),
        created_at=now,
        expires_at=old.expires_at if expires_at is None else expires_at,
        revoked_at=None,
        last_used_at=None,
    )
    check_record(new)
    return end(old, now + grace_s), new, plaintext


def end(record: KeyRecord, at: float) -> KeyRecord:
    """Return the record ending at a moment, or earlier where it already had an earlier end."""
    return replace(
        record, revoked_at=at if record.revoked_at is None else min(at, record.revoked_at)
    )


def state_of(record: KeyRecord, now: float) -> State:
    """Say how a key stands; `retiring` is one in the grace period after its rotation."""
    if is_live(record, now):
        return "active" if record.revoked_at is None else "retiring"
    revoked = record.revoked_at is not None and now >= record.revoked_at
    return "revoked" if revoked else "expired"


def describe(record: KeyRecord, now: float) -> dict[str, object]:
    """Return everything about a key that may be shown, as JSON has it; times in unix seconds."""
    return {
        "key_id": record.key_id,
        "name": record.name,
        "tenant": record.tenant,
        "tier": record.tier,
        "state": state_of(record, now),
        "models": None if record.models is None else sorted(record.models),
        "endpoints": None if record.endpoints is None else sorted(record.endpoints),
        "tags": sorted(record.tags),
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "revoked_at": record.revoked_at,
        "last_used_at": record.last_used_at,
    }


def check_record(record: KeyRecord) -> None:
    """Raise ValueError, naming the attribute, for a record that would be unsafe or useless."""
    if not 0 < len(record.name) <= MAX_NAME_CHARS or not record.name.isprintable():
        raise ValueError(f"name: 1 to {MAX_NAME_CHARS} printable characters")
    if TENANT_PATTERN.fullmatch(record.tenant) is None or record.tenant == ANONYMOUS:
        raise ValueError(
            "tenant: 1 to 63 of A-Z a-z 0-9 . _ -, beginning with a letter or digit,"
            f" and not {ANONYMOUS}"
        )
    if not record.tier:
        raise ValueError("tier: must not be empty")
    models = record.models
    if models is not None and not (models and all(m and m.isprintable() for m in models)):
        raise ValueError("models: name at least one, or leave it out for every model")
    legal = frozenset(get_args(EndpointName))
    if record.endpoints is not None and not (record.endpoints and record.endpoints <= legal):
        raise ValueError(f"endpoints: one or more of {', '.join(sorted(legal))}")
    if len(record.tags) > MAX_TAGS or not all(map(TAG_PATTERN.fullmatch, record.tags)):
        raise ValueError(
            f"tags: up to {MAX_TAGS}, each 1 to 63 of A-Z a-z 0-9 . _ : = / @ + -,"
            " beginning with a letter or digit"
        )
    ends_at = record.expires_at
    if ends_at is not None and not 0 < ends_at - record.created_at <= MAX_LIFE_S:
        raise ValueError("expires: more than 0 and at most 100 years from now")
