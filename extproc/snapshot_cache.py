"""The written `cache` section, compiled: times in milliseconds, and a version of every model.

Knows: the schema and the cache's policy. Must not know: calls, keys or stores.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

import msgspec

from extproc.cache_policy import MIN_SECRET_BYTES, ModelPolicy, Policy, Terms
from extproc.schema import Config, ModelConfig
from extproc.schema_cache import Cache, CacheTerms, ModelCacheTerms

VERSION_BYTES = 16  # of a digest that only has to differ from earlier ones of its own model
_NO_PRICES = {"usd_per_million"}


def compile_cache(config: Config, secret: bytes = b"") -> Policy:
    """Return the policy that a snapshot of this configuration has."""
    cache = config.cache
    return Policy(
        enabled=cache.enabled,
        scope=cache.scope,
        ttl_ms=_ms(cache.ttl),
        embeddings_ttl_ms=_ms(cache.embeddings_ttl),
        max_entry_bytes=cache.max_entry_bytes,
        tool_calls=cache.tool_calls,
        max_temperature=cache.max_temperature,
        debug_key=cache.debug_key,
        secret=secret,
        models=MappingProxyType({name: _model(config, name) for name in config.models}),
        tiers=_all(cache.tiers),
        keys=_all(cache.keys),
    )


def cache_secret(cache: Cache, env: Mapping[str, str]) -> bytes:
    """Return the secret of the keys, empty where none is written.

    Raises ValueError where one is written and missing, or has less than `MIN_SECRET_BYTES`.
    """
    if cache.secret is None:
        return b""
    text = cache.secret.read(env)
    if text is None:
        where = f"${cache.secret.env}" if cache.secret.env else str(cache.secret.file)
        raise ValueError(f"cache.secret: no secret in {where}")
    secret = text.encode()
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"cache.secret: it must have {MIN_SECRET_BYTES} bytes or more")
    return secret


def _model(config: Config, name: str) -> ModelPolicy:
    written = config.cache.models.get(name, ModelCacheTerms())
    return ModelPolicy(_version(config, name, written), _terms(written), written.api_defaults)


def _version(config: Config, name: str, terms: ModelCacheTerms) -> str:
    """Digest what can change an answer of the model: who may give it, where, and what is kept.

    Not prices, retries and credentials, so that a rotated key or a new price list empties nothing.
    """
    model = config.models[name]
    bears: dict[str, Any] = {
        "model": _answering(config, model),
        "fallbacks": [
            [other, _answering(config, config.models[other])]
            for other in model.fallbacks.context_window
        ],
        "tool_calls": config.cache.tool_calls,
        "api_defaults": terms.api_defaults,
    }
    text = msgspec.json.encode(bears, order="deterministic")
    return blake2b(text, digest_size=VERSION_BYTES).hexdigest()


def _answering(config: Config, model: ModelConfig) -> dict[str, Any]:
    return {
        "strategy": model.strategy,
        "sticky": model.sticky,
        "strict": model.strict,
        "max_output_tokens": model.max_output_tokens,
        "targets": [
            [
                target.model_dump(mode="json", exclude=_NO_PRICES),
                config.providers[target.provider].dialect,
                config.providers[target.provider].endpoint,
            ]
            for target in model.targets
        ],
    }


def _all(written: Mapping[str, CacheTerms]) -> Mapping[str, Terms]:
    return MappingProxyType({name: _terms(terms) for name, terms in written.items()})


def _terms(written: CacheTerms) -> Terms:
    return Terms(written.enabled, None if written.ttl is None else _ms(written.ttl))


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
