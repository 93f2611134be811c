"""Compile the written `auth.jwt` section to what verifies tokens.

Knows: the schema, runtime issuers and where their keys come from. Must not know: requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from extproc.policies.jwt import JwtIssuer
from extproc.schema import JwtIssuerConfig
from extproc.stores.jwks import Fetch, JwksCache, fetch_source


def compile_issuer(written: JwtIssuerConfig, env: Mapping[str, str]) -> JwtIssuer:
    """Return the runtime issuer; ValueError where its secret is missing or too short."""
    secret = None
    if written.secret is not None:
        text = written.secret.read(env)
        if text is None:
            where = f"${written.secret.env}" if written.secret.env else str(written.secret.file)
            raise ValueError(f"issuer {written.issuer!r}: no secret in {where}")
        secret = text.encode()
    return JwtIssuer(
        issuer=written.issuer,
        audience=written.audience,
        algorithms=frozenset(written.algorithms),
        default_tier=written.default_tier,
        secret=secret,
        tier_claim=written.tier_claim,
        tenant_claim=written.tenant_claim,
    )


def compile_jwks(
    written: Sequence[JwtIssuerConfig],
    *,
    on_error: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    fetch: Fetch = fetch_source,
) -> dict[str, JwksCache]:
    """Return the key set of each asymmetric issuer by `iss`; `clock` is monotonic seconds."""
    return {
        issuer.issuer: JwksCache(str(source), fetch=fetch, clock=clock, on_error=on_error)
        for issuer in written
        if (source := issuer.jwks_url or issuer.jwks_file) is not None
    }
