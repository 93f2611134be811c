"""Tokens: what proves a caller and what does not."""

from __future__ import annotations

from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.errors import Denied
from extproc.policies.jwt import (
    JwtIssuer,
    UnverifiedToken,
    choose_issuer,
    issuers_by_name,
    read_unverified,
    verify,
)
from tests.tokens import (
    BOTH,
    EC_JWK,
    EC_KEY,
    ES,
    HS,
    ISSUERS,
    NOW,
    RS,
    RSA_JWK,
    RSA_KEY,
    RSA_PEM,
    SECRET,
    claims,
    denial,
    forged,
    refuse,
    signed,
    tampered,
)

RS_CLAIMS = claims(RS)
ES_CLAIMS = claims(ES)
NO_PROOF: dict[str, tuple[Any, ...]] = {
    "HS256 signed with the RSA public key": (
        forged({"alg": "HS256"}, RS_CLAIMS, RSA_PEM),
        RS,
        RSA_JWK,
    ),
    "an HMAC that says RS256": (forged({"alg": "RS256"}, RS_CLAIMS, RSA_PEM), RS, RSA_JWK),
    "alg none": (forged({"alg": "none"}, RS_CLAIMS, b"", b"x"), RS, RSA_JWK),
    "alg None": (forged({"alg": "None"}, RS_CLAIMS, b"", b"x"), RS, RSA_JWK),
    "alg none, no signature": (forged({"alg": "none"}, RS_CLAIMS, b"", b""), RS, RSA_JWK),
    "alg none at an HS256 issuer": (forged({"alg": "none"}, claims(), b"", b"x"), HS, SECRET),
    "no alg": (forged({}, claims(), SECRET), HS, SECRET),
    "a list of algs": (forged({"alg": ["HS256"]}, claims(), SECRET), HS, SECRET),
    "RS512 is not configured": (signed(RS_CLAIMS, RSA_KEY, "RS512"), RS, RSA_JWK),
    "PS256 is not configured": (signed(RS_CLAIMS, RSA_KEY, "PS256"), RS, RSA_JWK),
    "ES256 at an RS256 issuer": (signed(claims(RS), EC_KEY, "ES256"), RS, EC_JWK),
    "an ES256 token and an RSA key": (signed(claims(BOTH), EC_KEY, "ES256"), BOTH, RSA_JWK),
    "RS256 at an HS256 issuer": (signed(claims(HS), RSA_KEY, "RS256"), HS, RSA_JWK),
    "a secret at an RS256 issuer": (signed(claims(RS)), RS, SECRET),
    "another secret": (signed(claims(), b"another secret of 32 bytes......"), HS, SECRET),
    "a tampered HMAC": (tampered(signed(claims())), HS, SECRET),
    "a tampered RSA signature": (tampered(signed(RS_CLAIMS, RSA_KEY, "RS256")), RS, RSA_JWK),
    "a tampered EC signature": (tampered(signed(ES_CLAIMS, EC_KEY, "ES256")), ES, EC_JWK),
    "an EC signature of zeros": (forged({"alg": "ES256"}, ES_CLAIMS, b"", bytes(64)), ES, EC_JWK),
    "a critical header nobody knows": (signed(claims(crit=1), crit=["exp"]), HS, SECRET),
    "a kid that is no string": (signed(claims(), kid=7), HS, SECRET),
    "an unknown issuer": (signed(claims(iss="https://evil.example")), HS, SECRET),
    "no issuer": (signed(claims(iss=...)), HS, SECRET),
    "a list of issuers": (signed(claims(iss=[HS.issuer])), HS, SECRET),
    "claims that are a list": (signed([1]), HS, SECRET),
    "claims that are no JSON": (signed(b"not json"), HS, SECRET),
    "claims nested without end": (signed(b"[" * 5000), HS, SECRET),
    "half a character in the issuer": (signed(b'{"iss": "\\ud800"}'), HS, SECRET),
    "a header that is no text": (forged(b"\xff", claims(), SECRET), HS, SECRET),
}


@pytest.mark.parametrize(("token", "issuer", "key"), NO_PROOF.values(), ids=NO_PROOF.keys())
def test_no_proof(token: str, issuer: JwtIssuer, key: jwt.PyJWK | bytes) -> None:
    """Refuse what is not proved, without saying why."""
    assert refuse(token, issuer, key) == "Incorrect API key provided."


def test_only_a_key_of_the_set_verifies() -> None:
    """Refuse bytes as the key of an asymmetric issuer, even where they are the right key."""
    token = signed(RS_CLAIMS, RSA_KEY, "RS256")
    assert denial(lambda: verify(token, RS, RSA_JWK, NOW)) is None
    assert denial(lambda: verify(token, RS, RSA_PEM, NOW)) is not None


@pytest.mark.parametrize(
    ("issuer", "private", "alg", "key"),
    [
        pytest.param(HS, SECRET, "HS256", SECRET, id="HS256"),
        pytest.param(RS, RSA_KEY, "RS256", RSA_JWK, id="RS256"),
        pytest.param(ES, EC_KEY, "ES256", EC_JWK, id="ES256"),
        pytest.param(BOTH, EC_KEY, "ES256", EC_JWK, id="ES256 of two"),
    ],
)
def test_proofs(issuer: JwtIssuer, private: Any, alg: str, key: jwt.PyJWK | bytes) -> None:
    """Accept each algorithm at an issuer that is configured for it."""
    token = signed(claims(issuer), private, alg, kid="k1")
    assert read_unverified(token) == UnverifiedToken(issuer.issuer, alg, "k1")
    assert choose_issuer(read_unverified(token), ISSUERS) is issuer
    assert verify(token, issuer, key, NOW).principal.tier == "free"


IMPOSSIBLE: dict[str, tuple[Any, ...]] = {
    "secret for RS256": ({"algorithms": frozenset({"RS256"}), "secret": SECRET}, "HS256"),
    "HS256 by JWKS": ({"algorithms": frozenset({"HS256"}), "secret": None}, "ES256"),
    "both kinds": ({"algorithms": frozenset({"HS256", "RS256"})}, "HS256"),
    "none": ({"algorithms": frozenset({"none"}), "secret": None}, "ES256"),
    "no algorithm": ({"algorithms": frozenset()}, "HS256"),
    "a short secret": ({"secret": b"short"}, "32 bytes"),
    "no audience": ({"audience": ""}, "audience"),
    "a negative leeway": ({"leeway_s": -1.0}, "leeway"),
    "an hour of leeway": ({"leeway_s": 3600.0}, "leeway"),
}


@pytest.mark.parametrize(("changes", "word"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_issuers_that_cannot_be(changes: dict[str, Any], word: str) -> None:
    """Refuse to construct an issuer that would verify unsafely."""
    good: dict[str, Any] = {
        "issuer": "i", "audience": "a", "algorithms": frozenset({"HS256"}), "secret": SECRET,
    }  # fmt: skip
    with pytest.raises(ValueError, match=word):
        JwtIssuer(**(good | changes))


def test_an_issuer_stands_once_and_hides_its_secret() -> None:
    """Refuse two issuers of one name, and keep the secret out of the repr."""
    with pytest.raises(ValueError, match="configured twice"):
        issuers_by_name([HS, HS])
    assert "0123" not in repr(HS)
    assert ":" not in HS.name


text = st.text(st.characters(codec=None))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
    max_leaves=5,
)
member = st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat", "tenant", "tier", "models"])


@given(st.dictionaries(st.sampled_from(["alg", "kid", "crit", "b64", "typ"]), values))
def test_any_header_is_denied_and_never_anything_else(header: dict[str, Any]) -> None:
    """Answer any header of a signed token with Denied, a proof at most for the good alg."""
    token = forged(header, claims(), SECRET)
    denied = denial(
        lambda: verify(token, choose_issuer(read_unverified(token), ISSUERS), SECRET, NOW)
    )
    assert header["alg"] == "HS256" if denied is None else denied.status == 401


@given(st.dictionaries(member, values))
def test_any_claims_are_denied_and_never_anything_else(changes: dict[str, Any]) -> None:
    """Answer any claims under a good signature with a caller or Denied."""
    token = signed(claims(**changes))
    proofs = []
    denied = denial(lambda: proofs.append(verify(token, HS, SECRET, NOW)))
    if denied is None:
        assert proofs[0].principal.tenant.startswith(f"{HS.name}:")
    else:
        assert denied.status == 401


@given(
    st.one_of(
        st.text(),
        st.from_regex(r"[\w-]{1,40}\.[\w-]{0,40}\.[\w-]{0,40}"),
        st.binary().map(lambda b: forged(b, b, SECRET)),
    )
)
def test_any_text_is_denied_and_never_anything_else(token: str) -> None:
    """Answer any text with Denied."""
    with pytest.raises(Denied):
        read_unverified(token)
    with pytest.raises(Denied):
        verify(token, HS, SECRET, NOW)
