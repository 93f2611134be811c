"""`llm-edge keys`: what is printed where, and the exit codes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from extproc.commands.keys import keys
from extproc.policies.auth import authenticate_key
from extproc.stores.redis_keys import RedisKeys
from extproc.stores.sqlite_keys import SqliteKeys
from tests.redis_server import RedisServer

Run = Callable[..., Result]


@pytest.fixture(name="run")
def runner(tmp_path: Path) -> Run:
    """Run a subcommand against a state directory of its own."""
    config = tmp_path / "llm-edge.yaml"
    config.write_text(f"state: {{dir: {tmp_path / 'state'}}}\n")

    def run(*words: str) -> Result:
        command, *rest = words
        return CliRunner().invoke(keys, [command, "--config", str(config), *rest])

    return run


def state(run: Run, number: int = 0) -> dict[str, object]:
    """Return one key of the list."""
    document: dict[str, object] = json.loads(run("list", "--json").stdout)[number]
    return document


def test_create_prints_the_key_once(run: Run, tmp_path: Path) -> None:
    """Print the key alone to stdout, what it is to stderr, and never again."""
    made = run(
        "create", "--tier", "free", "--name", "Team A", "--models", "gpt-4o, gpt-4o-mini",
        "--endpoints", "chat", "--expires", "90d", "--tags", "team:search,prod",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    assert re.fullmatch(r"sk_[A-Za-z0-9_-]{43}\n", made.stdout)
    key = made.stdout.strip()
    assert key not in made.stderr
    assert "tenant team-a" in made.stderr
    for listing in (run("list"), run("list", "--json")):
        assert key not in listing.output
    shown = state(run)
    assert shown["models"] == ["gpt-4o", "gpt-4o-mini"]
    assert shown["endpoints"] == ["chat"]
    assert (shown["tags"], shown["last_used_at"]) == (["prod", "team:search"], None)
    assert (shown["name"], shown["tenant"], shown["state"]) == ("Team A", "team-a", "active")
    assert isinstance(shown["expires_at"], float)
    assert abs(shown["expires_at"] - time.time() - 90 * 86_400) < 60
    with closing(SqliteKeys(tmp_path / "state")) as store:
        assert authenticate_key(key, store.directory(), time.time()).tenant == "team-a"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(["--tier", "gold"], "legal: enterprise, free, pro", id="an unknown tier"),
        pytest.param(["--endpoints", "chat,x"], "chat, completions", id="an unknown endpoint"),
        pytest.param(["--expires", "soon"], "ms, s, m, h or d", id="an end that is no duration"),
        pytest.param(["--expires", "0s"], "expires", id="an end that is now"),
        pytest.param(["--expires", "9" * 400 + "d"], "100 years", id="an end beyond every date"),
        pytest.param(["--tenant", "a:b"], "tenant", id="a tenant of an issuer's form"),
        pytest.param(["--models", ","], "models", id="an empty list of models"),
        pytest.param(["--tags", "a b"], "tags", id="a tag with a blank"),
        pytest.param(["--name", ""], "name", id="an empty name"),
        pytest.param(["--config", "/nowhere.yaml"], "/nowhere.yaml", id="no such configuration"),
    ],
)
def test_bad_input_exits_2_and_names_what_is_legal(run: Run, words: list[str], says: str) -> None:
    """Explain bad usage, and create nothing."""
    made = run("create", "--tier", "free", "--name", "ci", *words)
    assert made.exit_code == 2
    assert says in made.stderr
    assert made.stdout == ""
    assert json.loads(run("list", "--json").stdout) == []


def test_rotate_and_revoke(run: Run) -> None:
    """Show the old key as retiring, then revoked, and the new one as active."""
    run("create", "--tier", "free", "--name", "ci")
    old = str(state(run)["key_id"])
    rotated = run("rotate", old, "--grace", "24h")
    assert rotated.exit_code == 0
    assert re.fullmatch(r"sk_[A-Za-z0-9_-]{43}\n", rotated.stdout)
    states = {d["key_id"]: d for d in json.loads(run("list", "--json").stdout)}
    assert states.pop(old)["state"] == "retiring"
    (new,) = states.values()
    assert (new["state"], new["tenant"]) == ("active", "ci")
    assert run("revoke", old).exit_code == 0
    assert {d["key_id"]: d["state"] for d in json.loads(run("list", "--json").stdout)} == {
        old: "revoked",
        new["key_id"]: "active",
    }
    again = run("rotate", old)
    assert again.exit_code == 1
    assert "revoked" in again.stderr


@pytest.mark.parametrize("command", ["rotate", "revoke"])
def test_an_unknown_key_exits_1(run: Run, command: str) -> None:
    """Say which key there is not."""
    failed = run(command, "key_0")
    assert failed.exit_code == 1
    assert "no key 'key_0'" in failed.stderr


def test_a_store_that_cannot_be_opened_exits_1(run: Run, tmp_path: Path) -> None:
    """Name the file that is in the way."""
    (tmp_path / "state").write_text("a file")
    failed = run("list")
    assert failed.exit_code == 1
    assert "state" in failed.stderr


def test_list_is_a_table(run: Run, tmp_path: Path) -> None:
    """Align columns under one heading, an empty store included."""
    assert run("list").stdout.startswith("KEY ID")
    run("create", "--tier", "free", "--name", "a long name", "--models", "x", "--tags", "a,b")
    head, row = run("list").stdout.splitlines()
    for column, cell in {
        "NAME": "a long name",
        "TENANT": "a-long-name",
        "TIER": "free",
        "STATE": "active",
        "MODELS": "x",
        "ENDPOINTS": "all",
        "TAGS": "a,b",
        "LAST USED": "never",
        "ENDS": "never",
    }.items():
        assert row[head.index(column) :].startswith(cell), column
    with closing(SqliteKeys(tmp_path / "state")) as store:
        store.write_used({row.split()[0]: 0.0})
    assert "1970-01-01T00:00:00Z" in run("list").stdout


def test_a_model_that_is_not_configured_is_noted(run: Run) -> None:
    """Create the key all the same: the model may come later."""
    made = run("create", "--tier", "free", "--name", "ci", "--models", "gpt-4o,later")
    assert made.exit_code == 0
    assert "not configured yet: later" in made.stderr


def test_config_before_the_subcommand(tmp_path: Path) -> None:
    """Accept `--config` on the group, before those of the subcommand."""
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text(f"state: {{dir: {tmp_path / 'one'}}}\n")
    second.write_text(f"state: {{dir: {tmp_path / 'two'}}}\n")
    CliRunner().invoke(keys, ["--config", str(first), "list", "--config", str(second)])
    assert (tmp_path / "two" / "keys.db").exists()
    assert not (tmp_path / "one").exists()


def test_the_store_is_the_one_that_the_configuration_names(tmp_path: Path) -> None:
    """Create a key in Redis where that is the store, and none in a file."""
    server = RedisServer()
    config = tmp_path / "llm-edge.yaml"
    place = f"store: redis, redis: {{url: {server.url!r}}}, dir: {tmp_path / 'state'}"
    config.write_text(f"state: {{{place}}}\n")
    words = ["create", "--config", str(config), "--tier", "free", "--name", "ci"]
    down = CliRunner().invoke(keys, words)
    assert down.exit_code == 1
    assert "redis.sock" in down.stderr
    server.start()
    try:
        made = CliRunner().invoke(keys, words)
        assert made.exit_code == 0, made.output
        with closing(RedisKeys(server.url)) as store:
            principal = authenticate_key(made.stdout.strip(), store.directory(), time.time())
        assert principal.tenant == "ci"
    finally:
        server.stop()
    assert not (tmp_path / "state").exists()
