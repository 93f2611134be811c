"""What the doctor finds on a machine that is well, and on ones that are not."""

from __future__ import annotations

import json
import os
import resource
import socket
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from extproc import checks, doctor
from extproc.cli import main
from extproc.config import load
from extproc.doctor import MAX_SOCKET_PATH_BYTES, Finding, examine, kernel_synchronised
from extproc.embedded import MISSING
from extproc.stores.sqlite_keys import SqliteKeys
from tests.keyed import create
from tests.redis_server import RedisServer

NOW = 4_000_000_000.0  # later than any file of a test


def free_port() -> int:
    """Ask the kernel for a port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def written(tmp_path: Path) -> dict[str, Any]:
    """Write a configuration that runs."""
    return {
        "server": {"port": free_port(), "max_connections": 10},
        "admin": {"port": free_port()},
        "state": {"dir": str(tmp_path / "state")},
        "providers": {"local": {"dialect": "openai", "endpoint": "http://127.0.0.1:9/v1"}},
    }


@pytest.fixture(autouse=True)
def quick_bundle(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Leave Envoy's judgement of the bundle, which takes seconds, to the test that asks for it."""
    if "whole" not in request.keywords:
        monkeypatch.setattr(doctor, "rejected_bundle", lambda *_: [])


def found(
    directory: Path, written: Mapping[str, Any], env: Mapping[str, str] | None = None, **more: Any
) -> dict[str, list[Finding]]:
    """Examine, and return the findings by name."""
    file = directory / "llm-edge.yaml"
    file.write_text(yaml.safe_dump(dict(written)))
    values: dict[str, Any] = {"now": NOW, "synchronised": lambda: True, **more}
    findings: dict[str, list[Finding]] = {}
    for finding in examine(load([file], {}), env or {}, **values):
        findings.setdefault(finding.name, []).append(finding)
    return findings


def test_a_machine_that_is_well(tmp_path: Path, written: dict[str, Any]) -> None:
    """Find nothing, and leave nothing behind."""
    findings = found(tmp_path, written)
    assert [f for fs in findings.values() for f in fs if f.verdict != "ok"] == []
    assert set(findings) == {
        *("envoy", "secrets", "bundle", "directory", "port", "keys", "clock", "files")
    }
    assert "1.40" in findings["envoy"][0].detail
    assert not (tmp_path / "state").exists()


def test_secrets_that_are_absent_are_named(tmp_path: Path, written: dict[str, Any]) -> None:
    """Name each by its place, and ask Envoy only when they are there."""
    written["providers"]["local"]["api_key"] = {"env": "NOT_SET"}
    written["admin"]["token"] = {"file": str(tmp_path / "nowhere")}
    findings = found(tmp_path, written)
    assert [f.verdict for f in findings["secrets"]] == ["fail", "fail"]
    assert "providers.local.api_key: $NOT_SET" in findings["secrets"][0].detail
    assert "bundle" not in findings
    (tmp_path / "nowhere").write_text("hunter2")
    findings = found(tmp_path, written, {"NOT_SET": "hunter2"})
    assert findings["secrets"][0].verdict == "ok"
    assert "hunter2" not in str(findings)


def test_a_port_in_use_is_named(tmp_path: Path, written: dict[str, Any]) -> None:
    """Say which setting asks for the port that somebody has."""
    simulated = {"dialect": "openai", "endpoint": "http://127.0.0.1:1/v1", "simulated": True}
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        written["admin"]["port"] = port
        written["providers"]["sim"] = {**simulated, "endpoint": f"http://127.0.0.1:{port}/v1"}
        ports = found(tmp_path, written)["port"]
    assert [f.verdict for f in ports] == ["ok", "fail", "fail"]
    assert ports[1].detail.startswith(f"admin.port: 127.0.0.1:{port} cannot be had: ")
    assert ports[2].detail.startswith("providers.sim: ")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(lambda d: (d.mkdir(), d.chmod(0o777)), "others may write", id="open to all"),
        pytest.param(lambda d: (d.mkdir(), d.chmod(0o720)), "others may write", id="to a group"),
        pytest.param(lambda d: d.write_text(""), "is no directory", id="a file"),
    ],
)
def test_a_directory_others_could_write_to_is_refused(
    tmp_path: Path, written: dict[str, Any], make: Any, says: str
) -> None:
    """Never put sockets where somebody else may put one of theirs."""
    make(tmp_path / "state")
    findings = found(tmp_path, written)["directory"]
    assert findings[0].verdict == "fail"
    assert says in findings[0].detail


def test_a_directory_of_our_own_is_fine(tmp_path: Path, written: dict[str, Any]) -> None:
    """Accept what the gateway itself makes."""
    (tmp_path / "state" / "envoy").mkdir(parents=True)
    (tmp_path / "state").chmod(0o700)
    assert {f.verdict for f in found(tmp_path, written)["directory"]} == {"ok"}


def test_paths_of_sockets_have_an_end(tmp_path: Path, written: dict[str, Any]) -> None:
    """Say so before the kernel refuses to bind."""
    written["state"]["dir"] = str(tmp_path / ("d" * 100))
    (finding,) = found(tmp_path, written)["sockets"]
    assert finding.verdict == "fail"
    assert "shorten state.dir" in finding.detail


def test_the_sockets_of_workers_are_paths_too(tmp_path: Path, written: dict[str, Any]) -> None:
    """Of several the names are longer, and grow with their number."""
    written["state"] |= {"store": "redis", "redis": {"url": "redis://127.0.0.1:1"}}
    room = MAX_SOCKET_PATH_BYTES - len(os.fsencode(tmp_path)) - len("//envoy/envoy-admin.sock")
    written["state"]["dir"] = str(tmp_path / ("d" * room))
    assert "sockets" not in found(tmp_path, written)
    written["server"]["workers"] = 11
    (finding,) = found(tmp_path, written)["sockets"]
    assert finding.verdict == "fail"


def test_keys_in_a_redis_that_comes_along(
    tmp_path: Path, written: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it does not run nothing is wrong, but where there is none to start."""
    written["state"]["store"] = "redis"
    (finding,) = found(tmp_path, written)["keys"]
    assert (finding.verdict, finding.detail) == ("ok", "in the Redis that `llm-edge run` starts")
    monkeypatch.setattr(checks, "redis_binary", lambda: None)
    (finding,) = found(tmp_path, written)["keys"]
    assert (finding.verdict, finding.detail) == ("fail", MISSING)


def test_keys_are_counted_where_they_are(tmp_path: Path, written: dict[str, Any]) -> None:
    """Open the store that the configuration names: a file, a Redis, a Redis that is down."""
    with closing(SqliteKeys(tmp_path / "state")) as store:
        create(store)
    assert "1 in " in found(tmp_path, written)["keys"][0].detail
    server = RedisServer()
    written["state"] |= {"store": "redis", "redis": {"url": server.url}}
    (down,) = found(tmp_path, written)["keys"]
    assert down.verdict == "fail"
    assert "redis.sock" in down.detail
    server.start()
    try:
        assert found(tmp_path, written)["keys"] == [Finding("keys", "ok", "0 in Redis")]
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("synchronised", "verdict"),
    [(True, "ok"), (None, "ok"), (False, "warn")],
    ids=["synchronised", "unknown", "not synchronised"],
)
def test_the_clock(
    tmp_path: Path, written: dict[str, Any], synchronised: bool | None, verdict: str
) -> None:
    """Warn of a clock that nobody sets."""
    (finding,) = found(tmp_path, written, synchronised=lambda: synchronised)["clock"]
    assert finding.verdict == verdict


def test_a_clock_that_was_set_back(tmp_path: Path, written: dict[str, Any]) -> None:
    """Notice files of ours from the future: keys would live again."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / "keys.lock").touch()
    os.utime(state / "keys.lock", (NOW + 3_600, NOW + 3_600))
    (finding,) = found(tmp_path, written)["clock"]
    assert finding.verdict == "fail"
    assert "3600 s behind a file" in finding.detail


def test_the_kernel_is_asked_without_being_told() -> None:
    """Read the state of the clock; any answer is one of three."""
    assert kernel_synchronised() in {True, False, None}


def test_too_few_files_are_warned_of(
    tmp_path: Path, written: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files a connection, the caller's and the provider's."""
    for limit, verdict in ((19, "warn"), (20, "ok"), (resource.RLIM_INFINITY, "ok")):
        monkeypatch.setattr(doctor.resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert found(tmp_path, written)["files"][0].verdict == verdict


@pytest.mark.parametrize(
    ("script", "verdict", "says"),
    [
        pytest.param("echo 'envoy version: x/1.41.0/Clean'", "warn", "1.41.0", id="another"),
        pytest.param("echo hello", "warn", "unknown version", id="something else"),
        pytest.param("exit 3", "fail", "exit status 3", id="broken"),
        pytest.param(None, "fail", "not found", id="none"),
    ],
)
def test_envoys_that_are_not_ours(
    tmp_path: Path,
    written: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    *,
    script: str | None,
    verdict: str,
    says: str,
) -> None:
    """Tell an Envoy of another version from none at all."""
    binary = tmp_path / "envoy"
    if script is not None:
        binary.write_text(f"#!/bin/sh\n{script}\n")
        binary.chmod(0o700)
    monkeypatch.setattr(doctor, "envoy_binary", lambda: binary if script is not None else None)
    (finding,) = found(tmp_path, written)["envoy"]
    assert finding.verdict == verdict
    assert says in finding.detail


@pytest.mark.whole
def test_the_command(tmp_path: Path, written: dict[str, Any]) -> None:
    """Exit 0 where nothing fails, 1 where something does, 2 for a bad configuration."""
    file = tmp_path / "llm-edge.yaml"
    written["models"] = {"m": {"targets": [{"provider": "local", "model": "x"}]}}
    file.write_text(yaml.safe_dump(written))
    well = CliRunner().invoke(main, ["doctor", "--config", str(file), "--json"])
    assert well.exit_code == 0, well.output
    assert {"name": "bundle", "verdict": "ok", "detail": "Envoy accepts it"} in json.loads(
        well.stdout
    )
    with closing(socket.create_server(("127.0.0.1", written["server"]["port"]))):
        ill = CliRunner().invoke(main, ["doctor", "--config", str(file)])
    assert ill.exit_code == 1
    assert "fail  port       server.port" in ill.stdout
    file.write_text("server: {port: x}")
    bad = CliRunner().invoke(main, ["doctor", "--config", str(file)])
    assert bad.exit_code == 2
    assert "server.port" in bad.stderr
