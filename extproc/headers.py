"""The headers a decision reads; Envoy sends the processor no others.

Knows: names. Must not know: what they mean. What is not sent costs nothing to encode, carry and
decode, and a cookie or a proxy's secret is not there to be leaked.
"""

from __future__ import annotations

from typing import Final

CREDENTIALS: Final = ("authorization", "x-api-key", "api-key")
READ: Final = (
    *(":method", ":path", *CREDENTIALS),
    *("x-request-id", "content-length", "x-forwarded-for", "anthropic-version", "traceparent"),
    *("x-llm-provider", "x-llm-strategy", "x-llm-timeout-ms", "cache-control"),
    *("anthropic-beta", "openai-beta"),  # trials change answers, so they are part of a cache key
)
READ_OF_ANSWERS: Final = (":status",)  # of those that are completed from the cache
