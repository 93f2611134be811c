"""The written configuration: layers, messages that name file and path, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.config import ConfigError, load
from extproc.schema import Config
from extproc.schema_fields import SecretRef, parse_duration

Write = Callable[..., Path]
LOCAL = "providers: {local: {dialect: openai, endpoint: 'http://127.0.0.1:1/v1'}}\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where no configuration file lies about."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return how to write a file of the given text."""

    def written(text: str, name: str = "llm-edge.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return written


def refusal(paths: list[Path] | None, env: Mapping[str, str] | None = None) -> str:
    """Return why a configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        load(paths, env or {})
    return str(caught.value)


# What is refused: first what could give a secret away or let someone in.


@pytest.mark.parametrize(
    "secret",
    ["sk-literal", "{env: A, file: /b}", "{}", "{value: sk-literal}", "[sk-literal]"],
)
def test_a_secret_is_a_reference_and_never_quoted(write: Write, secret: str) -> None:
    path = write(
        "providers: {a: {dialect: openai, endpoint: 'http://h/v1', api_key: " + secret + "}}"
    )
    message = refusal([path])
    assert message.startswith(f"{path}: providers.a.api_key")
    assert "sk-literal" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "server: {prot: 1}",
            "server.prot: unknown key; legal: cors, drain_seconds, host, max_connections, "
            "max_request_bytes, port, processor_address, tls, transport, trusted_hops, workers",
            id="a misspelt key",
        ),
        pytest.param(
            "serve: {}",
            "serve: unknown key; legal: admin, auth, breaker, cache, limits, models, observability, providers, "
            "server, state, tiers, timeouts",
            id="a misspelt section",
        ),
        pytest.param(
            LOCAL + "models: {m: {targets: [{provider: local, model: x, prize: 1}]}}",
            "models.m.targets.0.prize: unknown key; legal: context_window, endpoints, images, "
            "json_schema, model, provider, tools, usd_per_million, weight",
            id="a key in a list",
        ),
        pytest.param(
            LOCAL
            + "models: {m: {targets: [{provider: local, model: x, usd_per_million: {in: 1}}]}}",
            "models.m.targets.0.usd_per_million.in: unknown key; legal: above, cache_write, cache_write_1h, cached_input, input, output",
            id="a key of something optional",
        ),
        pytest.param(
            "auth: {jwt: [{issuer: i, audience: a, algorithms: [HS256], default_tier: free, "
            "secret: {env: S}, jwks: x}]}",
            "auth.jwt.0.jwks: unknown key; legal: algorithms, audience",
            id="a key of an issuer",
        ),
        pytest.param(
            "limits: {global: {rate: 1}}",
            "limits.global.rate: unknown key; legal: burst, concurrent_requests, requests_per_day, "
            "requests_per_second, tokens_per_day, tokens_per_minute, usd_per_day, usd_per_month",
            id="a limit of the whole gateway",
        ),
        pytest.param(
            "limits: {every: {}}",
            "limits.every: unknown key; legal: global, per_ip, per_tenant",
            id="a scope there is not",
        ),
        pytest.param(
            "tiers: {t: {usd_per_day: 1000000001}}",
            "tiers.t.usd_per_day: USD: at most 1000000000",
            id="more money than is counted",
        ),
        pytest.param(
            "tiers: {t: {requests_per_second: 0}}",
            "tiers.t.requests_per_second: ",
            id="a rate of nothing",
        ),
        pytest.param(
            "tiers: {t: {requests_per_second: 2000000000}}",
            "tiers.t.requests_per_second: ",
            id="a rate beyond every clock",
        ),
        pytest.param(
            "server: {trusted_hops: -1}", "server.trusted_hops: ", id="fewer proxies than none"
        ),
        pytest.param("server: {port: 99999}", "server.port: ", id="a port out of range"),
        pytest.param("server: {port: eighty}", "server.port: ", id="a port that is no number"),
        pytest.param("server: null", "server: ", id="a section of nothing"),
        pytest.param("1: 2", "1: ", id="a key that is no text"),
        pytest.param("tiers: {Big One: {}}", "tiers.Big One", id="a tier with a bad name"),
        pytest.param(
            "timeouts: {completion: 30}\nserver: {drain_seconds: soon}",
            "server.drain_seconds: write a number and a unit: ms, s, m, h or d",
            id="a duration without a unit",
        ),
        pytest.param(
            "providers: {llm-edge-processor: {dialect: openai, endpoint: 'http://h'}}",
            "providers.llm-edge-processor: this name is the gateway's own; legal: any other of",
            id="a provider named as we are",
        ),
        pytest.param("timeouts: {completion: 0s}", "timeouts.completion: ", id="no time at all"),
        pytest.param("timeouts: {completion: .inf}", "timeouts.completion: ", id="for ever"),
        pytest.param("timeouts: {completion: .nan}", "timeouts.completion: ", id="not a time"),
        pytest.param("timeouts: {completion: true}", "timeouts.completion: ", id="a yes"),
    ],
)
def test_a_message_names_file_path_and_what_is_legal(write: Write, text: str, message: str) -> None:
    path = write(text)
    lines = refusal([path]).splitlines()
    assert [line for line in lines if line.startswith(f"{path}: {message}")], lines


@pytest.mark.parametrize(
    "origin", ["app.example", "https://a.example/", "https://A.example", "null", "https://*.a", ""]
)
def test_an_origin_is_what_a_browser_sends(write: Write, origin: str) -> None:
    path = write(f"server: {{cors: {{allow_origins: ['{origin}']}}}}")
    message = refusal([path])
    assert message.startswith(f"{path}: server.cors.allow_origins.0: write http(s)://host")


def test_origins_are_taken_as_they_are(write: Write) -> None:
    origins = ("*", "https://a.example", "http://localhost:3000")
    config = load([write(f"server: {{cors: {{allow_origins: {list(origins)}}}}}")], {})
    assert config.server.cors.allow_origins == origins


@pytest.mark.parametrize(
    "address",
    ["h", ":1", "h:", "h:x", "h:0", "h:65536", "::1:50051", "[::1]", "http://h:1", "h:1/", "a b:1"],
)
def test_a_processors_address_is_host_and_port(write: Write, address: str) -> None:
    path = write(f"server: {{processor_address: '{address}'}}")
    message = refusal([path])
    assert message.startswith(f"{path}: server.processor_address: write host:port, ")
    assert "for example processor.svc:50051" in message


@pytest.mark.parametrize("address", ["processor.svc:50051", "10.0.0.1:1", "[::1]:65535", "a-b:80"])
def test_a_processors_address_is_taken_as_it_is(write: Write, address: str) -> None:
    config = load([write(f"server: {{processor_address: '{address}'}}")], {})
    assert config.server.processor_address == address


@pytest.mark.parametrize("price", ["abc", "-1", "0.0000001", "true", ".nan", ".inf", "1.0e+40"])
def test_a_price_that_is_none_is_refused(write: Write, price: str) -> None:
    path = write(
        LOCAL
        + "models: {m: {targets: [{provider: local, model: x, usd_per_million: {input: "
        + price
        + "}}]}}"
    )
    where = "models.m.targets.0.usd_per_million.input: "
    assert where in refusal([path])


@pytest.mark.parametrize(
    "endpoint",
    ["ftp://h", "http://user:pass@h", "http://h?x=1", "h:1", "http://h/a b", "http://h/#x", "7"],
)
def test_an_endpoint_is_a_plain_url(write: Write, endpoint: str) -> None:
    path = write(f"providers: {{a: {{dialect: openai, endpoint: '{endpoint}'}}}}")
    message = refusal([path])
    assert message.startswith(f"{path}: providers.a.endpoint: ")
    assert "pass" not in message


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            LOCAL + "models: {m: {targets: [{provider: locla, model: x}]}}",
            "models.m.targets[0].provider: no provider 'locla'; legal: local",
            id="an unknown provider",
        ),
        pytest.param(
            "auth: {anonymous_tier: fre}",
            "auth.anonymous_tier: no tier 'fre'; legal: enterprise, free, pro",
            id="an unknown tier",
        ),
        pytest.param(
            "auth: {jwt: [{issuer: i, audience: a, algorithms: [HS256], secret: {env: S}, "
            "default_tier: gold}]}",
            "auth.jwt[0].default_tier: no tier 'gold'; legal: enterprise, free, pro",
            id="an unknown tier of an issuer",
        ),
        pytest.param(
            LOCAL + "models: {m: {strategy: weighted, "
            "targets: [{provider: local, model: x, weight: 0}]}}",
            "models.m.targets: every weight is 0; one must be more",
            id="weights of nothing",
        ),
        pytest.param(
            "server: {workers: 2}",
            "server.workers: more than 1 worker needs state.store: redis",
            id="workers that share no memory",
        ),
        pytest.param(
            "server: {transport: lane, processor_address: 'processor.svc:50051'}",
            "transport: lane is for loopback addresses; legal here: auto, grpcio",
            id="the lane across machines",
        ),
        pytest.param(
            "server: {workers: 2}\nstate: {store: redis, redis: {url: redis://h}}",
            "server.workers: more than 1 worker is not built yet; legal: 1",
            id="workers that nobody starts yet",
        ),
        pytest.param(
            "state: {store: redis}",
            "state.redis: write {url: redis://HOST:PORT/0} for state.store: redis",
            id="a store nobody said the place of",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(write: Write, text: str, message: str) -> None:
    assert message in refusal([write(text)])


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


# Pieces.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("1.5m", 90), ("24h", 86_400), ("90d", 7_776_000), (" 1s ", 1)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1 s", "1S", "1s1s", "1e3s", ".5s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="for example 30s"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("written", "secret"),
    [("  s3cret\n", "s3cret"), ("\n", None), (None, None)],
    ids=["trimmed", "empty is none", "no file is none"],
)
def test_a_secret_file(tmp_path: Path, written: str | None, secret: str | None) -> None:
    path = tmp_path / "secret"
    if written is not None:
        path.write_text(written)
    assert SecretRef(file=path).read({}) == secret


def test_a_secret_variable() -> None:
    assert SecretRef(env="A").read({"A": "s"}) == "s"
    assert SecretRef(env="A").read({"A": ""}) is None
    assert SecretRef(env="A").read({}) is None


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_value_of_a_variable_is_a_configuration_or_an_error(value: str) -> None:
    try:
        found: object = load([], {"LLM_AGENT__SERVER": value})
    except ConfigError as error:
        found = str(error)
    assert isinstance(found, Config) or str(found).startswith("$LLM_AGENT__SERVER: ")
