"""`llm-edge serve` with several workers, as processes: no worker is left alone or left over."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.e2e.ports import free_port
from tests.e2e.stack import wait_for
from tests.redis_server import RedisServer

PROVIDER = {"dialect": "openai", "endpoint": "http://127.0.0.1:9/v1"}


class Served:
    """A processor of two workers, without an Envoy."""

    def __init__(self, directory: Path, **sections: Any) -> None:
        self.state = directory / "state"
        self.port = free_port()
        self.log = directory / "log"
        config = {
            "server": {"workers": 2, "drain_seconds": 20},
            "admin": {"port": self.port},
            "providers": {"p": PROVIDER},
            "models": {"m": {"targets": [{"provider": "p", "model": "m"}]}},
            **sections,
        }
        config["state"]["dir"] = str(self.state)
        file = directory / "llm-edge.yaml"
        file.write_text(yaml.safe_dump(config))
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "extproc.cli", "serve", "--config", str(file)],
                stdout=out,
                stderr=out,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def workers(self) -> list[psutil.Process]:
        """Wait until both are up and return them."""
        wait_for("the workers", lambda: "ready admin=" in self.log.read_text())
        return psutil.Process(self.process.pid).children()

    def get(self, path: str) -> httpx.Response:
        """Ask the admin port."""
        return httpx.get(f"http://127.0.0.1:{self.port}{path}")


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """Start a Redis to share."""
    server = RedisServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def served(tmp_path: Path, redis: RedisServer) -> Iterator[Served]:
    """Serve on it."""
    made = Served(tmp_path, state={"store": "redis", "redis": {"url": redis.url}})
    yield made
    if made.process.poll() is None:
        made.process.kill()
    made.process.wait()


def gone(family: list[psutil.Process]) -> bool:
    return not any(one.is_running() for one in family)


def test_killed_it_leaves_no_worker_behind(served: Served) -> None:
    """Whoever starts it again finds every socket free."""
    family = served.workers()
    assert len(family) == 2
    conditions = served.get("/readyz").json()["conditions"]
    assert ["no admin socket" in c["detail"] for c in conditions if "envoy" in c["name"]] == [
        True
    ] * 2
    served.process.kill()
    wait_for("the workers to leave", lambda: gone(family))
    assert "Traceback" not in served.log.read_text()


def test_one_signal_ends_all(served: Served) -> None:
    """With code 0, and the sockets that are its own to take away."""
    family = served.workers()
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(30) == 0, served.log.read_text()
    assert gone(family)
    assert list(served.state.glob("admin-*.sock")) == []
    assert list(served.state.glob("envoy/log-*.sock")) == []


def test_a_second_signal_does_not_wait(served: Served) -> None:
    """For a worker that hangs, for example."""
    family = served.workers()
    for worker in family:
        worker.suspend()
    served.process.send_signal(signal.SIGTERM)
    wait_for("the first to be heard", lambda: "draining" in served.log.read_text())
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(10) == 1
    wait_for("the workers to end", lambda: gone(family))


def test_a_worker_that_cannot_start_ends_it(tmp_path: Path, redis: RedisServer) -> None:
    """With the worker's own message and code: there is nothing to go on with."""
    issuer = {"issuer": "https://i", "audience": "a", "algorithms": ["HS256"]}
    issuer |= {"secret": {"env": "NOBODY_SET_THIS"}, "default_tier": "free"}
    served = Served(
        tmp_path,
        state={"store": "redis", "redis": {"url": redis.url}},
        auth={"jwt": [issuer]},
    )
    assert served.process.wait(30) == 2
    told = served.log.read_text()
    assert "NOBODY_SET_THIS" in told
    assert "Traceback" not in told


def test_a_port_that_is_taken_ends_it(tmp_path: Path, redis: RedisServer) -> None:
    """Before any worker is started."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        state = {"store": "redis", "redis": {"url": redis.url}}
        served = Served(tmp_path, state=state, admin={"port": port})
        assert served.process.wait(30) == 1
    told = served.log.read_text()
    assert f"admin 127.0.0.1:{port}: " in told
    assert "Traceback" not in told


def test_without_a_redis_it_is_not_started(tmp_path: Path) -> None:
    """Only `run` brings one along."""
    served = Served(tmp_path, state={"store": "redis"})
    assert served.process.wait(30) == 2
    assert "state.redis: write {url: redis://HOST:PORT/0}" in served.log.read_text()
