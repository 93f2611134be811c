"""Authentication: the way from headers to a caller, and what the token cache may not do."""

from __future__ import annotations

import gc
import os
import resource
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import identity
from extproc.domain import KeyRecord, Principal
from extproc.errors import Denied
from extproc.identity import Authenticator
from extproc.policies.auth import NO_KEYS, KeyDirectory, digest_of, new_api_key
from extproc.schema import Auth
from tests.tokens import (
    EC_JWK,
    EC_KEY,
    ES,
    HS,
    NOW,
    RS,
    RSA_JWK,
    RSA_KEY,
    claims,
    document,
    forged,
    signed,
    tampered,
)

STRANGERS = int(os.environ.get("LLM_EDGE_STRANGERS", "100000"))  # `make crash` sets a million
KEY_ID, KEY = new_api_key(bytes(32))
RECORD = KeyRecord(KEY_ID, digest_of(KEY), "ci", "acme", "free", None, None, 0.0, None, None)
DIRECTORY = KeyDirectory.of([RECORD], 1)


class Keys:
    """Public keys at hand, counting who asks."""

    def __init__(self, key: jwt.PyJWK) -> None:
        self.answer = key
        self.asked: list[tuple[str | None, str]] = []

    async def key(self, kid: str | None, algorithm: str) -> jwt.PyJWK:
        self.asked.append((kid, algorithm))
        return self.answer


def authenticator(rs: Keys | None = None, anonymous_tier: str | None = None) -> Authenticator:
    """Build one with an API key and an issuer of each kind."""
    return Authenticator(
        tiers={"free", "pro"},
        directory=DIRECTORY,
        issuers=[HS, RS, ES],
        jwks={RS.issuer: rs or Keys(RSA_JWK), ES.issuer: Keys(EC_JWK)},
        anonymous_tier=anonymous_tier,
    )


def now_or_never(who: Authenticator, headers: dict[str, str], now: float = NOW) -> Principal:
    """Step the coroutine once, as a transport does; fail where it suspends."""
    with pytest.raises(StopIteration) as done:
        who.authenticate(headers, now).send(None)
    principal: Principal = done.value.value
    return principal


def bearer(token: str) -> dict[str, str]:
    """Write the header of a token."""
    return {"authorization": f"Bearer {token}"}


async def refusal(who: Authenticator, headers: dict[str, str], now: float = NOW) -> Denied:
    """Return how a request is refused."""
    with pytest.raises(Denied) as caught:
        await who.authenticate(headers, now)
    return caught.value


RS_TOKEN = signed(claims(RS), RSA_KEY, "RS256", kid="k1")


async def test_the_cache_is_keyed_on_the_signature_too() -> None:
    """Refuse a tampered signature under a header and payload that were proved before."""
    who = authenticator()
    for token in (RS_TOKEN, signed(claims(HS)), signed(claims(ES), EC_KEY, "ES256")):
        await who.authenticate(bearer(token), NOW)
        assert (await refusal(who, bearer(tampered(token)))).status == 401
        assert (await refusal(who, bearer(token[:-1]))).status == 401


async def test_a_proof_is_remembered_until_the_token_ends() -> None:
    """Ask for the key once, and not believe the cache at the token's end or after."""
    keys = Keys(RSA_JWK)
    who = authenticator(keys)
    for now in (NOW, NOW + 30, NOW + 59.9):
        await who.authenticate(bearer(RS_TOKEN), now)
    assert keys.asked == [("k1", "RS256")]
    await who.authenticate(bearer(RS_TOKEN), NOW + 60)  # at exp, within the leeway: proved anew
    await who.authenticate(bearer(RS_TOKEN), NOW + 61)
    assert len(keys.asked) == 3
    assert (await refusal(who, bearer(RS_TOKEN), NOW + 90)).status == 401


async def test_a_proof_is_remembered_for_five_minutes_at_most() -> None:
    """Ask again for the key of a long-lived token, so that its withdrawal is noticed."""
    keys = Keys(RSA_JWK)
    who = authenticator(keys)
    token = signed(claims(RS, exp=NOW + 86_400), RSA_KEY, "RS256")
    await who.authenticate(bearer(token), NOW)
    await who.authenticate(bearer(token), NOW + 299.9)
    assert len(keys.asked) == 1
    await who.authenticate(bearer(token), NOW + 300)
    assert len(keys.asked) == 2


async def test_refusals_are_not_remembered() -> None:
    """Prove a token that was refused before as soon as its key is there."""
    keys = Keys(EC_JWK)
    who = authenticator(keys)
    assert (await refusal(who, bearer(RS_TOKEN))).status == 401
    keys.answer = RSA_JWK
    assert (await who.authenticate(bearer(RS_TOKEN), NOW)).tier == "free"


async def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the token least recently seen, not the latest."""
    monkeypatch.setattr(identity, "MAX_CACHED_TOKENS", 2)
    keys = Keys(RSA_JWK)
    who = authenticator(keys)
    tokens = [signed(claims(RS, sub=sub), RSA_KEY, "RS256") for sub in "abc"]
    for token in [tokens[0], tokens[1], tokens[0], tokens[2], tokens[0]]:
        await who.authenticate(bearer(token), NOW)
    assert len(keys.asked) == 3
    await who.authenticate(bearer(tokens[1]), NOW)
    assert len(keys.asked) == 4


async def test_a_key_set_is_only_asked_for_what_its_issuer_may_sign_with() -> None:
    """Refuse a foreign algorithm or issuer before anybody fetches a key for it."""
    keys = Keys(RSA_JWK)
    who = authenticator(keys)
    for token in (
        forged({"alg": "HS256", "kid": "k1"}, claims(RS), b"x"),
        forged({"alg": "ES256", "kid": "k1"}, claims(RS), b"", bytes(64)),
        forged({"alg": "none"}, claims(RS), b"", b"x"),
        signed(claims(RS, iss="https://evil.example"), RSA_KEY, "RS256"),
    ):
        assert (await refusal(who, bearer(token))).status == 401
    assert keys.asked == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"x-api-key": KEY, "api-key": new_api_key(b"a" * 32)[1]}, 401, id="conflict"),
        pytest.param({}, 401, id="no credential and no anonymous tier"),
        pytest.param(bearer("sk-proj-abc"), 401, id="a credential of no known kind"),
        pytest.param(bearer(signed(claims(), b"x" * 32)), 401, id="a token of another secret"),
        pytest.param(bearer(signed(claims(tier="gold"))), 403, id="a tier nobody configured"),
        pytest.param(bearer(new_api_key(b"b" * 32)[1]), 401, id="an unknown key"),
    ],
)
async def test_refused(headers: dict[str, str], status: int) -> None:
    """Refuse with 401 who is not proved, and with 403 whose limits are not known."""
    assert (await refusal(authenticator(), headers)).status == status


async def test_a_key_whose_tier_was_removed_is_refused() -> None:
    """Never take a missing tier for no limits."""
    who = authenticator()
    who.replace_directory(KeyDirectory.of([replace(RECORD, tier="removed")], 2))
    denied = await refusal(who, {"x-api-key": KEY})
    assert (denied.status, denied.code) == (403, "permission_denied")


async def test_a_bad_credential_is_never_anonymous() -> None:
    """Let in without a credential only who sends none."""
    who = authenticator(anonymous_tier="free")
    assert now_or_never(who, {}) == Principal("anonymous", "anonymous", "free")
    for headers in ({"authorization": ""}, {"x-api-key": "x"}, bearer("a.b.c")):
        assert (await refusal(who, headers)).status == 401


def test_what_is_known_locally_does_not_suspend() -> None:
    """Answer keys, shared-secret tokens and remembered tokens in one step."""
    who = authenticator()
    assert now_or_never(who, {"x-api-key": KEY}).tenant == "acme"
    assert now_or_never(who, bearer(signed(claims()))).tenant.startswith(HS.name)
    assert now_or_never(who, bearer(RS_TOKEN)).tenant.startswith(RS.name)


async def test_unknown_keys_are_no_wrong_keys() -> None:
    """Refuse with 503 and not 401 while the keys are not known; other credentials work on."""
    who = authenticator(anonymous_tier="free")
    who.replace_directory(None)
    denied = await refusal(who, {"x-api-key": KEY})
    assert (denied.status, denied.code, denied.retry_after_s) == (503, "store_unavailable", 1)
    assert (await refusal(who, {"x-api-key": "garbage"})).status == 401
    assert now_or_never(who, bearer(signed(claims()))).tenant.startswith(HS.name)
    assert now_or_never(who, {}).tenant == "anonymous"
    assert who.take_used() == {}


async def test_only_keys_that_are_let_in_count_as_used() -> None:
    """Remember when each was used last, and neither tokens nor what was refused."""
    who = authenticator()
    now_or_never(who, {"x-api-key": KEY}, NOW)
    now_or_never(who, {"x-api-key": KEY}, NOW + 1)
    now_or_never(who, bearer(signed(claims())))
    await refusal(who, {"x-api-key": new_api_key(b"b" * 32)[1]})
    used = who.take_used()
    assert used == {KEY_ID: NOW + 1}
    assert who.take_used() == {}
    now_or_never(who, {"x-api-key": KEY}, NOW + 2)
    who.give_back_used(used | {"key_2": NOW})
    assert who.take_used() == {KEY_ID: NOW + 2, "key_2": NOW}
    who.replace_directory(KeyDirectory.of([replace(RECORD, tier="removed")], 2))
    await refusal(who, {"x-api-key": KEY})
    assert who.take_used() == {}


async def test_any_number_of_wrong_keys_leaves_nothing_behind() -> None:
    """Refuse any number of random keys without remembering one of them."""
    who = authenticator()
    seeds = range(STRANGERS)

    def refuse(seed: int) -> None:
        key = f"sk_{seed:043}"
        try:
            who.authenticate({"x-api-key": key}, NOW).send(None)
        except Denied:
            return
        raise AssertionError(key)

    for seed in seeds[:1_000]:
        refuse(seed)
    gc.collect()
    tracemalloc.start()
    try:
        for seed in seeds[:10_000]:  # traced, because each byte is then seen
            refuse(seed)
        gc.collect()
        traced, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        refuse(seed)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert traced < 50_000  # five bytes a key would be a leak
    assert after - before < 2_000  # KiB: twenty bytes a key, two of a million
    assert who.take_used() == {}


async def test_a_replaced_directory_counts_at_once() -> None:
    """Refuse a key from the first request after its directory was replaced."""
    who = authenticator()
    now_or_never(who, {"x-api-key": KEY})
    who.replace_directory(NO_KEYS)
    assert (await refusal(who, {"x-api-key": KEY})).status == 401


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"anonymous_tier": "gold"}, id="an anonymous tier nobody configured"),
        pytest.param({"issuers": [replace(HS, default_tier="gold")]}, id="a default tier likewise"),
        pytest.param({"issuers": [RS]}, id="an asymmetric issuer without a key set"),
        pytest.param({"issuers": [HS], "jwks": {HS.issuer: Keys(RSA_JWK)}}, id="both sources"),
        pytest.param({"issuers": [HS, HS]}, id="an issuer twice"),
    ],
)
def test_what_cannot_be_built(changes: dict[str, Any]) -> None:
    """Refuse at start what would fail or be unsafe at a request."""
    with pytest.raises(ValueError, match=r"tier|needs either|twice"):
        Authenticator(tiers={"free"}, **changes)


async def test_from_config(tmp_path: Path) -> None:
    """Build the whole from the written section, with secrets and key sets where it says."""
    (tmp_path / "jwks.json").write_bytes(document("k1"))
    common = {"audience": "llm", "default_tier": "free"}
    written = [
        common | {"issuer": HS.issuer, "algorithms": ["HS256"], "secret": {"env": "SECRET"}},
        common
        | {"issuer": RS.issuer, "algorithms": ["RS256"], "jwks_file": str(tmp_path / "jwks.json")},
    ]
    auth = Auth.model_validate({"anonymous_tier": "free", "jwt": written})
    errors: list[str] = []

    def build(env: dict[str, str]) -> Authenticator:
        return Authenticator.from_config(
            auth, DIRECTORY, env, tiers={"free"}, on_error=errors.append
        )

    assert HS.secret is not None
    who = build({"SECRET": HS.secret.decode()})
    assert (await who.authenticate(bearer(signed(claims(HS))), NOW)).tier == "free"
    assert (await who.authenticate(bearer(RS_TOKEN), NOW)).tier == "free"
    assert errors == []
    with pytest.raises(ValueError, match=r"no secret in \$SECRET"):
        build({})


def test_repr_shows_no_secret() -> None:
    """Describe itself in a log line without a digest or a secret."""
    shown = repr(authenticator(anonymous_tier="free"))
    assert shown == "Authenticator(KeyDirectory(epoch=1, keys=1), issuers=3, anonymous=True)"


names = st.sampled_from(["authorization", "x-api-key", "api-key"])
text = st.text() | st.text().map("Bearer {}".format) | st.sampled_from([f"Bearer {RS_TOKEN}", KEY])
WHO = authenticator()


@given(st.dictionaries(names, text))
async def test_any_headers_are_denied_and_never_anything_else(headers: dict[str, str]) -> None:
    """Answer any headers with a caller or Denied 401."""
    try:
        principal = await WHO.authenticate(headers, NOW)
    except Denied as denied:
        principal = None
        status = denied.status
    assert principal is not None or status == 401
