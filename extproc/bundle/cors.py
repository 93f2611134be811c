"""Let web pages of the configured origins call the gateway: Envoy answers their preflights.

Knows: which headers callers may send and pages may read. Must not know: routes, who is calling.
Source: the Fetch standard, "CORS protocol"; Envoy's CORS filter.
"""

from __future__ import annotations

from typing import Final

from envoy_data_plane.envoy.extensions.filters.http.cors.v3 import Cors, CorsPolicy
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.google.protobuf import Any

from extproc.bundle.messages import http_filter
from extproc.schema import Cors as Written

CORS: Final = "envoy.filters.http.cors"
MAX_AGE_S: Final = 600  # how long a browser may keep a preflight; longer delays a withdrawn origin
# The star covers what client libraries add (x-stainless-*) but, says the standard, never
# `authorization`; the rest is named for browsers that do not know the star.
ALLOWED_HEADERS: Final = (
    *("authorization", "x-api-key", "api-key", "content-type", "accept", "cache-control"),
    *("x-request-id", "traceparent", "tracestate", "idempotency-key"),
    *("x-llm-provider", "x-llm-strategy", "x-llm-timeout-ms", "anthropic-version"),
    *("anthropic-beta", "anthropic-dangerous-direct-browser-access", "*"),
)
_COUNTED: Final = ("requests", "tokens", "input-tokens", "output-tokens")
EXPOSED_HEADERS: Final = (
    *("x-request-id", "x-llm-provider", "x-llm-model", "x-llm-attempts", "cache-status", "age"),
    *("retry-after", "server-timing", "ratelimit-policy", "ratelimit"),
    *(f"x-ratelimit-{m}-{n}" for m in ("limit", "remaining", "reset") for n in _COUNTED[:2]),
    *(f"anthropic-ratelimit-{n}-{m}" for n in _COUNTED for m in ("limit", "remaining", "reset")),
)


def cors_filters(written: Written) -> list[HttpFilter]:
    """Return the filter, or none where no origin may call."""
    return [http_filter(CORS, Cors())] if written.allow_origins else []


def cors_policy(written: Written) -> dict[str, Any]:
    """Return the policy as a virtual host carries it, empty where no origin may call.

    Credentials of the browser's own (cookies) are not allowed: callers bring a key or a token.
    """
    if not written.allow_origins:
        return {}
    policy = CorsPolicy(
        # An exact star is Envoy's way to say every origin.
        allow_origin_string_match=[StringMatcher(exact=o) for o in written.allow_origins],
        allow_methods="GET, POST",
        allow_headers=", ".join(ALLOWED_HEADERS),
        expose_headers=", ".join(EXPOSED_HEADERS),
        max_age=str(MAX_AGE_S),
        forward_not_matching_preflights=False,  # answered without the headers that would allow it
    )
    return {CORS: Any.pack(policy)}
