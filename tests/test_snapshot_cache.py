"""The cache section compiled: units, references, and a version that changes with what bears on answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from extproc.cache_policy import Policy, Terms
from extproc.checks import missing_secrets
from extproc.config import DEFAULTS
from extproc.schema import Config
from extproc.snapshot import compile_snapshot
from extproc.snapshot_cache import cache_secret, compile_cache

LOCAL = {"dialect": "openai", "endpoint": "http://127.0.0.1:9101/v1"}
BASE: dict[str, Any] = {
    "providers": {"a": LOCAL, "b": {**LOCAL, "endpoint": "http://127.0.0.1:9102/v1"}},
    "models": {
        "m": {"targets": [{"provider": "a", "model": "x", "usd_per_million": {"input": 1}}], "fallbacks": {"context_window": ["large"]}},
        "large": {"targets": [{"provider": "a", "model": "y"}]},
        "other": {"targets": [{"provider": "b", "model": "z"}]},
    },
}  # fmt: skip


def written(cache: dict[str, Any] | None = None, **layers: Any) -> Config:
    """Return the packaged defaults with the layers and members of `cache` on top."""
    defaults = yaml.safe_load(DEFAULTS.read_text())
    section = {**defaults["cache"], **(cache or {})}
    return Config.model_validate({**defaults, **BASE, **layers, "cache": section})


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return `BASE` with one value put in, by a dotted path."""
    found: dict[str, Any] = yaml.safe_load(yaml.safe_dump(BASE))
    *parents, last = path.split(".")
    here: Any = found
    for part in parents:
        here = here[int(part)] if part.isdecimal() else here.setdefault(part, {})
    here[last] = value
    return found


def test_the_packaged_defaults_are_the_ones_of_the_contract() -> None:
    config = written()
    policy = compile_cache(config)
    assert (config.cache.idle, config.cache.max_bytes) == (60, 268_435_456)
    assert policy == Policy(
        enabled=True,
        scope="tenant",
        ttl_ms=300_000,
        embeddings_ttl_ms=3_600_000,
        max_entry_bytes=1_048_576,
        tool_calls=False,
        max_temperature=1.0,
        debug_key=False,
        secret=b"",
        models=policy.models,
        tiers={},
        keys={},
    )
    assert policy.models.keys() == config.models.keys()


def test_terms_of_models_tiers_and_keys() -> None:
    policy = compile_cache(
        written(
            {
                "models": {"m": {"ttl": "1h", "api_defaults": False}, "other": {"enabled": False}},
                "tiers": {"free": {"ttl": "500ms"}},
                "keys": {"key_1": {"enabled": False}},
            }
        )
    )
    assert policy.models["m"].terms == Terms(ttl_ms=3_600_000)
    assert not policy.models["m"].api_defaults
    assert policy.models["other"].terms == Terms(enabled=False)
    assert policy.models["large"].terms == Terms()
    assert policy.tiers == {"free": Terms(ttl_ms=500)}
    assert policy.keys == {"key_1": Terms(enabled=False)}


def versions(config: Config) -> dict[str, str]:
    """Return the version of every model."""
    return {name: model.version for name, model in compile_cache(config).models.items()}


USUAL = versions(written())


@pytest.mark.parametrize(
    ("path", "value", "models"),
    [
        pytest.param("models.m.targets.0.model", "x2", {"m"}, id="another model at the provider"),
        pytest.param("models.m.targets.0.provider", "b", {"m"}, id="another provider"),
        pytest.param("models.m.targets", [{"provider": "a", "model": "x"}, {"provider": "b", "model": "x"}], {"m"}, id="one more target"),
        pytest.param("models.m.targets.0.tools", False, {"m"}, id="an ability that is gone"),
        pytest.param("models.m.targets.0.context_window", 4096, {"m"}, id="a context window"),
        pytest.param("models.m.strict", True, {"m"}, id="nothing may be lost"),
        pytest.param("models.m.strategy", "weighted", {"m"}, id="another strategy"),
        pytest.param("models.m.sticky", True, {"m"}, id="sticky draws"),
        pytest.param("models.m.max_output_tokens", 100, {"m"}, id="another bound of output"),
        pytest.param("models.m.fallbacks.context_window", ["other"], {"m"}, id="another fallback"),
        pytest.param("models.large.targets.0.model", "y2", {"m", "large"}, id="what the fallback has behind it"),
        pytest.param("providers.b.endpoint", "http://127.0.0.1:1/v1", {"other"}, id="a provider that moved"),
        pytest.param("providers.b.dialect", "anthropic", {"other"}, id="a provider of another dialect"),
        # What bears on no answer.
        pytest.param("models.m.targets.0.usd_per_million.input", 2, set(), id="a price"),
        pytest.param("providers.a.max_retries", 5, set(), id="retries"),
        pytest.param("providers.a.api_key", {"env": "KEY"}, set(), id="a credential"),
    ],
)  # fmt: skip
def test_a_model_has_another_version_when_what_bears_on_its_answers_changes(
    path: str, value: Any, models: set[str]
) -> None:
    found = versions(written(**changed(path, value)))
    assert {name for name, version in found.items() if version != USUAL[name]} == models


@pytest.mark.parametrize(
    ("cache", "changes"),
    [
        pytest.param({"tool_calls": True}, True, id="tool calls"),
        pytest.param({"models": {name: {"api_defaults": False} for name in USUAL}}, True, id="defaults"),
        pytest.param({"ttl": "1s", "max_temperature": 0, "debug_key": True, "max_bytes": 10**7, "tiers": {"free": {"ttl": 1}}}, False, id="what is judged anew at every look-up"),
    ],
)  # fmt: skip
def test_what_of_the_cache_itself_is_part_of_the_version(
    cache: dict[str, Any], changes: bool
) -> None:
    found = versions(written(cache))
    assert all((found[name] != USUAL[name]) is changes for name in USUAL)


def test_models_alike_have_one_version_only_because_their_names_are_in_the_key() -> None:
    alike = dict.fromkeys(("one", "two"), BASE["models"]["large"])
    found = versions(written(models=alike))
    assert found["one"] == found["two"]


@pytest.mark.parametrize(
    ("cache", "says"),
    [
        pytest.param({"models": {"nobody": {}}}, "cache.models: no 'nobody'; legal: large, m, other", id="an unknown model"),
        pytest.param({"tiers": {"nobody": {}}}, "cache.tiers: no 'nobody'; legal: enterprise, free, pro", id="an unknown tier"),
        pytest.param({"max_entry_bytes": 2**21, "max_bytes": 2**20}, "max_entry_bytes must be at most max_bytes", id="entries larger than the cache"),
        pytest.param({"max_entry_bytes": 2**25}, "less than or equal to 16777216", id="entries no log can carry"),
        pytest.param({"semantic": {"enabled": True}}, "not available yet; legal: false", id="answers by meaning"),
        pytest.param({"scope": "client"}, "'tenant', 'key' or 'shared'", id="a scope of the client's choosing"),
        pytest.param({"max_temperature": 3}, "less than or equal to 2", id="a bound that bounds nothing"),
        pytest.param({"ttl": 0}, "greater than 0", id="no time at all"),
        pytest.param({"secret": "literal"}, "secret", id="a secret in the open"),
        pytest.param({"tiers": {"free": {"api_defaults": False}}}, "api_defaults", id="what only a model has"),
    ],
)  # fmt: skip
def test_what_is_refused(cache: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        written(cache)
    assert says in str(caught.value)


def test_no_bound_of_temperature() -> None:
    assert compile_cache(written({"max_temperature": None})).max_temperature is None


def test_the_secret_comes_from_where_it_is_written_to_be(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("correct horse battery\n")
    by_file = written({"secret": {"file": str(file)}})
    by_variable = written({"secret": {"env": "S"}})
    env = {"S": "correct horse battery"}
    assert (
        cache_secret(by_file.cache, {})
        == cache_secret(by_variable.cache, env)
        == b"correct horse battery"
    )
    assert cache_secret(written().cache, env) == b""
    assert (
        compile_snapshot(by_file, 0, b"correct horse battery").cache.secret
        == b"correct horse battery"
    )


@pytest.mark.parametrize(
    ("env", "says"),
    [
        pytest.param({}, r"cache\.secret: no secret in \$S", id="a variable that is not set"),
        pytest.param({"S": "short"}, "16 bytes or more", id="a secret that is too short"),
    ],
)
def test_a_secret_that_is_missing_or_short_is_refused(env: dict[str, str], says: str) -> None:
    config = written({"secret": {"env": "S"}})
    with pytest.raises(ValueError, match=says):
        cache_secret(config.cache, env)
    assert ("cache.secret: $S is not set" in missing_secrets(config, env)) is (not env)
