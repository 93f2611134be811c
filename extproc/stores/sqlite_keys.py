"""Keep API keys in a SQLite file: digests and attributes, never a key.

Knows: SQLite and the file it owns. Must not know: configuration, tiers' meaning, clocks and
randomness (both are arguments), the event loop (every call blocks; call it through a thread).
Failure mode: KeyStoreError. The server goes on with the directory it has; commands fail.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from extproc.domain import KeyRecord
from extproc.policies import keys
from extproc.policies.auth import KeyDirectory
from extproc.policies.keys import KeyRequest, UnknownKeyError
from extproc.stores.keys import KeyStoreError

FILE_NAME: Final = "keys.db"
LOCK_NAME: Final = "keys.lock"  # held while a store is opened, never longer
BUSY_TIMEOUT_S: Final = 5.0  # a command waits for another command; the server hardly writes
SCHEMA_VERSION: Final = 2
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
# From version 1 on. `used` is a table of its own, because its rows change without being news.
_TAGS_AND_USE: Final = """
ALTER TABLE keys ADD COLUMN tags TEXT;
CREATE TABLE used (key_id TEXT PRIMARY KEY, at REAL NOT NULL) STRICT, WITHOUT ROWID;
"""
_COLUMNS: Final = (
    "key_id, digest, name, tenant, tier, models, endpoints, created_at, expires_at, revoked_at,"
    " tags"
)
_SELECT: Final = f"SELECT {_COLUMNS}, at FROM keys LEFT JOIN used USING (key_id)"  # noqa: S608 (a constant)
_INSERT: Final = f"INSERT INTO keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 (a constant)


class SqliteKeys:
    """The keys of one state directory. Safe to share between threads and processes.

    A `stores.keys.KeyStore`; what its methods promise is said there.
    """

    def __init__(self, state_dir: Path) -> None:
        """Open or create the file. Raises KeyStoreError."""
        self.path = state_dir / FILE_NAME
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._epoch: int | None = None
        with self._reported():
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _alone(state_dir / LOCK_NAME):
                self._db = self._open()

    def __repr__(self) -> str:
        return f"SqliteKeys({str(self.path)!r})"

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def create(self, request: KeyRequest, *, now: float, token: bytes) -> tuple[KeyRecord, str]:
        """Store a new key."""
        with self._transaction():
            tenant = request.tenant
            if tenant is None:
                rows = self._db.execute("SELECT DISTINCT tenant FROM keys")
                tenant = keys.own_tenant(request.name, {taken for (taken,) in rows})
            record, plaintext = keys.make(request, tenant, now=now, token=token)
            self._insert(record)
        return record, plaintext

    def get(self, key_id: str) -> KeyRecord:
        """Return one key."""
        with self._reported(), self._lock:
            return self._one(key_id)

    def list(self) -> tuple[KeyRecord, ...]:
        """Return every key."""
        with self._reported(), self._lock:
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
        """Replace a live key by a new one."""
        keys.check_grace(grace_s)
        with self._transaction():
            old, new, plaintext = keys.rotate(
                self._one(key_id), grace_s=grace_s, now=now, token=token, expires_at=expires_at
            )
            self._end(old)
            self._insert(new)
        return new, plaintext

    def revoke(self, key_id: str, *, now: float) -> KeyRecord:
        """End a key."""
        with self._transaction():
            ended = keys.end(self._one(key_id), now)
            self._end(ended)
        return ended

    def directory(self) -> KeyDirectory:
        """Return every key by digest."""
        with self._reported(), self._lock:
            # Read first: a write in between shows as a change again, never as none.
            seen = self._version()
            self._db.execute("BEGIN")
            try:
                epoch = self._read_epoch()
                directory = KeyDirectory.of(self._records(), epoch)
            finally:
                self._db.execute("ROLLBACK")
            self._seen, self._epoch = seen, epoch
            return directory

    def changed(self) -> bool:
        """Ask in microseconds, without I/O as long as nobody wrote at all."""
        with self._reported(), self._lock:
            seen = self._version()
            if seen == self._seen:
                return False
            if self._read_epoch() != self._epoch:
                return True
            self._seen = seen  # somebody wrote when keys were used
            return False

    def write_used(self, used: Mapping[str, float]) -> None:
        """Note when keys were last used."""
        with self._transaction(counts=False):
            self._db.executemany(
                "INSERT INTO used VALUES (?, ?)"
                " ON CONFLICT (key_id) DO UPDATE SET at = max(at, excluded.at)",
                used.items(),
            )

    def _open(self) -> sqlite3.Connection:
        # Before SQLite opens it: -wal and -shm take over the mode of the database file.
        self.path.touch(mode=0o600, exist_ok=True)
        self.path.chmod(0o600)
        db = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")  # revocations survive power loss
            db.execute("BEGIN IMMEDIATE")
            _migrate(db)
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    def _version(self) -> tuple[int, int]:
        """Return a value that changes with every commit: others' (SQLite's docs) and our own."""
        return self._db.execute("PRAGMA data_version").fetchone()[0], self._db.total_changes

    def _read_epoch(self) -> int:
        return int(self._db.execute("SELECT value FROM epoch").fetchone()[0])

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turn what SQLite and the file system raise into KeyStoreError."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise KeyStoreError(f"{self.path}: {error}") from error

    @contextmanager
    def _transaction(self, *, counts: bool = True) -> Iterator[None]:
        """Hold the write lock; commit and count the epoch up, or roll everything back."""
        with self._reported(), self._lock:
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

    def _records(self) -> tuple[KeyRecord, ...]:
        rows = self._db.execute(f"{_SELECT} ORDER BY created_at, key_id")
        return tuple(_record(row) for row in rows)

    def _one(self, key_id: str) -> KeyRecord:
        row = self._db.execute(f"{_SELECT} WHERE key_id = ?", (key_id,)).fetchone()
        if row is None:
            raise UnknownKeyError(key_id)
        return _record(row)

    def _insert(self, r: KeyRecord) -> None:
        lists = [None if s is None else json.dumps(sorted(s)) for s in (r.models, r.endpoints)]
        times = (r.created_at, r.expires_at, r.revoked_at)
        tags = json.dumps(sorted(r.tags)) if r.tags else None
        row = (r.key_id, r.digest, r.name, r.tenant, r.tier, *lists, *times, tags)
        self._db.execute(_INSERT, row)

    def _end(self, record: KeyRecord) -> None:
        self._db.execute(
            "UPDATE keys SET revoked_at = ? WHERE key_id = ?", (record.revoked_at, record.key_id)
        )


def _migrate(db: sqlite3.Connection) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise sqlite3.DatabaseError(
            f"schema {version} was written by a newer release; this one knows {SCHEMA_VERSION}"
        )
    script = (_SCHEMA + _TAGS_AND_USE) if version == 0 else _TAGS_AND_USE if version == 1 else ""
    for statement in filter(str.strip, script.split(";")):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


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
    key_id, digest, name, tenant, tier, models, endpoints, *times, tags, used = row
    created_at, expires_at, revoked_at = times
    return KeyRecord(
        key_id=key_id,
        digest=digest,
        name=name,
        tenant=tenant,
        tier=tier,
        models=_names(models),
        endpoints=_names(endpoints),
        created_at=created_at,
        expires_at=expires_at,
        revoked_at=revoked_at,
        tags=_names(tags) or frozenset(),
        last_used_at=used,
    )


def _names(text: str | None) -> frozenset[str] | None:
    return None if text is None else frozenset(json.loads(text))
