"""For whom the cache is on, and for how long an answer is good."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.cache.rules import ttl_of
from extproc.cache_policy import OFF, ModelPolicy, Policy, Terms

NO = Terms(enabled=False)


def short(ttl_ms: int) -> Terms:
    """Return terms with a time of their own."""
    return Terms(ttl_ms=ttl_ms)


@pytest.mark.parametrize(
    ("change", "ttl_ms"),
    [
        pytest.param({"enabled": False}, None, id="off for everyone"),
        pytest.param({"models": {}}, None, id="a model that is not configured"),
        pytest.param({"models": {"m": ModelPolicy("v", NO)}}, None, id="off for the model"),
        pytest.param({"tiers": {"free": NO}}, None, id="off for the tier"),
        pytest.param({"keys": {"key_1": NO}}, None, id="off for the key"),
        pytest.param({"tiers": {"free": NO}, "keys": {"key_1": short(5)}}, None, id="off for the tier, whatever the key has"),
        pytest.param({"tiers": {"pro": NO}, "keys": {"key_2": NO}}, 300_000, id="off for others"),
        pytest.param({}, 300_000, id="as usual"),
        pytest.param({"models": {"m": ModelPolicy("v", short(900_000))}}, 900_000, id="longer for the model"),
        pytest.param({"tiers": {"free": short(7)}}, 7, id="shorter for the tier"),
        pytest.param({"keys": {"key_1": short(9)}}, 9, id="shorter for the key"),
        pytest.param({"models": {"m": ModelPolicy("v", short(9))}, "tiers": {"free": short(7)}, "keys": {"key_1": short(8)}}, 7, id="the shortest of three"),
    ],
)  # fmt: skip
def test_for_how_long_an_answer_is_good(change: dict[str, Any], ttl_ms: int | None) -> None:
    policy = Policy(**{"enabled": True, "models": {"m": ModelPolicy("v")}, **change})
    assert ttl_of(policy, "m", "free", "key_1", embeddings=False) == ttl_ms


def test_embeddings_have_a_time_of_their_own() -> None:
    policy = Policy(True, models={"m": ModelPolicy("v")})
    assert ttl_of(policy, "m", "free", "key_1", embeddings=True) == 3_600_000
    assert ttl_of(OFF, "m", "free", "key_1", embeddings=True) is None


def test_a_short_secret_is_refused_and_none_is_shown() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Policy(True, secret=b"short")
    assert "correct horse" not in repr(Policy(True, secret=b"correct horse battery"))
