"""The `cache` section of the written configuration.

Knows: pydantic and what an operator may write there. Must not know: the other sections, the
runtime policy, stores.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from extproc.schema_fields import Name, Seconds, SecretRef, Section

MAX_ENTRY_BYTES = 16 * 1024 * 1024  # it travels as one message, and Envoy has it in memory thrice


class CacheTerms(Section):
    """What a tier or a key has otherwise than the whole cache."""

    enabled: bool = True
    ttl: Seconds | None = None


class ModelCacheTerms(CacheTerms):
    # False where the model's providers have defaults of their own for what a call leaves out.
    api_defaults: bool = True


def _semantic(value: object) -> object:
    if value is True:
        raise ValueError("semantic answers are not available yet; legal: false")
    return value


class Semantic(Section):
    enabled: Annotated[Literal[False], BeforeValidator(_semantic)] = False
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.95


class Cache(Section):
    """The response cache; sizes in bytes."""

    enabled: bool
    ttl: Seconds
    idle: Seconds
    max_bytes: Annotated[int, Field(ge=1_048_576)]
    max_entry_bytes: Annotated[int, Field(ge=1024, le=MAX_ENTRY_BYTES)]
    embeddings_ttl: Seconds
    scope: Literal["tenant", "key", "shared"]
    tool_calls: bool  # keep answers that ask the caller to call tools
    max_temperature: Annotated[float, Field(ge=0, le=2)] | None  # of calls; none: any
    debug_key: bool  # tell callers the digest of their key in Cache-Status
    secret: SecretRef | None = None  # keys the digests
    models: dict[str, ModelCacheTerms] = Field(default_factory=dict)
    tiers: dict[Name, CacheTerms] = Field(default_factory=dict)
    keys: dict[str, CacheTerms] = Field(default_factory=dict)  # by key id
    semantic: Semantic = Semantic()

    @model_validator(mode="after")
    def _entries_fit(self) -> Cache:
        if self.max_entry_bytes > self.max_bytes:
            raise ValueError("max_entry_bytes must be at most max_bytes")
        return self
