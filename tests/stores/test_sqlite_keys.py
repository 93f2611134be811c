"""Keys in SQLite: what is on disk, who may read it, and what becomes of an older file."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from extproc.stores.keys import KeyStoreError
from extproc.stores.sqlite_keys import SqliteKeys
from tests.keyed import NOW, create, works


@pytest.fixture(name="store")
def fresh_store(tmp_path: Path) -> Iterator[SqliteKeys]:
    """Open a store in a state directory that does not exist yet."""
    with closing(SqliteKeys(tmp_path / "state")) as store:
        yield store


def test_no_key_is_ever_on_disk(store: SqliteKeys) -> None:
    """Find neither keys nor their randomness in any file of the store."""
    record, key = create(store)
    _, rotated = store.rotate(record.key_id, grace_s=60, now=NOW, token=b"\x02" * 32)
    store.revoke(record.key_id, now=NOW)
    files = list(store.path.parent.iterdir())
    assert {file.name for file in files} == {"keys.db", "keys.db-wal", "keys.db-shm", "keys.lock"}
    content = b"".join(file.read_bytes() for file in files)
    assert record.digest in content
    for secret in (
        key.encode(),
        key[3:].encode(),
        rotated[3:].encode(),
        b"\x01" * 32,
        b"\x02" * 32,
    ):
        assert secret not in content


def test_only_the_owner_may_read(store: SqliteKeys) -> None:
    """Keep all of the store's files and their directory to the owner."""
    create(store)
    for file in store.path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


def test_a_file_that_stood_open_is_closed(tmp_path: Path) -> None:
    """Take back a mode that lets others read."""
    (tmp_path / "keys.db").touch(mode=0o644)
    with closing(SqliteKeys(tmp_path)) as store:
        assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_many_processes_may_open_at_once(tmp_path: Path) -> None:
    """Open a new store from several processes: a command beside a starting server."""
    script = (
        "import sys, pathlib; from extproc.stores.sqlite_keys import SqliteKeys; "
        "SqliteKeys(pathlib.Path(sys.argv[1])).list()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "state")]
    children = [subprocess.Popen(command) for _ in range(4)]
    assert [child.wait() for child in children] == [0] * 4


def test_a_newer_schema_is_refused(store: SqliteKeys) -> None:
    """Never write to a file of a release that knows more."""
    with sqlite3.connect(store.path) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(KeyStoreError, match="newer release"):
        SqliteKeys(store.path.parent)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Fail with SQLite's error on garbage, and keep the garbage."""
    (tmp_path / "keys.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(KeyStoreError, match=r"keys\.db"):
        SqliteKeys(tmp_path)
    assert (tmp_path / "keys.db").read_bytes() == b"garbage" * 1000


VERSION_1 = """
CREATE TABLE keys (
  key_id TEXT PRIMARY KEY, digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
  name TEXT NOT NULL, tenant TEXT NOT NULL, tier TEXT NOT NULL,
  models TEXT, endpoints TEXT,
  created_at REAL NOT NULL, expires_at REAL, revoked_at REAL
) STRICT;
CREATE TABLE epoch (only INTEGER PRIMARY KEY CHECK (only = 1), value INTEGER NOT NULL) STRICT;
INSERT INTO epoch VALUES (1, 7);
PRAGMA user_version = 1;
"""


def test_an_older_file_is_taken_over(store: SqliteKeys, tmp_path: Path) -> None:
    """Keep the keys and the epoch of a file from before tags and uses."""
    record, key = create(store)
    old = tmp_path / "old"
    old.mkdir()
    with closing(sqlite3.connect(old / "keys.db")) as db:
        db.executescript(VERSION_1)
        row = (record.key_id, record.digest, "ci", "ci", "free", None, None, NOW, None, None)
        db.execute(f"INSERT INTO keys VALUES ({','.join('?' * 10)})", row)
        db.commit()
    for _ in range(2):
        with closing(SqliteKeys(old)) as migrated:
            assert migrated.list() == (record,)
            assert migrated.directory().epoch == 7
            assert works(migrated, key)
    with closing(SqliteKeys(old)) as migrated:
        assert create(migrated, 2, tags=frozenset({"a"}))[0].tags == {"a"}


def test_a_file_in_use_by_another_is_reported(store: SqliteKeys) -> None:
    """Say that the store is not to be had when somebody holds it for too long."""
    create(store)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store._db.execute("PRAGMA busy_timeout = 1")
        with pytest.raises(KeyStoreError, match="locked"):
            create(store, 2)
        with pytest.raises(KeyStoreError, match="locked"):
            store.write_used({"key_1": NOW})
        other.execute("ROLLBACK")
    assert len(store.list()) == 1
