"""The written configuration: layers, and messages that name file, variable and path."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.config import ConfigError, load
from extproc.schema import Config
from extproc.schema_fields import SecretRef
from tests.written import LOCAL, Write, refusal


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where no configuration file lies about."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("server: {port: 1, port: 2}", "key 'port' stands twice", id="a key twice"),
        pytest.param("admin: {}\nserver: {}\nadmin: {}", "key 'admin' stands twice", id="at top"),
        pytest.param("a: [", "expected", id="not YAML"),
        pytest.param("? [a]\n: b", "a key must be a plain value", id="a list for a key"),
        pytest.param("a: 2024-13-45", "month must be in 1..12", id="a date there is not"),
        pytest.param("a: " + "[" * 5000, "recursion", id="brackets without end"),
        pytest.param("a: &a {b: *a}", "recursive", id="a mapping within itself"),
        pytest.param("a: !!python/object:os.system {}", "constructor", id="a Python object"),
        pytest.param("- a", "the top level must be a mapping", id="a list"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(write: Write, text: str, problem: str) -> None:
    path = write(text)
    message = refusal([path])
    assert message.startswith(f"{path}: ")
    assert problem in message


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    assert refusal([tmp_path / "none.yaml"]).startswith(f"{tmp_path}/none.yaml: ")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert refusal([tmp_path / "b.yaml"]).startswith(f"{tmp_path}/b.yaml: ")


# Layers.


def test_later_layers_win_level_by_level(write: Write) -> None:
    base = write("server: {port: 1, host: h1, max_connections: 7}\nstate: {dir: one}")
    write("server: {port: 3}\nstate: {dir: three}", "llm-edge.prod.yaml")
    second = write("server: {port: 2, host: h2}", "second.yaml")
    assert load([], {}).server.port == 1
    env = {"LLM_AGENT__ENVIRONMENT": "prod", "LLM_AGENT__STATE__DIR": "four"}
    config = load([base, second], env)
    assert (config.server.port, config.server.host) == (3, "h2")
    assert (config.server.max_connections, config.state.dir) == (7, Path("four"))
    assert config.server.drain_seconds == 30
    assert config.timeouts.connect == 10


def test_without_files_the_one_lying_here_is_read(write: Write) -> None:
    assert load(None, {}).server.port == 8080
    write("server: {port: 9}")
    assert load(None, {}).server.port == 9


def test_an_environment_without_a_file_is_no_error(write: Write) -> None:
    base = write("server: {port: 1}")
    assert load([base], {"LLM_AGENT__ENVIRONMENT": "dev"}).server.port == 1


@pytest.mark.parametrize("name", ["../etc", "a/b", "A", "a.b"])
def test_an_environment_is_a_plain_name(name: str) -> None:
    assert "ENVIRONMENT" in refusal(None, {"LLM_AGENT__ENVIRONMENT": name})


def test_variables_are_yaml_and_any_case() -> None:
    config = load(
        None,
        {
            "LLM_AGENT__SERVER__PORT": "9000",
            "LLM_AGENT__TIERS__FREE": "{burst: 3}",
            "LLM_AGENT__server__cors__allow_origins": "['https://a']",
            "LLM_EDGE_OTHER": "x",
        },
    )
    assert config.server.port == 9000
    assert config.server.cors.allow_origins == ("https://a",)
    assert config.tiers["free"].burst == 3
    assert config.tiers["free"].requests_per_second == 10


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SERVER__PORT", "x", "$LLM_AGENT__SERVER__PORT: server.port: "),
        ("SERVER__PROT", "1", "$LLM_AGENT__SERVER__PROT: server.prot: unknown key; legal: "),
        ("SERVER", "{port: 1, port: 2}", "$LLM_AGENT__SERVER: not a YAML value"),
        ("SERVER", "{[a]: 1}", "$LLM_AGENT__SERVER: not a YAML value"),
        ("SERVER", "2024-13-45", "$LLM_AGENT__SERVER: not a YAML value"),
        ("", "1", "$LLM_AGENT__: "),
    ],
)
def test_a_message_names_the_variable(name: str, value: str, message: str) -> None:
    assert refusal(None, {f"LLM_AGENT__{name}": value}).startswith(message)


def test_the_last_layer_that_wrote_a_value_is_blamed(write: Write) -> None:
    base, second = write("server: {port: x}"), write("server: {port: y}", "second.yaml")
    assert refusal([base, second]).startswith(f"{second}: server.port")


# Starting without a file.


def test_the_quickstart_has_a_simulated_provider() -> None:
    config = load(None, {})
    assert list(config.providers) == ["simulated"]
    assert config.providers["simulated"].simulated
    assert config.providers["simulated"].api_key is None
    assert list(config.models) == ["gpt-4o-mini", "gpt-4o", "text-embedding-3-small"]
    prices = config.models["gpt-4o-mini"].targets[0].usd_per_million
    assert prices is not None
    assert (prices.input, prices.cached_input) == (Decimal("0.15"), Decimal("0.075"))


def test_the_quickstart_goes_to_openai_where_its_key_is_set() -> None:
    config = load(None, {"OPENAI_API_KEY": "sk-real"})
    provider = config.providers["openai"]
    assert (provider.endpoint, provider.simulated) == ("https://api.openai.com/v1", False)
    assert provider.api_key == SecretRef(env="OPENAI_API_KEY")
    assert {t.provider for m in config.models.values() for t in m.targets} == {"openai"}
    assert "sk-real" not in repr(config)


def test_an_empty_key_is_no_key() -> None:
    assert list(load(None, {"OPENAI_API_KEY": ""}).providers) == ["simulated"]


def test_configured_providers_replace_the_quickstart(write: Write) -> None:
    config = load([write(LOCAL)], {"OPENAI_API_KEY": "sk-real"})
    assert (list(config.providers), config.models) == (["local"], {})


def test_a_merge_key_is_no_key_twice(write: Write) -> None:
    text = "tiers: {a: &a {burst: 1, tokens_per_day: 5}, b: {<<: *a, burst: 2}}"
    tiers = load([write(text)], {}).tiers
    assert (tiers["b"].burst, tiers["b"].tokens_per_day) == (2, 5)


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_value_of_a_variable_is_a_configuration_or_an_error(value: str) -> None:
    try:
        found: object = load([], {"LLM_AGENT__SERVER": value})
    except ConfigError as error:
        found = str(error)
    assert isinstance(found, Config) or str(found).startswith("$LLM_AGENT__SERVER: ")
