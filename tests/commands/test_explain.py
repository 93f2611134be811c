"""`llm-edge explain` on a configuration and a key store."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from extproc.cli import main
from extproc.ports import SilentObserver
from extproc.stores.journal import Journal
from extproc.stores.memory import MemoryLedger
from tests.ledgers import ask, rules
from tests.redis_server import RedisServer


def run(
    directory: Path,
    *words: str,
    anonymous: bool = True,
    text: str | None = None,
    state: dict[str, Any] | None = None,
    cache: dict[str, Any] | None = None,
) -> Any:
    """Explain a chat in a fresh configuration."""
    target = {"provider": "local", "model": "x", "usd_per_million": {"input": 1, "output": 2}}
    written: dict[str, Any] = {
        "state": {"dir": str(directory / "state"), **(state or {})},
        "cache": cache or {},
        "auth": {"anonymous_tier": "free"} if anonymous else {},
        "providers": {"local": {"dialect": "openai", "endpoint": "http://127.0.0.1:9/v1"}},
        "models": {"small": {"targets": [target]}},
    }
    (directory / "llm-edge.yaml").write_text(yaml.safe_dump(written))
    body = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    (directory / "request.json").write_text(text or json.dumps(body))
    common = ["explain", str(directory / "request.json")]
    return CliRunner().invoke(main, [*common, "--config", str(directory / "llm-edge.yaml"), *words])


def test_it_prints_the_decision_as_json(tmp_path: Path) -> None:
    """Identity, candidates, plan and cost; the state directory is not even made."""
    done = run(tmp_path, "--header", "x-llm-timeout-ms: 1234")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["identity"]["tenant"] == "anonymous"
    assert told["plan"]["timeout_ms"] == 1234
    assert told["candidates"][0]["verdict"] == "allowed"
    assert float(told["expected_cost_usd"]) > 0
    assert not (tmp_path / "state").exists()


def test_the_cache_key_needs_the_secret_that_the_gateway_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another secret is another key; without the one that is named it is a bad configuration."""

    def key(cache: dict[str, Any] | None = None) -> str:
        done = run(tmp_path, cache=cache)
        assert done.exit_code == 0, done.output
        return str(json.loads(done.stdout)["cache"]["key"])

    named = {"secret": {"env": "CACHE_SECRET"}}
    monkeypatch.setenv("CACHE_SECRET", "s" * 32)
    assert len({key(), key(named)}) == 2
    assert key(named) == key(named)
    monkeypatch.delenv("CACHE_SECRET")
    done = run(tmp_path, cache=named)
    assert (done.exit_code, "cache.secret" in done.output) == (2, True)


def test_limits_are_told_as_a_gateway_left_them(tmp_path: Path) -> None:
    """From its journal, which stays as it is."""
    run(tmp_path)
    path = tmp_path / "state" / "limits.journal"
    journal = Journal(path)
    ledger = MemoryLedger(time.time, SilentObserver(), journal)
    key = ("key:anonymous", rules(requests_per_day=9))
    asyncio.run(ledger.admit(ask("id", key)))
    before = path.read_bytes()
    done = run(tmp_path)
    assert done.exit_code == 0, done.output
    found = {one["name"]: one for one in json.loads(done.stdout)["limits"]}
    assert (found["key/requests_per_day"]["used"], found["key/requests_per_day"]["limit"]) == (
        *(1, 1000),
    )
    assert found["key/concurrent_requests"]["used"] == 1
    assert path.read_bytes() == before


def test_limits_are_told_as_redis_has_them(tmp_path: Path) -> None:
    """Where the configuration says so; a Redis that is away is a refusal, as it would be."""
    server = RedisServer()
    server.start()
    try:
        shared = {"store": "redis", "redis": {"url": server.url, "timeout_ms": 5000}}
        day = int(time.time()) // 86_400
        server.client.hset("{llm-edge}:a:key:anonymous", mapping={"w0": day, "u0": 7})
        done = run(tmp_path, state=shared)
        found = {one["name"]: one for one in json.loads(done.stdout)["limits"]}
        assert found["key/requests_per_day"]["used"] == 7
        assert set(server.client.scan_iter()) == {b"{llm-edge}:a:key:anonymous"}
    finally:
        server.stop()
    done = run(tmp_path, state=shared)
    assert done.exit_code == 1
    assert json.loads(done.stdout)["refusal"]["code"] == "store_unavailable"


def test_a_journal_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Exit code 1."""
    (tmp_path / "state" / "limits.journal").mkdir(parents=True)
    done = run(tmp_path)
    assert done.exit_code == 1
    assert "limits.journal" in done.output


def test_a_key_is_named_by_its_id(tmp_path: Path) -> None:
    """Its models and endpoints count."""
    run(tmp_path)
    config = ["--config", str(tmp_path / "llm-edge.yaml")]
    words = ["keys", "create", "--tier", "free", "--name", "n", "--models", "other", *config]
    made = CliRunner().invoke(main, words)
    assert made.exit_code == 0, made.output
    listed = CliRunner().invoke(main, ["keys", "list", "--json", *config])
    key_id = json.loads(listed.stdout)[0]["key_id"]
    done = run(tmp_path, "--key", key_id)
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["identity"]["key"] == key_id
    assert told["refusal"]["code"] == "permission_denied"


@pytest.mark.parametrize(
    ("words", "anonymous", "says"),
    [
        pytest.param((), False, "name a key", id="nobody is named and nobody let in"),
        pytest.param(("--key", "key_0"), True, "no key 'key_0'", id="an unknown key"),
        pytest.param(("--header", "x"), True, "NAME: VALUE", id="no header"),
    ],
)
def test_bad_usage(tmp_path: Path, words: tuple[str, ...], anonymous: bool, says: str) -> None:
    """Exit code 2 and what is legal."""
    done = run(tmp_path, *words, anonymous=anonymous)
    assert done.exit_code == 2
    assert says in done.output


def test_a_request_that_cannot_be_read_is_refused_as_it_would_be(tmp_path: Path) -> None:
    """Exit code 1, with the error the caller would get."""
    done = run(tmp_path, text="{")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["refusal"]["code"] == "invalid_request_error"
