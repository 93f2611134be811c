"""Turn the headers of a request into its caller.

Knows: the order of the ways to prove an identity, and a bounded cache of verified tokens. Must not
know: HTTP libraries, how directories and key sets are kept, or clocks (time is an argument).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from hashlib import blake2b
from typing import Final, Protocol

import jwt
from cachetools import LRUCache

from extproc.domain import Principal
from extproc.errors import Denied
from extproc.issuers import compile_issuer, compile_jwks
from extproc.policies.auth import (
    ANONYMOUS,
    NO_KEYS,
    KeyDirectory,
    authenticate_key,
    find_credential,
    incorrect_credential,
    looks_like_api_key,
    looks_like_jwt,
)
from extproc.policies.jwt import (
    JwtIssuer,
    VerifiedToken,
    choose_issuer,
    issuers_by_name,
    read_unverified,
    verify,
)
from extproc.schema import Auth

MAX_CACHED_TOKENS: Final = 10_000  # about 10 MB; the least recently seen goes first
MAX_CACHED_S: Final = 300.0  # how long a key withdrawn by its issuer may live on in the cache


class VerificationKeys(Protocol):
    """The public keys of one asymmetric issuer."""

    async def key(self, kid: str | None, algorithm: str) -> jwt.PyJWK:
        """Return the key, or raise Denied; see `stores.jwks.JwksCache`."""


class Authenticator:
    """Authenticate callers; the directory is replaced whole when keys change.

    A directory of None means that the keys are not known: whoever brings one is told so with 503.
    `jwks` holds the verification keys of each asymmetric issuer by its `issuer`. `tiers` are the
    configured ones: a caller of any other is refused, because no tier would mean no limits.
    """

    def __init__(
        self,
        *,
        tiers: Collection[str],
        directory: KeyDirectory | None = NO_KEYS,
        issuers: Iterable[JwtIssuer] = (),
        jwks: Mapping[str, VerificationKeys] | None = None,
        anonymous_tier: str | None = None,
    ) -> None:
        self._directory = directory
        self._used: dict[str, float] = {}
        self._tiers = frozenset(tiers)
        self._issuers = issuers_by_name(issuers)
        self._jwks = dict(jwks or {})
        self._verified: LRUCache[bytes, VerifiedToken] = LRUCache(MAX_CACHED_TOKENS)
        self._anonymous: Principal | None = None
        if anonymous_tier is not None:
            self._require_tier(anonymous_tier)
            self._anonymous = Principal(ANONYMOUS, ANONYMOUS, anonymous_tier)
        for issuer in self._issuers.values():
            if issuer.default_tier is not None:
                self._require_tier(issuer.default_tier)
            if (issuer.secret is None) != (issuer.issuer in self._jwks):
                raise ValueError(f"issuer {issuer.issuer!r} needs either a secret or a JWKS")

    @classmethod
    def from_config(
        cls,
        auth: Auth,
        directory: KeyDirectory | None,
        env: Mapping[str, str],
        *,
        tiers: Collection[str],
        on_error: Callable[[str], None],
    ) -> Authenticator:
        """Build one for the written `auth` section; ValueError where an issuer is not usable.

        `on_error` is called with the operation ("fetch") when a key set could not be had.
        """
        return cls(
            tiers=tiers,
            directory=directory,
            issuers=[compile_issuer(written, env) for written in auth.jwt],
            jwks=compile_jwks(auth.jwt, on_error=on_error),
            anonymous_tier=auth.anonymous_tier,
        )

    def __repr__(self) -> str:
        return (
            f"Authenticator({self._directory!r}, issuers={len(self._issuers)}, "
            f"anonymous={self._anonymous is not None})"
        )

    def replace_directory(self, directory: KeyDirectory | None) -> None:
        """Answer from another directory from the next request on; None: the keys are not known."""
        self._directory = directory

    def take_used(self) -> dict[str, float]:
        """Return the ids of the keys that were let in since the last time, and when last."""
        used, self._used = self._used, {}
        return used

    def give_back_used(self, used: Mapping[str, float]) -> None:
        """Take back what was taken and came to nothing; later uses count."""
        self._used = {**used, **self._used}

    async def authenticate(self, headers: Mapping[str, str], now: float) -> Principal:
        """Return the caller; names lower-case, `now` in unix seconds.

        Suspends only while the key set of a token's issuer is fetched.
        Raises Denied: invalid_api_key, permission_denied for a tier that is not configured,
        store_unavailable where the keys are not known, or an identity provider is down and
        nothing it said is left.
        """
        credential = find_credential(headers)
        if credential is None:
            if self._anonymous is None:
                raise Denied("invalid_api_key", "No API key provided.")
            return self._anonymous
        if looks_like_api_key(credential):
            return self._authenticate_key(credential, now)
        if looks_like_jwt(credential):
            principal = await self._authenticate_token(credential, now)
        else:
            raise incorrect_credential()
        return self._of_a_known_tier(principal)

    def _authenticate_key(self, credential: str, now: float) -> Principal:
        if self._directory is None:
            # Failure mode: closed, once what was known is too old; `keyring` decides when.
            raise Denied("store_unavailable", "API keys cannot be checked now.", retry_after_s=1)
        principal = self._of_a_known_tier(authenticate_key(credential, self._directory, now))
        self._used[principal.key_id] = now
        return principal

    def _of_a_known_tier(self, principal: Principal) -> Principal:
        if principal.tier not in self._tiers:
            raise Denied("permission_denied", "The tier of this credential is not configured.")
        return principal

    async def _authenticate_token(self, token: str, now: float) -> Principal:
        # The digest covers the signature: header and payload alone prove nothing.
        digest = blake2b(token.encode("ascii"), digest_size=32, person=b"llm-edge token").digest()
        cached = self._verified.get(digest)
        if cached is not None:
            if now < cached.expires_at:
                return cached.principal
            del self._verified[digest]
        claimed = read_unverified(token)
        issuer = choose_issuer(claimed, self._issuers)
        if issuer.secret is not None:
            key: jwt.PyJWK | bytes = issuer.secret
        else:
            key = await self._jwks[issuer.issuer].key(claimed.kid, claimed.algorithm)
        proof = verify(token, issuer, key, now)
        until = min(proof.expires_at, now + MAX_CACHED_S)
        if now < until:
            self._verified[digest] = VerifiedToken(proof.principal, until)
        return proof.principal

    def _require_tier(self, tier: str) -> None:
        if tier not in self._tiers:
            raise ValueError(f"no tier {tier!r}; legal: {', '.join(sorted(self._tiers))}")
