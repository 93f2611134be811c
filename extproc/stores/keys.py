"""Keep API keys in SQLite: digests and attributes, never a key.

Knows: SQLite and the file it owns. Must not know: configuration, tiers' meaning, clocks and
randomness (both are arguments), the event loop (every call blocks; call it through a thread).
Failure mode: sqlite3.Error propagates. The server goes on with the directory it has; commands fail.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from extproc.domain import KeyRecord
from extproc.policies.auth import (
    ANONYMOUS,
    MAX_LIFE_S,
    KeyDirectory,
    check_record,
    digest_of,
    is_live,
    new_api_key,
)

FILE_NAME: Final = "keys.db"
LOCK_NAME: Final = "keys.lock"  # held while a store is opened, never longer
BUSY_TIMEOUT_S: Final = 5.0  # a command waits for another command; the server only reads
SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE keys (
  key_id TEXT PRIMARY KEY, digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
  name TEXT NOT NULL, tenant TEXT NOT NULL, tier TEXT NOT NULL,
  models TEXT, endpoints TEXT,
  created_at REAL NOT NULL, expires_at REAL, revoked_at REAL
) STRICT;
CREATE TABLE epoch (only INTEGER PRIMARY KEY CHECK (only = 1), value INTEGER NOT NULL) STRICT;
INSERT INTO epoch VALUES (1, 0);
"""
_COLUMNS: Final = (
    "key_id, digest, name, tenant, tier, models, endpoints, created_at, expires_at, revoked_at"
)


class UnknownKeyError(LookupError):
    """No key has this id."""


class DeadKeyError(LookupError):
    """The key is expired or revoked."""


class KeyStore:
    """The keys of one state directory. Safe to share between threads and processes."""

    def __init__(self, state_dir: Path) -> None:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = state_dir / FILE_NAME
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        with _alone(state_dir / LOCK_NAME):
            # Before SQLite opens it: -wal and -shm take over the mode of the database file.
            self.path.touch(mode=0o600, exist_ok=True)
            self.path.chmod(0o600)
            self._db = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")  # revocations survive power loss
                self._migrate()
            except BaseException:
                self._db.close()
                raise

    def __repr__(self) -> str:
        return f"KeyStore({str(self.path)!r})"

    def __enter__(self) -> KeyStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the store cannot be used any more."""
        with self._lock:
            self._db.close()

    def create(
        self,
        *,
        name: str,
        tier: str,
        now: float,
        token: bytes,
        tenant: str | None = None,
        models: frozenset[str] | None = None,
        endpoints: frozenset[str] | None = None,
        expires_at: float | None = None,
    ) -> tuple[KeyRecord, str]:
        """Store a new key and return its record and the key itself, which is not kept.

        `token` is 32 fresh random bytes, times are unix seconds. Without `tenant` the key gets a
        tenant of its own, named after it: sharing limits and cache with another key is said
        aloud, never the accident of two like names. Raises ValueError naming what is wrong.
        """
        key_id, plaintext = new_api_key(token)
        with self._transaction():
            record = KeyRecord(
                key_id=key_id,
                digest=digest_of(plaintext),
                name=name,
                tenant=self._own_tenant(name) if tenant is None else tenant,
                tier=tier,
                models=models,
                endpoints=endpoints,
                created_at=now,
                expires_at=expires_at,
                revoked_at=None,
            )
            check_record(record)
            self._insert(record)
        return record, plaintext

    def list(self) -> tuple[KeyRecord, ...]:
        """Return every key, dead ones too, oldest first."""
        with self._lock:
            return self._records()

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

        The old one dies `grace_s` from now, or earlier where it already had an earlier end.
        `expires_at` gives the new key another end than the old one's.
        Raises UnknownKeyError, DeadKeyError, or ValueError naming the argument that is wrong.
        """
        if not 0 <= grace_s <= MAX_LIFE_S:
            raise ValueError("grace: 0 to 100 years")
        new_id, plaintext = new_api_key(token)
        with self._transaction():
            old = self._one(key_id)
            if not is_live(old, now):
                raise DeadKeyError(key_id)
            record = replace(
                old,
                key_id=new_id,
                digest=digest_of(plaintext),
                created_at=now,
                expires_at=old.expires_at if expires_at is None else expires_at,
                revoked_at=None,
            )
            check_record(record)
            self._end(old, now + grace_s)
            self._insert(record)
        return record, plaintext

    def revoke(self, key_id: str, *, now: float) -> KeyRecord:
        """End a key at `now`; one that ended before keeps its end. Raises UnknownKeyError."""
        with self._transaction():
            return self._end(self._one(key_id), now)

    def directory(self) -> KeyDirectory:
        """Return every key by digest, as of one moment."""
        with self._lock:
            # Read first: a write in between shows as a change again, never as none.
            seen = self._version()
            self._db.execute("BEGIN")
            try:
                epoch = self._db.execute("SELECT value FROM epoch").fetchone()[0]
                directory = KeyDirectory.of(self._records(), epoch)
            finally:
                self._db.execute("ROLLBACK")
            self._seen = seen
            return directory

    def changed(self) -> bool:
        """Say whether `directory()` may differ from the last one returned: microseconds, no I/O."""
        with self._lock:
            return self._version() != self._seen

    def _version(self) -> tuple[int, int]:
        """Return a value that changes with every commit: others' (SQLite's docs) and our own."""
        return self._db.execute("PRAGMA data_version").fetchone()[0], self._db.total_changes

    def _migrate(self) -> None:
        with self._transaction(counts=False):
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == SCHEMA_VERSION:
                return
            if version != 0:
                raise sqlite3.DatabaseError(
                    f"{self.path}: schema {version} was written by a newer release;"
                    f" this one knows {SCHEMA_VERSION}"
                )
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextmanager
    def _transaction(self, *, counts: bool = True) -> Iterator[None]:
        """Hold the write lock; commit and count the epoch up, or roll everything back."""
        with self._lock:
            # Because two processes read before they write: a deferred lock would fail halfway.
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                if counts:
                    self._db.execute("UPDATE epoch SET value = value + 1")
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _own_tenant(self, name: str) -> str:
        """Return a tenant named after a key that no key, dead ones included, ever had."""
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].rstrip("-") or "tenant"
        taken = {tenant for (tenant,) in self._db.execute("SELECT tenant FROM keys")} | {ANONYMOUS}
        tenant, count = slug, 1
        while tenant in taken:
            count += 1
            tenant = f"{slug}-{count}"
        return tenant

    def _records(self) -> tuple[KeyRecord, ...]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created_at, key_id")  # noqa: S608 (a constant)
        return tuple(_record(row) for row in rows)

    def _one(self, key_id: str) -> KeyRecord:
        query = f"SELECT {_COLUMNS} FROM keys WHERE key_id = ?"  # noqa: S608 (a constant)
        row = self._db.execute(query, (key_id,)).fetchone()
        if row is None:
            raise UnknownKeyError(key_id)
        return _record(row)

    def _insert(self, r: KeyRecord) -> None:
        lists = [None if s is None else json.dumps(sorted(s)) for s in (r.models, r.endpoints)]
        times = (r.created_at, r.expires_at, r.revoked_at)
        self._db.execute(
            f"INSERT INTO keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 (a constant)
            (r.key_id, r.digest, r.name, r.tenant, r.tier, *lists, *times),
        )

    def _end(self, record: KeyRecord, revoked_at: float) -> KeyRecord:
        if record.revoked_at is not None:
            revoked_at = min(revoked_at, record.revoked_at)
        self._db.execute(
            "UPDATE keys SET revoked_at = ? WHERE key_id = ?", (revoked_at, record.key_id)
        )
        return replace(record, revoked_at=revoked_at)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock file: SQLite's own waiting does not cover the switch of a new file to WAL."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _record(row: tuple[Any, ...]) -> KeyRecord:
    key_id, digest, name, tenant, tier, models, endpoints, *times = row
    return KeyRecord(key_id, digest, name, tenant, tier, _names(models), _names(endpoints), *times)


def _names(text: str | None) -> frozenset[str] | None:
    return None if text is None else frozenset(json.loads(text))
