"""What the configuration says of the cache: whose answers are shared, which, and for how long.

Knows: its own fields. Must not know: the written configuration, requests, stores or clocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

Scope: TypeAlias = Literal["tenant", "key", "shared"]

MIN_SECRET_BYTES: Final = 16  # 128 bits where it is random; less is guessed with the prompts


@dataclass(frozen=True, slots=True)
class Terms:
    """What one model, tier or key has otherwise; `ttl_ms` None: what the whole cache has."""

    enabled: bool = True
    ttl_ms: int | None = None


AS_USUAL: Final = Terms()


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """What bears on the answers of one public model.

    `version` changes with everything in the configuration that can change an answer of it, so that
    answers from before a change are not found after it. `api_defaults`: see `canonical.form`.
    """

    version: str
    terms: Terms = AS_USUAL
    api_defaults: bool = True


@dataclass(frozen=True, slots=True)
class Policy:
    """The cache of one snapshot. Times in milliseconds, sizes in bytes.

    An answer is shared within `scope`. `max_temperature` None: any. `secret` keys the digests, so
    that who reads a store cannot test guesses of what was asked; empty: the key is public.
    """

    enabled: bool
    scope: Scope = "tenant"
    ttl_ms: int = 300_000
    embeddings_ttl_ms: int = 3_600_000
    max_entry_bytes: int = 1_048_576
    tool_calls: bool = False
    max_temperature: float | None = 1.0
    debug_key: bool = False
    secret: bytes = field(default=b"", repr=False)
    models: Mapping[str, ModelPolicy] = field(default_factory=dict)
    tiers: Mapping[str, Terms] = field(default_factory=dict)
    keys: Mapping[str, Terms] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.secret and len(self.secret) < MIN_SECRET_BYTES:
            raise ValueError(f"cache.secret: write {MIN_SECRET_BYTES} bytes or more")


OFF: Final = Policy(enabled=False)
