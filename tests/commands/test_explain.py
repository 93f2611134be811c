"""`llm-edge explain` on a configuration and a key store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from extproc.cli import main


def run(directory: Path, *words: str, anonymous: bool = True, text: str | None = None) -> Any:
    """Explain a chat in a fresh configuration."""
    target = {"provider": "local", "model": "x", "usd_per_million": {"input": 1, "output": 2}}
    written: dict[str, Any] = {
        "state": {"dir": str(directory / "state")},
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
