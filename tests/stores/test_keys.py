"""The key store: what is on disk, when keys end, and how a change is noticed."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from extproc.domain import KeyRecord, Principal
from extproc.errors import Denied
from extproc.policies.auth import authenticate_key, looks_like_api_key
from extproc.stores.keys import DeadKeyError, KeyStore, UnknownKeyError

NOW = 1_800_000_000.0


@pytest.fixture(name="store")
def fresh_store(tmp_path: Path) -> Iterator[KeyStore]:
    """Open a store in a state directory that does not exist yet."""
    with KeyStore(tmp_path / "state") as store:
        yield store


def create(store: KeyStore, seed: int = 1, **changes: Any) -> tuple[KeyRecord, str]:
    """Create a key from fixed randomness."""
    given: dict[str, Any] = {"name": "ci", "tier": "free", "now": NOW, "token": bytes([seed]) * 32}
    return store.create(**(given | changes))


def works(store: KeyStore, key: str, now: float) -> bool:
    """Say whether a key opens the door at a moment."""
    try:
        authenticate_key(key, store.directory(), now)
    except Denied:
        return False
    return True


def test_no_key_is_ever_on_disk(store: KeyStore) -> None:
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


def test_only_the_owner_may_read(store: KeyStore) -> None:
    """Keep all of the store's files and their directory to the owner."""
    create(store)
    for file in store.path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


def test_a_file_that_stood_open_is_closed(tmp_path: Path) -> None:
    """Take back a mode that lets others read."""
    (tmp_path / "keys.db").touch(mode=0o644)
    with KeyStore(tmp_path) as store:
        assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("grace_s", "after_s", "good"),
    [
        pytest.param(0, 0, False, id="no grace: dead at once"),
        pytest.param(60, 60, False, id="dead at the end of the grace"),
        pytest.param(60, 61, False, id="dead after the grace"),
        pytest.param(60, 59.9, True, id="alive within the grace"),
    ],
)
def test_rotation(store: KeyStore, grace_s: float, after_s: float, *, good: bool) -> None:
    """Let the old key live for the grace, and the new one from the start."""
    old, old_key = create(store, tenant="acme", models=frozenset({"m"}), expires_at=NOW + 1000)
    new, new_key = store.rotate(old.key_id, grace_s=grace_s, now=NOW, token=b"\x02" * 32)
    assert works(store, old_key, NOW + after_s) is good
    assert works(store, new_key, NOW + after_s)
    assert (new.tenant, new.tier, new.models, new.name) == ("acme", "free", old.models, "ci")
    assert (new.expires_at, new.revoked_at) == (NOW + 1000, None)
    assert new.key_id != old.key_id


def test_rotation_never_lengthens_a_life(store: KeyStore) -> None:
    """Keep the earlier end of a key that is rotated again."""
    old, old_key = create(store)
    store.rotate(old.key_id, grace_s=60, now=NOW, token=b"\x02" * 32)
    store.rotate(old.key_id, grace_s=3600, now=NOW, token=b"\x03" * 32)
    assert not works(store, old_key, NOW + 60)


def test_rotation_may_give_another_end(store: KeyStore) -> None:
    """Renew a key that is about to expire."""
    old, _ = create(store, expires_at=NOW + 10)
    new, new_key = store.rotate(
        old.key_id, grace_s=5, now=NOW, token=b"\x02" * 32, expires_at=NOW + 100
    )
    assert new.expires_at == NOW + 100
    assert works(store, new_key, NOW + 50)


def test_dead_and_unknown_keys_do_not_rotate(store: KeyStore) -> None:
    """Never turn a key that is out into one that is in."""
    expired, _ = create(store, 1, expires_at=NOW + 10)
    revoked, _ = create(store, 2)
    store.revoke(revoked.key_id, now=NOW)
    for record in (expired, revoked):
        with pytest.raises(DeadKeyError):
            store.rotate(record.key_id, grace_s=0, now=NOW + 10, token=b"\x03" * 32)
    with pytest.raises(UnknownKeyError):
        store.rotate("key_0", grace_s=0, now=NOW, token=b"\x03" * 32)
    with pytest.raises(UnknownKeyError):
        store.revoke("key_0", now=NOW)
    assert len(store.list()) == 2


def test_revocation_is_at_once_and_keeps_the_first_end(store: KeyStore) -> None:
    """End a key now, one in its grace too, and never later by a second call."""
    record, key = create(store)
    store.rotate(record.key_id, grace_s=3600, now=NOW, token=b"\x02" * 32)
    assert store.revoke(record.key_id, now=NOW + 5).revoked_at == NOW + 5
    assert store.revoke(record.key_id, now=NOW + 9).revoked_at == NOW + 5
    assert not works(store, key, NOW + 5)


def test_like_names_do_not_share_a_tenant(store: KeyStore) -> None:
    """Give each key a tenant of its own, and share one only where it is named."""
    names = ["Team A", "team-a", "team a!", "anonymous", "Команда"]
    tenants = [create(store, seed, name=name)[0].tenant for seed, name in enumerate(names)]
    assert tenants == ["team-a", "team-a-2", "team-a-3", "anonymous-2", "tenant"]
    assert create(store, 9, tenant="team-a")[0].tenant == "team-a"


def test_what_was_stored_comes_back(store: KeyStore) -> None:
    """Return records and keys as they went in, oldest first, after reopening too."""
    record, key = create(
        store, models=frozenset({"a", "b"}), endpoints=frozenset({"chat"}), expires_at=NOW + 1
    )
    older, _ = create(store, 2, now=NOW - 1)
    assert looks_like_api_key(key)
    with KeyStore(store.path.parent) as reopened:
        assert reopened.list() == (older, record)
        assert authenticate_key(key, reopened.directory(), NOW) == Principal(
            "ci", record.key_id, "free", record.models, record.endpoints
        )


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a tenant that looks like an issuer's": ({"tenant": "idp:acme"}, "tenant"),
    "the tenant of callers without a key": ({"tenant": "anonymous"}, "tenant"),
    "an empty tenant": ({"tenant": ""}, "tenant"),
    "a tenant with a line end": ({"tenant": "a\n"}, "tenant"),
    "an empty name": ({"name": ""}, "name"),
    "a name with an escape sequence": ({"name": "\x1b[31m"}, "name"),
    "a name beyond measure": ({"name": "n" * 101}, "name"),
    "no tier": ({"tier": ""}, "tier"),
    "an empty list of models": ({"models": frozenset()}, "models"),
    "an endpoint nobody knows": ({"endpoints": frozenset({"chat", "x"})}, "chat, completions"),
    "an end that is now": ({"expires_at": NOW}, "expires"),
    "an end before now": ({"expires_at": NOW - 1}, "expires"),
    "an end beyond every date": ({"expires_at": float("inf")}, "expires"),
    "an end that is no number": ({"expires_at": float("nan")}, "expires"),
    "too little randomness": ({"token": b"x"}, "random"),
}


@pytest.mark.parametrize(("changes", "word"), WRONG.values(), ids=WRONG.keys())
def test_wrong_attributes_leave_nothing_behind(
    store: KeyStore, changes: dict[str, Any], word: str
) -> None:
    """Refuse a key that would be unsafe or useless, and store nothing."""
    with pytest.raises(ValueError, match=word):
        create(store, **changes)
    assert store.list() == ()


@pytest.mark.parametrize("grace_s", [-1.0, float("inf"), float("nan")])
def test_wrong_grace_leaves_nothing_behind(store: KeyStore, grace_s: float) -> None:
    """Refuse a grace that is no time."""
    record, _ = create(store)
    with pytest.raises(ValueError, match="grace"):
        store.rotate(record.key_id, grace_s=grace_s, now=NOW, token=b"\x02" * 32)
    assert store.list() == (record,)


def test_changes_are_noticed(store: KeyStore) -> None:
    """Say `changed` for others' and own writes until the directory is read again."""
    assert store.changed()
    before = store.directory()
    assert not store.changed()
    record, _ = create(store)
    assert store.changed()
    assert store.directory().epoch > before.epoch
    assert not store.changed()
    with KeyStore(store.path.parent) as other:
        assert not store.changed()
        other.revoke(record.key_id, now=NOW)
        assert store.changed()
        assert store.directory().epoch == other.directory().epoch
        other.list()
    assert not store.changed()


def test_a_failed_write_does_not_count(store: KeyStore) -> None:
    """Keep the epoch and the lock free after a refused key."""
    epoch = store.directory().epoch
    with pytest.raises(ValueError, match="name"):
        create(store, name="")
    create(store, 1)
    with pytest.raises(sqlite3.IntegrityError):
        create(store, 1)
    assert store.directory().epoch == epoch + 1


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    """Open and write from many threads and connections at the same time."""
    failures: list[Exception] = []
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        try:
            barrier.wait()
            with KeyStore(tmp_path / "state") as own:
                for i in range(5):
                    create(own, token=bytes([number, i]) * 16)
        except Exception as error:  # noqa: BLE001 (shown by the main thread)
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with KeyStore(tmp_path / "state") as store:
        records = store.list()
        assert len({record.tenant for record in records}) == len(records) == 40
        assert store.directory().epoch == 40


def test_many_processes_may_open_at_once(tmp_path: Path) -> None:
    """Open a new store from several processes: a command beside a starting server."""
    script = (
        "import sys, pathlib; from extproc.stores.keys import KeyStore; "
        "KeyStore(pathlib.Path(sys.argv[1])).list()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "state")]
    children = [subprocess.Popen(command) for _ in range(4)]
    assert [child.wait() for child in children] == [0] * 4


def test_a_newer_schema_is_refused(store: KeyStore) -> None:
    """Never write to a file of a release that knows more."""
    with sqlite3.connect(store.path) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(sqlite3.DatabaseError, match="newer release"):
        KeyStore(store.path.parent)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Fail with SQLite's error on garbage, and keep the garbage."""
    (tmp_path / "keys.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(sqlite3.DatabaseError):
        KeyStore(tmp_path)
    assert (tmp_path / "keys.db").read_bytes() == b"garbage" * 1000
