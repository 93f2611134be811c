"""Verify JSON Web Tokens of configured issuers.

Knows: JWS and JWT (RFC 7515, 7519, 8725) by PyJWT, what an issuer may sign with, claims to caller.
Must not know: where keys come from, caches, clocks (time is an argument) or the event loop.

Algorithm confusion has no room: an issuer is symmetric or asymmetric, never both. A symmetric one
has a secret and HS256; an asymmetric one only ever verifies with a public key that is bound to its
own algorithm. `none` is not registered at all.

Tenants of tokens are `ISSUER:TENANT`, or `ISSUER:sub~DIGEST` where the token names no tenant.
ISSUER has no colon, API-key tenants have none either, and a tenant claim has no "~": so no caller
of one issuer can name itself into another issuer's, an API key's or a subject's tenant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

import jwt
import msgspec
from jwt.api_jws import PyJWS

from extproc.domain import Principal
from extproc.errors import Denied
from extproc.policies.auth import incorrect_credential, looks_like_jwt

Algorithm: TypeAlias = Literal["HS256", "RS256", "ES256"]
SYMMETRIC: Final[frozenset[str]] = frozenset({"HS256"})
ASYMMETRIC: Final[frozenset[str]] = frozenset({"RS256", "ES256"})
MIN_SECRET_BYTES: Final = 32  # RFC 7518, 3.2: at least the size of the hash
MAX_TIER_CHARS: Final = 63
MAX_UNIX_S: Final = 2**53  # whole seconds a float still tells apart; refuses NaN and infinity too

_JWS: Final = PyJWS(algorithms=sorted(SYMMETRIC | ASYMMETRIC))
# Short RSA keys and secrets are refused by PyJWT instead of warned about.
_STRICT: Final = {"verify_signature": True, "enforce_minimum_key_length": True}
_TENANT_CLAIM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/@+-]{0,126}", re.ASCII)


@dataclass(frozen=True, slots=True)
class JwtIssuer:
    """Whom to believe and how. Exactly one of a secret (HS256) and a JWKS (the rest) verifies.

    `audience` must be among the token's; `leeway_s` forgives clock skew on exp, nbf and iat.
    """

    issuer: str
    audience: str
    algorithms: frozenset[str]
    default_tier: str | None = None  # None: a token without the tier claim is refused
    secret: bytes | None = field(default=None, repr=False)
    tier_claim: str = "tier"
    tenant_claim: str = "tenant"
    models_claim: str | None = "models"  # a list of model names, absent: every model
    leeway_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.issuer or not self.audience:
            raise ValueError("an issuer needs a name and an audience")
        legal = ASYMMETRIC if self.secret is None else SYMMETRIC
        if not self.algorithms or not self.algorithms <= legal:
            raise ValueError(
                f"issuer {self.issuer!r}: algorithms must be among {', '.join(sorted(legal))}"
                f" {'without' if self.secret is None else 'with'} a secret"
            )
        if self.secret is not None and len(self.secret) < MIN_SECRET_BYTES:
            raise ValueError(
                f"issuer {self.issuer!r}: the secret must have {MIN_SECRET_BYTES} bytes or more"
            )
        if not 0 <= self.leeway_s <= 300:  # noqa: PLR2004 (five minutes is more than any skew)
            raise ValueError(f"issuer {self.issuer!r}: leeway_s must be 0 to 300")

    @property
    def name(self) -> str:
        """Return the issuer's short name in tenants: its host and a digest of the whole."""
        host = urlsplit(self.issuer).hostname or self.issuer
        label = re.sub(r"[^a-z0-9.]+", "-", host.lower()).strip("-")[:40]
        tag = blake2b(self.issuer.encode(), digest_size=4, person=b"llm-edge issuer").hexdigest()
        return f"{label}-{tag}"


@dataclass(frozen=True, slots=True)
class UnverifiedToken:
    """What a token says about itself before anything is proved."""

    issuer: str
    algorithm: str
    kid: str | None


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """A caller and the end of the proof, in unix seconds."""

    principal: Principal
    expires_at: float


def issuers_by_name(issuers: Iterable[JwtIssuer]) -> Mapping[str, JwtIssuer]:
    """Index issuers by `iss`; two of one `iss`, or of one short name, are a ValueError."""
    index: dict[str, JwtIssuer] = {}
    names: set[str] = set()
    for issuer in issuers:
        if issuer.issuer in index or issuer.name in names:
            raise ValueError(f"issuer {issuer.issuer!r} is configured twice")
        index[issuer.issuer] = issuer
        names.add(issuer.name)
    return index


def read_unverified(token: str) -> UnverifiedToken:
    """Read issuer, algorithm and key id, to choose what to verify with and for nothing else.

    Raises Denied(invalid_api_key).
    """
    header, claims = _parts(token, b"", None)
    issuer, algorithm, kid = claims.get("iss"), header.get("alg"), header.get("kid")
    if not isinstance(issuer, str) or not isinstance(algorithm, str):
        raise incorrect_credential()
    if kid is not None and not isinstance(kid, str):
        raise incorrect_credential()
    return UnverifiedToken(issuer, algorithm, kid)


def choose_issuer(token: UnverifiedToken, issuers: Mapping[str, JwtIssuer]) -> JwtIssuer:
    """Return the issuer a token claims, where it may sign that way; Denied otherwise."""
    issuer = issuers.get(token.issuer)
    if issuer is None or token.algorithm not in issuer.algorithms:
        raise incorrect_credential()
    return issuer


def verify(token: str, issuer: JwtIssuer, key: jwt.PyJWK | bytes, now: float) -> VerifiedToken:
    """Prove a token and return its caller.

    `key` is the issuer's secret, or the public key of the token's `kid`; `now` is unix seconds.
    Raises Denied(invalid_api_key); a reason is given only to whoever holds a validly signed token.
    """
    if isinstance(key, bytes) != (issuer.secret is not None):
        raise incorrect_credential()
    _, claims = _parts(token, key, issuer)
    if claims.get("iss") != issuer.issuer:
        raise incorrect_credential()
    _check_audience(claims, issuer.audience)
    expires_at = _check_times(claims, issuer.leeway_s, now)
    return VerifiedToken(_principal(claims, issuer), expires_at)


def _parts(
    token: str, key: jwt.PyJWK | bytes, issuer: JwtIssuer | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims; verified where there is an issuer."""
    if not looks_like_jwt(token):
        raise incorrect_credential()
    try:
        if issuer is None:
            parts = _JWS.decode_complete(token, options={"verify_signature": False})
        else:
            parts = _JWS.decode_complete(
                token,
                key,
                algorithms=sorted(issuer.algorithms),
                options=_STRICT,  # type: ignore[arg-type] # PyJWT types the merged options
            )
        claims = msgspec.json.decode(parts["payload"])
    except (jwt.PyJWTError, msgspec.DecodeError, UnicodeError, RecursionError):
        raise incorrect_credential() from None
    if not isinstance(claims, dict):
        raise incorrect_credential()
    return parts["header"], claims


def _check_audience(claims: Mapping[str, Any], audience: str) -> None:
    named = claims.get("aud")
    audiences = [named] if isinstance(named, str) else named
    if not isinstance(audiences, list) or audience not in audiences:
        raise Denied("invalid_api_key", "The token is for another audience.")


def _check_times(claims: Mapping[str, Any], leeway_s: float, now: float) -> float:
    """Return `exp`, having checked it and `nbf` and `iat` where present (RFC 7519, 4.1)."""
    expires_at = _numeric_date(claims, "exp")
    if expires_at is None:
        raise Denied("invalid_api_key", "The token has no exp claim.")
    if now >= expires_at + leeway_s:
        raise Denied("invalid_api_key", "The token has expired.")
    for claim in ("nbf", "iat"):
        starts_at = _numeric_date(claims, claim)
        if starts_at is not None and now < starts_at - leeway_s:
            raise Denied("invalid_api_key", f"The token is not valid yet ({claim}).")
    return expires_at


def _numeric_date(claims: Mapping[str, Any], claim: str) -> float | None:
    if claim not in claims:
        return None
    value = claims[claim]
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not numeric or not abs(value) < MAX_UNIX_S:
        raise Denied("invalid_api_key", f"The token's {claim} claim must be a number.")
    return float(value)


def _principal(claims: Mapping[str, Any], issuer: JwtIssuer) -> Principal:
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject:
        raise Denied("invalid_api_key", "The token has no sub claim.")
    subject_tag = blake2b(
        f"{issuer.issuer}\0{subject}".encode(), digest_size=8, person=b"llm-edge subject"
    ).hexdigest()
    tenant = claims.get(issuer.tenant_claim) if issuer.tenant_claim != "sub" else None
    if tenant is None:
        tenant = f"sub~{subject_tag}"
    elif not isinstance(tenant, str) or _TENANT_CLAIM.fullmatch(tenant) is None:
        raise Denied("invalid_api_key", f"The token's {issuer.tenant_claim} claim is not usable.")
    return Principal(
        tenant=f"{issuer.name}:{tenant}",
        key_id=f"jwt:{subject_tag}",  # a digest: subjects are often mail addresses
        tier=_tier(claims, issuer),
        models=_models(claims, issuer),
    )


def _tier(claims: Mapping[str, Any], issuer: JwtIssuer) -> str:
    tier = claims.get(issuer.tier_claim)
    if tier is None:
        tier = issuer.default_tier
    if not isinstance(tier, str) or not 0 < len(tier) <= MAX_TIER_CHARS:
        raise Denied("invalid_api_key", f"The token's {issuer.tier_claim} claim is not usable.")
    return tier


def _models(claims: Mapping[str, Any], issuer: JwtIssuer) -> frozenset[str] | None:
    if issuer.models_claim is None or issuer.models_claim not in claims:
        return None
    models = claims[issuer.models_claim]
    if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        raise Denied(
            "invalid_api_key", f"The token's {issuer.models_claim} claim must be a list of models."
        )
    return frozenset(models)
