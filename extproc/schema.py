"""The schema of the written configuration.

Knows: pydantic and what an operator may write. Must not know: files, layers, the runtime snapshot,
Envoy or the wire.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from extproc.addresses import is_local
from extproc.schema_cache import Cache
from extproc.schema_fields import Name, Seconds, SecretRef
from extproc.schema_fields import Section as _Section

MAX_BODY_BYTES: Final = 64 * 1024 * 1024  # Envoy buffers the whole body for retries
STRATEGIES: Final = ("priority", "weighted", "fastest", "cheapest")
MAX_USD: Final = 1_000_000_000  # Redis counts to 9 million: the nearer limit holds there
MAX_COUNT: Final = 2**53 - 1  # what Redis' scripts count exactly
MAX_RATE: Final = 1_000_000_000  # from one a microsecond on, the resolution, it limits no more
PROCESSOR_NAME: Final = "llm-edge-processor"  # Envoy's name for us, beside those of the providers
_ADDRESS: Final = re.compile(
    r"^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\]):(\d{1,5})$"
)
MAX_PORT: Final = 65_535
REDIS_SOCKET: Final = "redis.sock"  # in the state directory: a Redis of our own


def _price(value: object, what: str = "USD per million tokens") -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"write a number of {what}")  # noqa: TRY004
    try:
        price = Decimal(str(value))
        exact = price.is_finite() and price >= 0 and price == round(price, 6)
    except ArithmeticError:  # not a number, or more digits than Decimal rounds to
        exact = False
    if not exact:
        raise ValueError(f"{what}: 0 or more, at most 6 decimal places")
    return price


def _usd(value: object) -> Decimal:
    amount = _price(value, "USD")
    if amount > MAX_USD:
        raise ValueError(f"USD: at most {MAX_USD}")
    return amount


def _endpoint(value: str) -> str:
    pattern = r"^https?://(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::\d{1,5})?(?:/[A-Za-z0-9._~/-]*)?$"
    if not re.fullmatch(pattern, value):
        raise ValueError("write http(s)://host[:port][/path] without credentials or a query")
    return value.rstrip("/")


def _address(value: str) -> str:
    found = _ADDRESS.match(value)
    if found is None or not 0 < int(found[1]) <= MAX_PORT:
        raise ValueError(
            "write host:port, a name, an IPv4 address or a [bracketed] IPv6 address and a port of"
            " 1 to 65535, for example processor.svc:50051"
        )
    return value


def _origin(value: str) -> str:
    if value != "*" and not re.fullmatch(r"https?://[a-z0-9.-]+(?::\d{1,5})?", value):
        raise ValueError(
            "write http(s)://host or http(s)://host:port as a browser sends it, in lower case and"
            ' without a path; or "*" for every origin'
        )
    return value


def _not_ours(value: str) -> str:
    if value == PROCESSOR_NAME:
        raise ValueError("this name is the gateway's own; legal: any other of a-z 0-9 _ -")
    return value


UsdPerMillion = Annotated[Decimal, BeforeValidator(_price)]
Usd = Annotated[Decimal, BeforeValidator(_usd)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Url = Annotated[str, AfterValidator(_endpoint)]
Port = Annotated[int, Field(ge=0, le=MAX_PORT)]
Origin = Annotated[str, AfterValidator(_origin)]
HostPort = Annotated[str, AfterValidator(_address)]
ProviderName = Annotated[Name, AfterValidator(_not_ours)]


class Tls(_Section):
    cert_file: Path
    key_file: Path


class Cors(_Section):
    allow_origins: tuple[Origin, ...] = ()


class Server(_Section):
    host: str
    port: Port
    workers: Annotated[int, Field(ge=1, le=64)]
    transport: Literal["auto", "lane", "grpcio"]
    processor_address: HostPort | None = None  # for a processor in another pod
    max_request_bytes: Annotated[int, Field(ge=1024, le=MAX_BODY_BYTES)]
    max_connections: Annotated[int, Field(ge=1)]
    drain_seconds: Seconds
    trusted_hops: Annotated[int, Field(ge=0, le=16)] = 0  # proxies before Envoy that are believed
    tls: Tls | None = None
    cors: Cors = Cors()

    @model_validator(mode="after")
    def _transport_fits(self) -> Server:
        address = self.processor_address
        if self.transport == "lane" and address is not None and not is_local(address):
            raise ValueError("transport: lane is for loopback addresses; legal here: auto, grpcio")
        if self.workers > 1 and address is not None:
            raise ValueError(
                "workers: more than 1 is for the Envoy of the same machine; legal with"
                " processor_address: 1, in as many pods as you like"
            )
        if self.workers > 1 and self.transport == "grpcio":
            raise ValueError("transport: grpcio is for 1 worker; legal for more: auto, lane")
        return self


class Admin(_Section):
    host: str
    port: Port
    token: SecretRef | None = None


class Redis(_Section):
    url: Annotated[str, Field(pattern=r"^(?:rediss?|unix)://\S+$")]
    timeout_ms: Annotated[int, Field(ge=1, le=10_000)] = 50
    replicas: Annotated[int, Field(ge=1, le=10_000)] = 1  # by which limits are divided without it
    cluster: bool = False  # the URL is of any node of a Redis Cluster

    @model_validator(mode="after")
    def _cluster_fits(self) -> Redis:
        place = urlsplit(self.url)
        if self.cluster and (place.scheme == "unix" or place.path.strip("/") not in {"", "0"}):
            raise ValueError("cluster: true goes with redis://HOST:PORT or rediss://, database 0")
        return self


class State(_Section):
    dir: Path
    store: Literal["memory", "redis"]
    redis: Redis | None = None  # None: the one that `llm-edge run` starts

    @property
    def redis_url(self) -> str:
        """Return where Redis is: as configured, else at a socket in the state directory."""
        if self.redis is not None:
            return self.redis.url
        return f"unix://{quote(str((self.dir / REDIS_SOCKET).absolute()))}"


class JwtIssuerConfig(_Section):
    issuer: str
    audience: str
    algorithms: tuple[Literal["HS256", "RS256", "ES256"], ...]
    jwks_url: Url | None = None
    jwks_file: Path | None = None
    secret: SecretRef | None = None
    tier_claim: str = "tier"
    default_tier: str
    tenant_claim: str = "tenant"

    @model_validator(mode="after")
    def _one_source(self) -> JwtIssuerConfig:
        sources = [s for s in (self.jwks_url, self.jwks_file, self.secret) if s is not None]
        if len(sources) != 1:
            raise ValueError("write exactly one of jwks_url, jwks_file and secret")
        symmetric = [a for a in self.algorithms if a.startswith("HS")]
        if not self.algorithms or bool(symmetric) != (self.secret is not None):
            raise ValueError("secret goes with HS256 alone; jwks_url and jwks_file with the others")
        if symmetric and len(symmetric) != len(self.algorithms):
            raise ValueError("HS256 cannot be mixed with RS256 or ES256")
        return self


class Auth(_Section):
    anonymous_tier: str | None = None
    jwt: tuple[JwtIssuerConfig, ...] = ()


class Tier(_Section):
    """Limits of one caller, or of a scope below; what is absent is unlimited."""

    requests_per_second: Annotated[float, Field(gt=0, le=MAX_RATE)] | None = None
    burst: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    requests_per_day: Count | None = None
    concurrent_requests: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    tokens_per_minute: Count | None = None
    tokens_per_day: Count | None = None
    usd_per_day: Usd | None = None
    usd_per_month: Usd | None = None


class Limits(_Section):
    """Limits that hold beside the tier's: for the whole gateway, each address, each tenant."""

    whole: Annotated[Tier | None, Field(alias="global")] = None
    per_ip: Tier | None = None
    per_tenant: Tier | None = None


class TierPrices(_Section):
    input: UsdPerMillion
    output: UsdPerMillion = Decimal(0)
    cached_input: UsdPerMillion | None = None
    # What a prompt cache is written with, and for an hour; see snapshot.py for what is not written.
    cache_write: UsdPerMillion | None = None
    cache_write_1h: UsdPerMillion | None = None


class LongPrices(TierPrices):
    tokens: Annotated[int, Field(ge=1)]  # a prompt of more than these has these prices


class Prices(TierPrices):
    above: LongPrices | None = None


class Provider(_Section):
    dialect: Literal["openai", "anthropic"]
    endpoint: Url
    api_key: SecretRef | None = None
    max_retries: Annotated[int, Field(ge=0, le=10)] = 2
    ca_file: Path | None = None
    stall_events: bool = False  # streams that pass through end with an error event on silence, too
    simulated: bool = False  # `llm-edge run` starts a simulated provider at the endpoint


class TargetConfig(_Section):
    provider: Name
    # No quote, backslash or control character: Envoy writes it into the body between quotes.
    model: Annotated[str, Field(max_length=256, pattern=r'^[^"\\\x00-\x1f\x7f]+$')]
    weight: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    usd_per_million: Prices | None = None
    # What is not written is taken as possible, because the provider knows better than a guess.
    context_window: Annotated[int, Field(ge=1)] | None = None  # tokens, prompt and answer
    tools: bool = True
    images: bool = True
    json_schema: bool = True
    endpoints: tuple[Literal["chat", "completions", "embeddings", "responses"], ...] | None = None


class Fallbacks(_Section):
    context_window: tuple[str, ...] = ()  # models for prompts too long for every target


def _strategy(value: object) -> object:
    if value == "semantic":
        raise ValueError("semantic is not available yet; legal: " + ", ".join(STRATEGIES))
    return value


class ModelConfig(_Section):
    strategy: Annotated[
        Literal["priority", "weighted", "fastest", "cheapest"], BeforeValidator(_strategy)
    ] = "priority"
    sticky: bool = False  # a weighted draw is the key's, not the call's
    strict: bool = False  # refuse calls that a translation between dialects would change
    targets: Annotated[tuple[TargetConfig, ...], Field(min_length=1, max_length=16)]
    fallbacks: Fallbacks = Fallbacks()
    # Reserved, and set as the call's bound, where a limit counts tokens or money and it has none.
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] = 4096


class Timeouts(_Section):
    embedding: Seconds
    completion: Seconds
    streaming: Seconds
    connect: Seconds
    first_token: Seconds
    idle: Seconds

    @property
    def silence_s(self) -> float:
        """Return the silence that ends a stream; never less than a plain answer may take."""
        return max(self.idle, self.completion + 1, self.embedding + 1)


class BreakerConfig(_Section):
    failures: Annotated[int, Field(ge=1, le=1000)]
    window: Seconds
    open_min: Seconds
    open_max: Seconds

    @model_validator(mode="after")
    def _ordered(self) -> BreakerConfig:
        if self.open_max < self.open_min:
            raise ValueError("open_max must be at least open_min")
        return self


class Observability(_Section):
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["json", "text"]
    otlp_endpoint: Url | None = None  # of an OTLP/HTTP collector, without /v1/traces
    trace_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0  # of traces no caller has begun


class Config(_Section):
    """Everything an operator may write."""

    server: Server
    admin: Admin
    state: State
    auth: Auth
    tiers: dict[Name, Tier]
    limits: Limits = Limits()
    providers: dict[ProviderName, Provider]
    models: dict[str, ModelConfig]
    timeouts: Timeouts
    breaker: BreakerConfig
    cache: Cache
    observability: Observability

    @model_validator(mode="after")
    def _references(self) -> Config:
        named = [("auth.anonymous_tier", self.auth.anonymous_tier)]
        named += [
            (f"auth.jwt[{i}].default_tier", j.default_tier) for i, j in enumerate(self.auth.jwt)
        ]
        for path, tier in named:
            if tier is not None and tier not in self.tiers:
                raise ValueError(
                    f"{path}: no tier {tier!r}; legal: {', '.join(sorted(self.tiers))}"
                )
        for path, names, there in (
            ("cache.models", self.cache.models, self.models),
            ("cache.tiers", self.cache.tiers, self.tiers),
        ):
            for name in names:
                if name not in there:
                    legal = ", ".join(sorted(there)) or "none is configured"
                    raise ValueError(f"{path}: no {name!r}; legal: {legal}")
        for name, model in self.models.items():
            self._model(f"models.{name}", name, model)
        if self.server.workers > 1 and self.state.store == "memory":
            raise ValueError("server.workers: more than 1 worker needs state.store: redis")
        return self

    def _model(self, path: str, name: str, model: ModelConfig) -> None:
        for index, target in enumerate(model.targets):
            where = f"{path}.targets[{index}]"
            if target.provider not in self.providers:
                legal = ", ".join(sorted(self.providers)) or "none is configured"
                raise ValueError(
                    f"{where}.provider: no provider {target.provider!r}; legal: {legal}"
                )
            if model.strategy == "cheapest" and target.usd_per_million is None:
                raise ValueError(
                    f"{where}.usd_per_million: the strategy cheapest needs every price"
                )
        if model.strategy == "weighted" and not any(t.weight for t in model.targets):
            raise ValueError(f"{path}.targets: every weight is 0; one must be more")
        for other in model.fallbacks.context_window:
            if other == name or other not in self.models:
                raise ValueError(f"{path}.fallbacks.context_window: {other!r} is not another model")
