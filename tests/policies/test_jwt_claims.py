"""Claims: whom a proved token names, and which claims are refused."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.errors import Denied
from extproc.policies.jwt import JwtIssuer, verify
from tests.tokens import (
    HS,
    NOW,
    SECRET,
    claims,
    refuse,
    signed,
)

REFUSED: dict[str, tuple[Any, ...]] = {
    "no exp": ({"exp": ...}, "no exp"),
    "exp null": ({"exp": None}, "exp claim"),
    "exp a string": ({"exp": "9999999999"}, "exp claim"),
    "exp a boolean": ({"exp": True}, "exp claim"),
    "exp a list": ({"exp": [NOW + 60]}, "exp claim"),
    "exp beyond every date": ({"exp": 1e300}, "exp claim"),
    "exp in nanoseconds": ({"exp": 10**18}, "exp claim"),
    "expired by exactly the leeway": ({"exp": NOW - 30}, "expired"),
    "expired for an hour": ({"exp": NOW - 3600}, "expired"),
    "before nbf and leeway": ({"nbf": NOW + 30.5}, "not valid yet"),
    "nbf a string": ({"nbf": "soon"}, "nbf claim"),
    "nbf null": ({"nbf": None}, "nbf claim"),
    "issued in the future": ({"iat": NOW + 30.5}, "not valid yet"),
    "iat an object": ({"iat": {}}, "iat claim"),
    "no audience": ({"aud": ...}, "another audience"),
    "another audience": ({"aud": "other"}, "another audience"),
    "ours is a prefix of the audience": ({"aud": "llm2"}, "another audience"),
    "a list without ours": ({"aud": ["a", "b"]}, "another audience"),
    "audience an object": ({"aud": {"llm": 1}}, "another audience"),
    "an empty list of audiences": ({"aud": []}, "another audience"),
    "no sub": ({"sub": ...}, "no sub"),
    "an empty sub": ({"sub": ""}, "no sub"),
    "sub a number": ({"sub": 7}, "no sub"),
    "tenant a number": ({"tenant": 7}, "tenant claim"),
    "tenant empty: never the fallback": ({"tenant": ""}, "tenant claim"),
    "tenant with a colon": ({"tenant": "a:b"}, "tenant claim"),
    "tenant in the form of a subject's": ({"tenant": "sub~0"}, "tenant claim"),
    "tenant with a line end": ({"tenant": "a\nb"}, "tenant claim"),
    "tenant too long": ({"tenant": "a" * 128}, "tenant claim"),
    "tier a number": ({"tier": 7}, "tier claim"),
    "tier empty": ({"tier": ""}, "tier claim"),
    "tier too long": ({"tier": "t" * 64}, "tier claim"),
    "models a string": ({"models": "gpt-4o"}, "models claim"),
    "models null: never every model": ({"models": None}, "models claim"),
    "models of numbers": ({"models": [1]}, "models claim"),
}


@pytest.mark.parametrize(("changes", "word"), REFUSED.values(), ids=REFUSED.keys())
def test_claims_refused(changes: dict[str, Any], word: str) -> None:
    """Refuse a signed token whose claims do not hold, and say which."""
    assert word in refuse(signed(claims(**changes)), HS, SECRET)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"exp": NOW - 29.5}, id="expired within the leeway"),
        pytest.param({"nbf": NOW + 30}, id="not before, within the leeway"),
        pytest.param({"iat": NOW + 30}, id="issued in the future, within the leeway"),
        pytest.param({"nbf": NOW, "iat": NOW}, id="issued now"),
        pytest.param({"aud": ["other", "llm"]}, id="ours among the audiences"),
    ],
)
def test_claims_accepted(changes: dict[str, Any]) -> None:
    """Accept what the leeway and lists of audiences allow."""
    proof = verify(signed(claims(**changes)), HS, SECRET, NOW)
    assert proof.expires_at == changes.get("exp", NOW + 60)


def principal_of(issuer: JwtIssuer = HS, **changes: Any) -> Any:
    """Return whom an HMAC-signed token names."""
    return verify(signed(claims(issuer, **changes)), issuer, SECRET, NOW).principal


def test_tenants_do_not_collide() -> None:
    """Keep issuers, API keys, anonymous callers and subjects apart."""
    twin = JwtIssuer("https://hs.example/2", "llm", frozenset({"HS256"}), "free", SECRET)
    named = principal_of(tenant="acme")
    assert named.tenant == f"{HS.name}:acme"
    subject = principal_of(sub="acme")
    names = [
        named.tenant,
        subject.tenant,
        principal_of(twin, tenant="acme").tenant,
        principal_of(twin, sub="acme").tenant,
        principal_of(sub="anonymous").tenant,
        principal_of(tenant="anonymous").tenant,
        "acme",
        "anonymous",
    ]
    assert len(set(names)) == len(names)
    assert principal_of(sub="acme").key_id != principal_of(twin, sub="acme").key_id


def test_personal_data_stays_out() -> None:
    """Name no subject in what is logged and counted."""
    principal = principal_of(sub="alice@example.com")
    assert "alice" not in repr(principal)
    assert principal.key_id.startswith("jwt:")
    assert len(principal.key_id) == len("jwt:") + 16
    assert principal.tenant == f"{HS.name}:sub~{principal.key_id.removeprefix('jwt:')}"


def test_claims_become_the_principal() -> None:
    """Take tier and models where the issuer says they are."""
    issuer = JwtIssuer(
        "hs", "llm", frozenset({"HS256"}), None, SECRET,
        tier_claim="plan", tenant_claim="org", models_claim="allow",
    )  # fmt: skip
    principal = principal_of(issuer, plan="pro", org="Acme Corp", allow=["a", "b"], tenant="x")
    assert (principal.tier, principal.tenant) == ("pro", f"{issuer.name}:Acme Corp")
    assert principal.models == {"a", "b"}
    assert principal_of(issuer, plan="pro").models is None
    assert principal_of(issuer, plan="pro", allow=[]).models == frozenset()
    with pytest.raises(Denied, match="plan claim"):
        principal_of(issuer)  # no default tier
