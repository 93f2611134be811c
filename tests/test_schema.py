"""What an operator may write, and the message that says what not: first what could let someone in."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest

from extproc.config import load
from extproc.schema_fields import SecretRef, parse_duration
from tests.written import LOCAL, Write, refusal


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
            "models.m.targets.0.usd_per_million.in: unknown key; legal: above, cache_write, cache_write_1h, "
            "cached_input, input, output",
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
            "server: {workers: 2, processor_address: 'processor.svc:50051'}\n"
            "state: {store: redis, redis: {url: redis://h}}",
            "workers: more than 1 is for the Envoy of the same machine; legal with "
            "processor_address: 1, in as many pods as you like",
            id="workers behind one address",
        ),
        pytest.param(
            "server: {workers: 2, transport: grpcio}\nstate: {store: redis, redis: {url: redis://h}}",
            "transport: grpcio is for 1 worker; legal for more: auto, lane",
            id="workers on the reference transport",
        ),
        pytest.param(
            "state: {store: redis, redis: {url: 'redis://h/3', cluster: true}}",
            "cluster: true goes with redis://HOST:PORT or rediss://, database 0",
            id="a database of a cluster",
        ),
        pytest.param(
            "state: {store: redis, redis: {url: 'unix:///s', cluster: true}}",
            "cluster: true goes with redis://HOST:PORT or rediss://, database 0",
            id="a cluster on a socket",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(write: Write, text: str, message: str) -> None:
    assert message in refusal([write(text)])


# Where Redis is.


@pytest.mark.parametrize("name", ["state", "a b", "a%20b", "a#b?c"])
def test_without_an_address_redis_is_in_the_state_directory(write: Write, name: str) -> None:
    """`llm-edge run` starts one there; whatever the directory is called, the URL leads to it."""
    config = load([write(f"state: {{store: redis, dir: '{name}'}}")], {})
    assert config.state.redis_url.startswith("unix:///")
    assert unquote(config.state.redis_url) == f"unix://{Path(name).absolute()}/redis.sock"


def test_an_address_is_where_redis_is(write: Write) -> None:
    config = load([write("state: {store: redis, redis: {url: 'redis://h:1/0'}}")], {})
    assert config.state.redis_url == "redis://h:1/0"


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
