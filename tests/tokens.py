"""Makers of good and bad tokens for the tests of whatever reads them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from extproc.errors import Denied
from extproc.policies.jwt import (
    JwtIssuer,
    choose_issuer,
    issuers_by_name,
    read_unverified,
    verify,
)

NOW = 1_800_000_000.0
SECRET = b"0123456789abcdef0123456789abcdef"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_PEM = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
RSA_JWK_ENTRY: dict[str, Any] = jwt.algorithms.RSAAlgorithm.to_jwk(
    RSA_KEY.public_key(), as_dict=True
)
EC_JWK_ENTRY: dict[str, Any] = jwt.algorithms.ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True)
RSA_JWK = jwt.PyJWK(RSA_JWK_ENTRY)
EC_JWK = jwt.PyJWK(EC_JWK_ENTRY)

HS = JwtIssuer("https://hs.example", "llm", frozenset({"HS256"}), "free", SECRET)
RS = JwtIssuer("https://rs.example", "llm", frozenset({"RS256"}), "free")
ES = JwtIssuer("https://es.example", "llm", frozenset({"ES256"}), "free")
BOTH = JwtIssuer("https://both.example", "llm", frozenset({"RS256", "ES256"}), "free")
ISSUERS = issuers_by_name([HS, RS, ES, BOTH])


def claims(issuer: JwtIssuer = HS, **changes: Any) -> dict[str, Any]:
    """Write good claims with changes; a change to `...` leaves the claim out."""
    good = {"iss": issuer.issuer, "aud": "llm", "sub": "alice", "exp": NOW + 60}
    return {k: v for k, v in (good | changes).items() if v is not ...}


def signed(payload: Any, key: Any = SECRET, alg: str = "HS256", **header: Any) -> str:
    """Sign any payload by hand with HMAC, or by PyJWT with the rest."""
    if alg == "HS256":
        return forged({"alg": alg, "typ": "JWT"} | header, payload, key)
    return jwt.encode(payload, key, algorithm=alg, headers=header)


def forged(header: Any, payload: Any, secret: bytes, signature: bytes | None = None) -> str:
    """Write a token without a library's scruples, HMAC-signed unless a signature is given."""
    parts = [
        json.dumps(part).encode() if not isinstance(part, bytes) else part
        for part in (header, payload)
    ]
    body = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    if signature is None:
        signature = hmac.new(secret, body, hashlib.sha256).digest()
    return (body + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def tampered(token: str) -> str:
    """Flip a bit of the signature's first character."""
    head, _, signature = token.rpartition(".")
    return f"{head}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"


def refuse(token: str, issuer: JwtIssuer, key: jwt.PyJWK | bytes, now: float = NOW) -> str:
    """Go the whole way as the authenticator does and return the message of the refusal."""
    with pytest.raises(Denied) as caught:
        verify(token, choose_issuer(read_unverified(token), ISSUERS), key, now)
    assert caught.value.status == 401
    assert token not in str(caught.value)
    with pytest.raises(Denied):  # the proof alone refuses too, whatever chose the issuer
        verify(token, issuer, key, now)
    return caught.value.message


def denial(act: Callable[[], object]) -> Denied | None:
    """Return the refusal an act ends in, None where it succeeds; let any other error through."""
    try:
        act()
    except Denied as denied:
        return denied
    return None


def document(*kids: str) -> bytes:
    """Write a JWK Set with one RSA key under each id."""
    return json.dumps({"keys": [RSA_JWK_ENTRY | {"kid": kid} for kid in kids]}).encode()
