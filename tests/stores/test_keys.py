"""What every key store must do, on SQLite and on a real Redis alike."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from extproc.domain import Principal
from extproc.policies.auth import authenticate_key, looks_like_api_key
from extproc.policies.keys import DeadKeyError, UnknownKeyError
from extproc.stores.keys import KeyStore, KeyStoreError
from extproc.stores.redis_keys import RedisKeys
from extproc.stores.sqlite_keys import SqliteKeys
from tests.keyed import NOW, create, works

Open = Callable[[], KeyStore]


@pytest.fixture(name="open_store", params=["sqlite", "redis"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Open the same data as often as asked, as further processes would."""
    with ExitStack() as opened:
        if request.param == "redis":
            url = request.getfixturevalue("redis_server").url
            yield lambda: opened.enter_context(closing(RedisKeys(url)))
        else:
            yield lambda: opened.enter_context(closing(SqliteKeys(tmp_path / "state")))


@pytest.fixture
def store(open_store: Open) -> KeyStore:
    """Open an empty store."""
    return open_store()


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


def test_what_was_stored_comes_back(store: KeyStore, open_store: Open) -> None:
    """Return records and keys as they went in, oldest first, after reopening too."""
    record, key = create(
        store,
        name='Команда "1"\'; --',
        tenant="ci",
        models=frozenset({"a", "b"}),
        endpoints=frozenset({"chat"}),
        tags=frozenset({"team:search", "owner=a@b"}),
        expires_at=NOW + 0.1,
    )
    older, _ = create(store, 2, now=NOW - 1)
    assert looks_like_api_key(key)
    reopened = open_store()
    assert reopened.list() == (older, record)
    assert reopened.get(record.key_id) == record
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
    "a model no terminal can show": ({"models": frozenset({"\udcff"})}, "models"),
    "a tag with a comma": ({"tags": frozenset({"a,b"})}, "tags"),
    "an empty tag": ({"tags": frozenset({""})}, "tags"),
    "tags without end": ({"tags": frozenset(map(str, range(17)))}, "up to 16"),
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


def test_changes_are_noticed(store: KeyStore, open_store: Open) -> None:
    """Say `changed` for others' and own writes until the directory is read again."""
    assert store.changed()
    before = store.directory()
    assert not store.changed()
    record, _ = create(store)
    assert store.changed()
    assert store.directory().epoch > before.epoch
    assert not store.changed()
    other = open_store()
    assert not store.changed()
    other.revoke(record.key_id, now=NOW)
    assert store.changed()
    assert store.directory().epoch == other.directory().epoch
    other.list()
    assert not store.changed()


def test_a_use_is_noted_and_is_no_change(store: KeyStore, open_store: Open) -> None:
    """Keep the latest time a key was used at; nobody loads its keys anew for it."""
    (one, _), (two, _) = create(store, 1), create(store, 2)
    other = open_store()
    store.directory()
    other.directory()
    store.write_used({one.key_id: NOW + 5, two.key_id: NOW + 1})
    other.write_used({one.key_id: NOW + 3, two.key_id: NOW + 2})
    assert not store.changed()
    assert not other.changed()
    assert other.get(one.key_id).last_used_at == NOW + 5
    assert [record.last_used_at for record in store.list()] == [NOW + 5, NOW + 2]
    new, _ = store.rotate(one.key_id, grace_s=0, now=NOW, token=b"\x03" * 32)
    assert new.last_used_at is None
    assert store.get(new.key_id).last_used_at is None


def test_an_unknown_key_is_not_there(store: KeyStore) -> None:
    """Name the key that there is not."""
    with pytest.raises(UnknownKeyError, match="key_0"):
        store.get("key_0")


def test_a_failed_write_does_not_count(store: KeyStore) -> None:
    """Keep the epoch and the lock free after a refused key."""
    epoch = store.directory().epoch
    with pytest.raises(ValueError, match="name"):
        create(store, name="")
    create(store, 1)
    with pytest.raises(KeyStoreError):
        create(store, 1)
    assert store.directory().epoch == epoch + 1


def test_many_writers_lose_nothing(open_store: Open) -> None:
    """Open and write from many threads and connections at the same time."""
    failures: list[Exception] = []
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        try:
            barrier.wait()
            own = open_store()
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
    store = open_store()
    records = store.list()
    assert len({record.tenant for record in records}) == len(records) == 40
    assert store.directory().epoch == 40
