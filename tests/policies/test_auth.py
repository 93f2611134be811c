"""Credentials and API keys: what is found, who it is, and what a refusal gives away."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.domain import KeyRecord, Principal
from extproc.errors import Denied
from extproc.policies.auth import (
    MAX_CREDENTIAL_BYTES,
    NO_KEYS,
    KeyDirectory,
    authenticate_key,
    digest_of,
    find_credential,
    looks_like_api_key,
    looks_like_jwt,
    new_api_key,
)
from tests.tokens import denial

KEY_ID, KEY = new_api_key(bytes(range(32)))
_, OTHER_KEY = new_api_key(b"\xff" * 32)
RECORD = KeyRecord(
    key_id=KEY_ID,
    digest=digest_of(KEY),
    name="ci",
    tenant="acme",
    tier="free",
    models=frozenset({"gpt-4o-mini"}),
    endpoints=frozenset({"chat"}),
    created_at=0.0,
    expires_at=None,
    revoked_at=None,
)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(
            {"authorization": f"Bearer {KEY}", "x-api-key": OTHER_KEY},
            id="two that differ are conflicting",
        ),
        pytest.param(
            {"x-api-key": KEY, "api-key": OTHER_KEY}, id="two key headers that differ conflict"
        ),
        pytest.param(
            {"authorization": f"Bearer {KEY}", "api-key": ""}, id="a good one beside an empty one"
        ),
        pytest.param(
            {"authorization": "Basic dXNlcjpwYXNz", "x-api-key": KEY},
            id="a good one beside another scheme",
        ),
        pytest.param(
            {"authorization": f"Bearer {KEY}, Bearer {KEY}"},
            id="authorization repeated, even equal",
        ),
        pytest.param({"x-api-key": f"{KEY}, {OTHER_KEY}"}, id="x-api-key repeated"),
        pytest.param({"x-api-key": f"{KEY},{KEY}"}, id="x-api-key repeated without a blank"),
        pytest.param({"api-key": f"{KEY}, "}, id="api-key repeated, the second empty"),
        pytest.param({"authorization": "Basic dXNlcjpwYXNz"}, id="basic is refused"),
        pytest.param({"authorization": f"Token {KEY}"}, id="an unknown scheme is refused"),
        pytest.param({"authorization": KEY}, id="a key without a scheme is refused"),
        pytest.param({"authorization": ""}, id="empty authorization is not anonymous"),
        pytest.param({"authorization": "Bearer"}, id="a scheme alone is not anonymous"),
        pytest.param({"authorization": "Bearer   "}, id="bearer with blanks is not anonymous"),
        pytest.param({"x-api-key": ""}, id="empty x-api-key is not anonymous"),
        pytest.param({"api-key": "  "}, id="blank api-key is not anonymous"),
        pytest.param({"authorization": f"Bearer {KEY} {KEY}"}, id="two values under one scheme"),
        pytest.param({"x-api-key": KEY + "\x00"}, id="a control character"),
        pytest.param({"x-api-key": KEY + "\n"}, id="a line end"),
        pytest.param({"x-api-key": "ключ"}, id="letters beyond ascii"),
        pytest.param({"x-api-key": "\ud800"}, id="a lone surrogate"),
        pytest.param({"x-api-key": "a" * (MAX_CREDENTIAL_BYTES + 1)}, id="longer than any token"),
    ],
)
def test_find_credential_refuses(headers: dict[str, str]) -> None:
    """Refuse every ambiguous or malformed credential with 401 and without repeating it."""
    with pytest.raises(Denied) as caught:
        find_credential(headers)
    assert caught.value.status == 401
    assert caught.value.code == "invalid_api_key"
    assert "sk_" not in caught.value.message


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        pytest.param({"x-request-id": "1"}, None, id="no credential header at all"),
        pytest.param({"authorization": f"Bearer {KEY}"}, KEY, id="bearer"),
        pytest.param({"authorization": f"bEARER {KEY}"}, KEY, id="the scheme ignores case"),
        pytest.param({"authorization": f"  Bearer   {KEY}  "}, KEY, id="blanks around"),
        pytest.param({"x-api-key": KEY}, KEY, id="x-api-key"),
        pytest.param({"api-key": KEY}, KEY, id="api-key"),
        pytest.param(
            {"authorization": f"Bearer {KEY}", "x-api-key": KEY, "api-key": KEY},
            KEY,
            id="equal ones are one",
        ),
        pytest.param(
            {"x-api-key": "a" * MAX_CREDENTIAL_BYTES},
            "a" * MAX_CREDENTIAL_BYTES,
            id="as long as may be",
        ),
    ],
)
def test_find_credential_finds(headers: dict[str, str], found: str | None) -> None:
    """Find the one credential, None only where no credential header is present."""
    assert find_credential(headers) == found


@pytest.mark.parametrize(
    ("changes", "now", "good"),
    [
        pytest.param({"revoked_at": 100.0}, 100.0, False, id="revoked at this instant"),
        pytest.param({"revoked_at": 100.0}, 101.0, False, id="revoked before"),
        pytest.param({"expires_at": 100.0}, 100.0, False, id="expired at this instant"),
        pytest.param({"expires_at": 100.0}, 101.0, False, id="expired before"),
        pytest.param(
            {"expires_at": 200.0, "revoked_at": 100.0}, 150.0, False, id="revoked before it expires"
        ),
        pytest.param(
            {"expires_at": 100.0, "revoked_at": 200.0}, 150.0, False, id="expired in its grace"
        ),
        pytest.param({"revoked_at": 100.0}, 99.999, True, id="rotated, in its grace period"),
        pytest.param({"expires_at": 100.0}, 99.999, True, id="about to expire"),
        pytest.param({}, 1e12, True, id="without an end"),
    ],
)
def test_key_lifetime(changes: dict[str, Any], now: float, *, good: bool) -> None:
    """Hold both ends of a key's life as exclusive."""
    directory = KeyDirectory.of([replace(RECORD, **changes)], epoch=1)
    if good:
        assert authenticate_key(KEY, directory, now).key_id == KEY_ID
    else:
        with pytest.raises(Denied) as caught:
            authenticate_key(KEY, directory, now)
        assert caught.value.status == 401


def test_refusals_are_alike() -> None:
    """Say the same of unknown, revoked, expired and malformed keys."""
    dead = [replace(RECORD, revoked_at=1.0), replace(RECORD, expires_at=1.0)]
    attempts = [(KEY, KeyDirectory.of([record], 1)) for record in dead]
    attempts += [(KEY, NO_KEYS), ("garbage", NO_KEYS), (KEY[:-1], NO_KEYS)]
    messages = set()
    for credential, directory in attempts:
        with pytest.raises(Denied) as caught:
            authenticate_key(credential, directory, 10.0)
        assert credential not in str(caught.value)
        messages.add((caught.value.code, caught.value.message))
    assert messages == {("invalid_api_key", "Incorrect API key provided.")}


def test_principal_carries_what_the_record_says() -> None:
    """Take tenant, tier and allow-lists from the record, not from the request."""
    principal = authenticate_key(KEY, KeyDirectory.of([RECORD], 1), 0.0)
    assert principal == Principal("acme", KEY_ID, "free", RECORD.models, RECORD.endpoints)


def test_lookup_also_compares_the_record() -> None:
    """Refuse a record that was filed under another digest than its own."""
    misfiled = KeyDirectory({digest_of(KEY): replace(RECORD, digest=digest_of(OTHER_KEY))}, 1)
    with pytest.raises(Denied):
        authenticate_key(KEY, misfiled, 0.0)


def test_new_key_form() -> None:
    """Make `sk_` and 43 url-safe characters, with an id that shares nothing with it."""
    assert re.fullmatch(r"sk_[A-Za-z0-9_-]{43}", KEY)
    assert re.fullmatch(r"key_[0-9a-f]{16}", KEY_ID)
    assert digest_of(KEY).hex().find(KEY_ID.removeprefix("key_")) == -1
    assert len(digest_of(KEY)) == 32


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_new_key_needs_all_its_randomness(size: int) -> None:
    """Refuse to make a key of another size of randomness."""
    with pytest.raises(ValueError, match="32 random bytes"):
        new_api_key(b"a" * size)


@pytest.mark.parametrize(
    ("credential", "key", "token"),
    [
        pytest.param(KEY, True, False, id="a key"),
        pytest.param(KEY + "a", False, False, id="a character too many"),
        pytest.param(KEY + "\n", False, False, id="a key and a line end"),
        pytest.param("sk-" + KEY[3:], False, False, id="an OpenAI key"),
        pytest.param("a.b.c", False, True, id="three segments"),
        pytest.param("a.b.", False, False, id="an unsigned token"),
        pytest.param("a.b.c.d.e", False, False, id="an encrypted token"),
        pytest.param("a.b.c\n", False, False, id="a token and a line end"),
    ],
)
def test_kinds(credential: str, *, key: bool, token: bool) -> None:
    """Tell keys and tokens apart by form; no credential is both."""
    assert looks_like_api_key(credential) is key
    assert looks_like_jwt(credential) is token


def test_directory_refuses_one_key_twice_and_shows_no_digest() -> None:
    """Build only unambiguous directories, with a repr fit for a log."""
    with pytest.raises(ValueError, match="are one key"):
        KeyDirectory.of([RECORD, replace(RECORD, key_id="key_2")], 1)
    directory = KeyDirectory.of([RECORD], 7)
    assert repr(directory) == "KeyDirectory(epoch=7, keys=1)"
    assert len(directory) == 1


headers = st.dictionaries(
    st.sampled_from(["authorization", "x-api-key", "api-key"]),
    st.one_of(
        st.text(),
        st.text().map("Bearer {}".format),
        st.sampled_from([KEY, f"Bearer {KEY}", "Bearer a.b.c"]),
    ),
)


@given(headers)
def test_garbage_is_denied_and_never_anything_else(headers: dict[str, str]) -> None:
    """Answer any header values with a credential, None or Denied."""
    directory = KeyDirectory.of([RECORD], 1)

    def act() -> None:
        credential = find_credential(headers)
        if credential is not None:
            authenticate_key(credential, directory, 0.0)

    denied = denial(act)
    assert denied is None or (denied.status == 401 and KEY not in denied.message)


@given(st.text())
def test_any_text_as_a_key(credential: str) -> None:
    """Refuse any text that is not a key, whatever it is made of."""
    with pytest.raises(Denied):
        authenticate_key(credential, NO_KEYS, 0.0)
