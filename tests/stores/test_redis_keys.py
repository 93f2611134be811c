"""Keys in Redis: what is kept there, what a loss of it means, and what a slow one costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing

import pytest

from extproc.policies.auth import authenticate_key
from extproc.stores import redis_keys
from extproc.stores.keys import KeyStoreError
from extproc.stores.redis_keys import PREFIX, RedisKeys
from tests.keyed import NOW, create, works
from tests.redis_server import RedisServer


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[RedisKeys]:
    """Open an empty store."""
    with closing(RedisKeys(redis_server.url)) as opened:
        yield opened


def test_no_key_is_ever_in_redis(store: RedisKeys, redis_server: RedisServer) -> None:
    """Find neither keys nor their randomness in anything Redis holds or was sent."""
    watcher = redis_server.client.monitor()
    with watcher:
        record, key = create(store)
        _, rotated = store.rotate(record.key_id, grace_s=60, now=NOW, token=b"\x02" * 32)
        store.revoke(record.key_id, now=NOW)
        redis_server.client.echo("end")
        seen = ""
        while "ECHO end" not in seen:
            seen += watcher.next_command()["command"]
    names = list(redis_server.client.scan_iter())
    dumps = b"".join(redis_server.client.dump(name) for name in names)
    held = b"".join(
        json.dumps(str(redis_server.client.hgetall(n))).encode() for n in names if b":record:" in n
    )
    assert record.digest.hex().encode() in held
    for secret in (key[3:], rotated[3:], (b"\x01" * 32).hex(), (b"\x02" * 32).hex()):
        assert secret not in seen
        assert secret.encode() not in dumps + held


def test_all_names_are_in_one_slot(store: RedisKeys, redis_server: RedisServer) -> None:
    """Use one hash tag, so that a script may touch them all on a cluster."""
    record, _ = create(store)
    store.write_used({record.key_id: NOW})
    names = [name.decode() for name in redis_server.client.scan_iter()]
    assert sorted(name.removeprefix(PREFIX) for name in names) == [
        ":index",
        ":meta",
        f":record:{record.key_id}",
        ":tenants",
        ":used",
    ]
    assert all(name.startswith("{llm-edge:keys}:") for name in names)


def test_only_what_changed_is_fetched(store: RedisKeys, redis_server: RedisServer) -> None:
    """Read one record for one change, however many there are."""
    records = [create(store, seed)[0] for seed in range(20)]
    store.directory()
    before = redis_server.client.info("commandstats")["cmdstat_hgetall"]["calls"]
    with closing(RedisKeys(redis_server.url)) as other:
        other.revoke(records[3].key_id, now=NOW)
    during = redis_server.client.info("commandstats")["cmdstat_hgetall"]["calls"]
    directory = store.directory()
    after = redis_server.client.info("commandstats")["cmdstat_hgetall"]["calls"]
    assert (during - before, after - during) == (1, 1)
    assert len(directory) == 20
    assert directory.keys[records[3].digest].revoked_at == NOW


def test_flushed_keys_are_an_outage_and_not_their_end(
    store: RedisKeys, redis_server: RedisServer
) -> None:
    """Refuse to take an emptied Redis for one without keys, until somebody writes new ones."""
    _, key = create(store)
    known = store.directory()
    redis_server.client.flushall()
    for ask in (store.changed, store.directory):
        with pytest.raises(KeyStoreError, match="the keys are gone"):
            ask()
    assert authenticate_key(key, known, NOW).tenant == "ci"
    _, new_key = create(store, 2)
    assert store.changed()
    assert works(store, new_key)
    assert not works(store, key)


def test_the_scripts_may_be_flushed(store: RedisKeys, redis_server: RedisServer) -> None:
    """Send the script again to a Redis that has forgotten it."""
    create(store, 1)
    redis_server.client.script_flush()
    create(store, 2)
    assert len(store.list()) == 2


def test_writes_lost_in_a_failover_are_not_kept(
    store: RedisKeys, redis_server: RedisServer
) -> None:
    """Read everything again when the epoch went back, and after every failure."""
    create(store, 1)
    kept = {n: redis_server.client.dump(n) for n in redis_server.client.scan_iter()}
    _, lost = create(store, 2)
    assert works(store, lost)
    redis_server.client.flushall()
    for name, value in kept.items():
        redis_server.client.restore(name, 0, value)
    assert store.changed()
    assert not works(store, lost)
    with closing(RedisKeys(redis_server.url)) as other:  # gives out the lost epoch again
        _, other_key = create(other, 3)
    assert works(store, other_key)


def test_after_a_failure_everything_is_read_again(
    store: RedisKeys, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trust no epoch across an outage: the same one may stand for other writes."""
    create(store, 1)
    store.directory()
    with monkeypatch.context() as broken:
        broken.setattr(redis_keys, "PREFIX", "{llm-edge:keys}:record")
        redis_server.client.set("{llm-edge:keys}:record:meta", "not a hash")
        with pytest.raises(KeyStoreError, match="WRONGTYPE"):
            store.changed()
    assert store.changed()


def test_an_unreadable_record_is_no_missing_key(
    store: RedisKeys, redis_server: RedisServer
) -> None:
    """Fail rather than drop a key that was evicted or overwritten."""
    record, _ = create(store)
    redis_server.client.delete(f"{PREFIX}:record:{record.key_id}")
    for ask in (store.directory, store.list, lambda: store.get(record.key_id)):
        with pytest.raises(KeyStoreError, match=f"{record.key_id} is not readable"):
            ask()


def test_others_that_get_ahead_are_waited_out(
    store: RedisKeys, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decide anew when somebody wrote in between, and give up after enough of that."""
    commit = store._commit
    rivals = iter(range(10, 13))

    def commit_late(incarnation: str, epoch: int, records: object) -> bool:
        with closing(RedisKeys(redis_server.url)) as rival:
            for seed in rivals:
                create(rival, seed, name="ci")
                break
        return commit(incarnation, epoch, records)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "_commit", commit_late)
    record, _ = create(store, 1, name="ci")
    assert record.tenant == "ci-4"  # those of the three rivals were taken
    assert len(store.list()) == 4
    monkeypatch.setattr(store, "_commit", lambda *_: False)
    with pytest.raises(KeyStoreError, match="try again"):
        create(store, 2)


def test_a_dead_or_hung_redis_is_reported_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the place and not the password, and wait no longer than the time limit."""
    monkeypatch.setattr(redis_keys, "TIMEOUT_S", 0.1)
    server = RedisServer()
    with closing(RedisKeys(server.url)) as store:
        with pytest.raises(KeyStoreError, match=r"redis\.sock"):
            store.changed()
        server.start()
        try:
            create(store, 1)
            server.pause()
            with pytest.raises(KeyStoreError, match=r"[Tt]imeout"):
                store.changed()
            server.resume()
            assert store.changed()  # nothing of the late answer is left on a connection
            assert len(store.list()) == 1
        finally:
            server.stop()
        with pytest.raises(KeyStoreError):
            store.list()


def test_a_password_is_not_shown() -> None:
    """Show where Redis is, never how to get in."""
    store = RedisKeys("redis://user:hunter2@127.0.0.1:1/3")
    assert repr(store) == "RedisKeys('127.0.0.1:1/3')"
    with pytest.raises(KeyStoreError) as caught:
        store.changed()
    assert "hunter2" not in str(caught.value)
    assert "127.0.0.1:1/3" in str(caught.value)
