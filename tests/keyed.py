"""Keys of fixed randomness for tests of key stores and what uses them.

Knows: the key store's protocol. Must not know: any implementation.
"""

from __future__ import annotations

from typing import Any

from extproc.domain import KeyRecord
from extproc.errors import Denied
from extproc.policies.auth import authenticate_key
from extproc.policies.keys import KeyRequest
from extproc.stores.keys import KeyStore

NOW = 1_800_000_000.0


def create(store: KeyStore, seed: int = 1, **changes: Any) -> tuple[KeyRecord, str]:
    """Create a key from fixed randomness."""
    token = changes.pop("token", bytes([seed]) * 32)
    now = changes.pop("now", NOW)
    request = KeyRequest(**({"name": "ci", "tier": "free"} | changes))
    return store.create(request, now=now, token=token)


def works(store: KeyStore, key: str, now: float = NOW) -> bool:
    """Say whether a key opens the door at a moment."""
    try:
        authenticate_key(key, store.directory(), now)
    except Denied:
        return False
    return True
