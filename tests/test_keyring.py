"""The keyring: how fresh keys are, what an outage of their store does, and when uses are written."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from extproc import keyring
from extproc.errors import Denied
from extproc.identity import Authenticator
from extproc.keyring import MAX_STALE_S, POLL_S, Keyring, open_key_store
from extproc.policies.auth import KeyDirectory
from extproc.schema import State
from extproc.stores.keys import KeyStoreError
from extproc.stores.sqlite_keys import SqliteKeys
from tests.calls import Watcher
from tests.keyed import NOW, create
from tests.redis_server import RedisServer


class Flaky:
    """A store that is down when told so."""

    def __init__(self, store: SqliteKeys) -> None:
        self.inner = store
        self.down = False

    def _ask(self, name: str, *arguments: Any) -> Any:
        if self.down:
            raise KeyStoreError("gone fishing")
        return getattr(self.inner, name)(*arguments)

    def changed(self) -> bool:
        return bool(self._ask("changed"))

    def directory(self) -> KeyDirectory:
        directory: KeyDirectory = self._ask("directory")
        return directory

    def write_used(self, used: Mapping[str, float]) -> None:
        self._ask("write_used", used)

    def close(self) -> None:
        self.inner.close()


class Scene:
    """A keyring on a store in a directory, with a clock to be turned."""

    def __init__(self, state: Path) -> None:
        self.store = Flaky(SqliteKeys(state))
        self.identity = Authenticator(tiers={"free"}, directory=None)
        self.watcher = Watcher()
        self.now = 0.0
        store: Any = self.store
        self.ring = Keyring(store, self.identity, self.watcher, clock=lambda: self.now)

    def status(self, key: str) -> int:
        """Ask for a caller in one step, as a transport does; the status it is answered with."""
        try:
            self.identity.authenticate({"x-api-key": key}, NOW).send(None)
        except Denied as denied:
            return denied.status
        except StopIteration:
            return 200
        raise AssertionError("suspended")


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Start with an empty store that nobody has read yet."""
    made = Scene(tmp_path / "state")
    yield made
    made.store.close()


async def test_every_worker_takes_up_a_change_with_one_poll(scene: Scene, tmp_path: Path) -> None:
    """Create and revoke in one process; two others know it after one poll each."""
    other = Scene(tmp_path / "state")
    record, key = create(scene.store.inner)
    for ring in (scene.ring, other.ring):
        assert await ring.poll()
    assert (scene.status(key), other.status(key)) == (200, 200)
    scene.store.inner.revoke(record.key_id, now=NOW)
    assert (scene.status(key), other.status(key)) == (200, 200)
    for ring in (scene.ring, other.ring):
        await ring.poll()
    assert (scene.status(key), other.status(key)) == (401, 401)
    other.store.close()


def test_a_poll_and_its_pause_are_well_within_a_second() -> None:
    """Leave the better part of the promised second to the store."""
    assert POLL_S <= 0.25


async def test_before_the_first_read_nobody_is_let_in(scene: Scene) -> None:
    """Answer 503, not 401, and say that the keys were never read."""
    _, key = create(scene.store.inner)
    scene.store.down = True
    assert not await scene.ring.poll()
    assert scene.status(key) == 503
    assert not scene.ring.loaded
    scene.store.down = False
    assert await scene.ring.poll()
    assert scene.status(key) == 200
    assert scene.ring.loaded


async def test_an_outage_is_bridged_up_to_the_stated_age(scene: Scene) -> None:
    """Go on with the keys known last until they are too old, and with fresh ones after it."""
    record, key = create(scene.store.inner)
    await scene.ring.poll()
    scene.store.down = True
    scene.now = MAX_STALE_S
    assert not await scene.ring.poll()
    assert scene.status(key) == 200
    scene.now = MAX_STALE_S + 0.1
    assert not await scene.ring.poll()
    assert scene.status(key) == 503
    assert scene.watcher.failures == [("keys", "read")] * 2
    scene.store.down = False
    assert await scene.ring.poll()
    assert scene.status(key) == 200  # nothing changed meanwhile, and yet it is read again
    scene.store.inner.revoke(record.key_id, now=NOW)
    assert await scene.ring.poll()
    assert scene.status(key) == 401


async def test_the_age_counts_from_the_question_and_not_from_the_answer(scene: Scene) -> None:
    """Take a slow answer for as old as its question."""
    _, key = create(scene.store.inner)
    asked = scene.store.changed

    def slow() -> bool:
        scene.now += 100.0
        return asked()

    await scene.ring.poll()
    scene.store.changed = slow  # type: ignore[method-assign]
    await scene.ring.poll()
    scene.store.down = True
    scene.now = MAX_STALE_S + 0.1
    await scene.ring.poll()
    assert scene.status(key) == 503


async def test_an_outage_is_logged_once(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """Say once that the store fails and why, however often it does, and again the next time."""
    await scene.ring.poll()
    for _ in range(2):
        scene.store.down = True
        for _ in range(3):
            await scene.ring.poll()
        scene.store.down = False
        await scene.ring.poll()
    assert [record.reason for record in caplog.records] == ["gone fishing"] * 2  # type: ignore[attr-defined]


async def test_uses_are_written_in_batches_and_not_by_requests(scene: Scene) -> None:
    """Write nothing at a request, everything later in one call, and what failed with the next."""
    record, key = create(scene.store.inner)
    await scene.ring.poll()
    assert scene.status(key) == 200
    assert scene.store.inner.get(record.key_id).last_used_at is None
    scene.store.down = True
    await scene.ring.write_used()
    assert scene.watcher.failures == [("keys", "write")]
    scene.store.down = False
    await scene.ring.write_used()
    assert scene.store.inner.get(record.key_id).last_used_at == NOW
    scene.store.down = True
    await scene.ring.write_used()  # nothing to write: nothing is asked
    assert len(scene.watcher.failures) == 1


async def test_closing_writes_the_last_uses(scene: Scene, tmp_path: Path) -> None:
    """Lose no use to a restart."""
    record, key = create(scene.store.inner)
    await scene.ring.poll()
    scene.status(key)
    await scene.ring.close()
    with closing(SqliteKeys(tmp_path / "state")) as reopened:
        assert reopened.get(record.key_id).last_used_at == NOW


async def test_watching_polls_and_notes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do one step of each background loop, longer apart after a failure."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(keyring.asyncio, "sleep", pause)
    _, key = create(scene.store.inner)
    await scene.ring.watch()
    assert scene.status(key) == 200
    await scene.ring.note_use()
    assert scene.identity.take_used() == {}
    scene.store.down = True
    await scene.ring.watch()
    assert pauses == [0.25, 5.0, 0.25, 0.75]


async def test_a_redis_that_dies_is_bridged_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve from the cache while Redis is killed, and refuse once that is too old."""
    server = RedisServer()
    server.start()
    try:
        state = State.model_validate(
            {"dir": tmp_path, "store": "redis", "redis": {"url": server.url}}
        )
        clock = [0.0]
        scenes = []
        for _ in range(2):  # two replicas
            identity = Authenticator(tiers={"free"}, directory=None)
            scene = Scene(tmp_path / "unused")
            scene.store.close()
            scene.identity = identity
            scene.ring = Keyring(
                open_key_store(state), identity, scene.watcher, clock=lambda: clock[0]
            )
            scenes.append(scene)
        with closing(open_key_store(state)) as command:
            record, key = create(command)
            _, other = create(command, 2)
            await asyncio.gather(*(scene.ring.poll() for scene in scenes))
            assert [scene.status(key) for scene in scenes] == [200, 200]
            command.revoke(record.key_id, now=NOW)
            await asyncio.gather(*(scene.ring.poll() for scene in scenes))
            assert [scene.status(key) for scene in scenes] == [401, 401]
            server.kill()
            await asyncio.gather(*(scene.ring.poll() for scene in scenes))
            assert [scene.status(other) for scene in scenes] == [200, 200]
            server.start()  # without its data: still no reason to call a key unknown
            await asyncio.gather(*(scene.ring.poll() for scene in scenes))
            assert [scene.status(other) for scene in scenes] == [200, 200]
            clock[0] = MAX_STALE_S + 1
            await asyncio.gather(*(scene.ring.poll() for scene in scenes))
            assert [scene.status(other) for scene in scenes] == [503, 503]
        for scene in scenes:
            await scene.ring.close()
    finally:
        server.stop()
