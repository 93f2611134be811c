"""What every key store can do, and its one error.

Knows: key records. Must not know: any implementation. Every call blocks: make it through a thread
on an event loop. Nothing a store keeps is a key: digests and attributes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from extproc.domain import KeyRecord
from extproc.policies.auth import KeyDirectory
from extproc.policies.keys import KeyRequest


class KeyStoreError(Exception):
    """The store cannot be read or written now; the text says where and why, without credentials."""


class KeyStore(Protocol):
    """The keys of one installation. Safe to share between threads; times are unix seconds.

    Every method raises KeyStoreError where the store is not to be had, and then changed nothing
    that its caller would be told of.
    """

    def create(self, request: KeyRequest, *, now: float, token: bytes) -> tuple[KeyRecord, str]:
        """Store a new key and return its record and the key itself, which is not kept.

        `token` is 32 fresh random bytes. Without a tenant in the request the key gets one of its
        own, named after it. Raises ValueError naming what is wrong.
        """

    def get(self, key_id: str) -> KeyRecord:
        """Return one key, a dead one too. Raises UnknownKeyError."""

    def list(self) -> tuple[KeyRecord, ...]:
        """Return every key, dead ones too, oldest first."""

    def rotate(
        self,
        key_id: str,
        *,
        grace_s: float,
        now: float,
        token: bytes,
        expires_at: float | None = None,
    ) -> tuple[KeyRecord, str]:
        """Replace a live key by a new one of the same attributes and return that.

        Raises UnknownKeyError and what `policies.keys.rotate` raises.
        """

    def revoke(self, key_id: str, *, now: float) -> KeyRecord:
        """End a key at `now`; one that ended before keeps its end. Raises UnknownKeyError."""

    def directory(self) -> KeyDirectory:
        """Return every key by digest, as of one moment."""

    def changed(self) -> bool:
        """Say whether `directory()` may differ from the last one returned; cheap to ask often."""

    def write_used(self, used: Mapping[str, float]) -> None:
        """Note when keys were last used, by key id; the later of two times counts.

        It is no change in the sense of `changed`: nobody reloads keys because one was used.
        """

    def close(self) -> None:
        """Let go of the store, which cannot be used any more."""
