"""The compiled runtime configuration: immutable, swapped whole on reload.

Knows: the schema and the domain. Must not know: files, the environment, Envoy or the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from math import ceil
from types import MappingProxyType

from extproc.cache_policy import OFF, Policy
from extproc.domain import PICO_USD_PER_USD, Dialect, Model, Price, Target
from extproc.limits import Tier
from extproc.schema import Config, Prices, TargetConfig, TierPrices
from extproc.snapshot_cache import compile_cache
from extproc.tiers import compile_tiers

SILENCE_MARGIN_S = 1.0  # of what Envoy allows: a reply that came later would be in vain
_ENDPOINTS = ("chat", "completions", "embeddings", "responses")
_PICO_USD_PER_TOKEN = PICO_USD_PER_USD // 1_000_000  # of 1 USD per million tokens
# Of the input's price, for five minutes and for an hour. Others write for the input's, or say so.
# Source: https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching#pricing
_CACHE_WRITE, _CACHE_WRITE_1H = Decimal("1.25"), Decimal(2)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a request needs to know of the configuration. Timeouts in milliseconds."""

    models: Mapping[str, Model]
    max_request_bytes: int
    timeout_ms: Mapping[str, int]  # embedding, completion, streaming
    started_at: int  # unix seconds: the `created` of every listed model
    tiers: Mapping[str, Tier]
    trusted_hops: int
    first_token_ms: int = 20_000
    cache: Policy = OFF
    # For another call's answer or a translated stream's next: Envoy ends what is silent longer.
    wait_ms: int = 60_000


def compile_snapshot(config: Config, now: float, cache_secret: bytes = b"") -> Snapshot:
    """Resolve names and units once, so that a request only looks things up.

    `cache_secret` as `caching.cache_secret` reads it, empty where none is configured.
    """
    models: dict[str, Model] = {}
    for name, written in config.models.items():
        targets = tuple(
            Target(
                provider=target.provider,
                model=target.model,
                weight=target.weight,
                price=price_of(target.usd_per_million, config.providers[target.provider].dialect),
                max_retries=config.providers[target.provider].max_retries,
                dialect=config.providers[target.provider].dialect,
                context_window=target.context_window,
                lacks=lacks(target),
            )
            for target in written.targets
        )
        models[name] = Model(
            name,
            written.strategy,
            targets,
            written.max_output_tokens,
            strict=written.strict,
            sticky=written.sticky,
            fallback=written.fallbacks.context_window,
        )
    timeouts = config.timeouts
    return Snapshot(
        models=MappingProxyType(models),
        max_request_bytes=config.server.max_request_bytes,
        timeout_ms=MappingProxyType(
            {
                "embedding": max(1, round(timeouts.embedding * 1000)),
                "completion": max(1, round(timeouts.completion * 1000)),
                "streaming": max(1, round(timeouts.streaming * 1000)),
            }
        ),
        started_at=int(now),
        first_token_ms=max(1, round(timeouts.first_token * 1000)),
        tiers=compile_tiers(config),
        trusted_hops=config.server.trusted_hops,
        wait_ms=max(1, round((timeouts.silence_s - SILENCE_MARGIN_S) * 1000)),
        cache=compile_cache(config, cache_secret),
    )


def lacks(written: TargetConfig) -> frozenset[str]:
    """Name what a target cannot do: needs of a call, and endpoints with a slash before them."""
    missing = {name for name in ("tools", "images", "json_schema") if not getattr(written, name)}
    if written.endpoints is not None:
        missing |= {f"/{name}" for name in _ENDPOINTS if name not in written.endpoints}
    return frozenset(missing)


def price_of(written: Prices | None, dialect: Dialect) -> Price | None:
    """Convert USD per million tokens to whole pico-USD per token, exactly.

    Only a price that is worked out, of an Anthropic provider's cache writes, may be rounded: up.
    """
    if written is None:
        return None
    price = _one_price(written, dialect)
    if written.above is None:
        return price
    above = _one_price(written.above, dialect)
    return replace(price, above_tokens=written.above.tokens, above=above)


def _one_price(written: TierPrices, dialect: Dialect) -> Price:
    cached = written.input if written.cached_input is None else written.cached_input
    write, write_1h = written.cache_write, written.cache_write_1h
    if dialect == "anthropic":
        write = written.input * _CACHE_WRITE if write is None else write
        write_1h = written.input * _CACHE_WRITE_1H if write_1h is None else write_1h
    return Price(
        _pico(written.input),
        _pico(written.output),
        _pico(cached),
        cache_write=None if write is None else _pico(write),
        cache_write_1h=None if write_1h is None else _pico(write_1h),
    )


def _pico(usd_per_million: Decimal) -> int:
    return ceil(usd_per_million * _PICO_USD_PER_TOKEN)
