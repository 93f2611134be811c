"""What answers say of limits, in both dialects; nothing of the gateway's own."""

from __future__ import annotations

import pytest

from extproc.limits import US_PER_S, Scope
from extproc.policies import quota
from extproc.policies.limit_headers import _span, header_names, limit_headers
from extproc.policies.quota import Account
from extproc.tiers import tier_of
from tests.ledgers import NOON, rules

NOW = NOON * US_PER_S
WINDOWS = quota.windows_at(NOW)
TIER = tier_of(
    (
        rules(Scope.GLOBAL, requests_per_second=7),
        rules(Scope.TENANT, requests_per_day=3, usd_per_month=5),
        rules(requests_per_second=10, burst=20, tokens_per_minute=100, tokens_per_day=50),
    )
)


def told(dialect: str) -> dict[str, bytes]:
    held = [(Account(), scope) for scope in TIER.scopes]
    quota.charge(held, (1, 30, 0), NOW, WINDOWS)
    return dict(limit_headers(dialect, TIER.policy, held, NOW, WINDOWS))


def test_openai() -> None:
    """Requests and tokens by the limit that has least left; money and the gateway are not told."""
    assert told("openai") == {
        "ratelimit-policy": b'"tenant/requests_per_day";q=3;w=86400, '
        b'"key/requests_per_second";q=20;w=2, '
        b'"key/tokens_per_minute";q=100;qu="tokens";w=60, '
        b'"key/tokens_per_day";q=50;qu="tokens";w=86400',
        "ratelimit": b'"tenant/requests_per_day";r=2;t=43200, "key/requests_per_second";r=19;t=1, '
        b'"key/tokens_per_minute";r=70;t=60, "key/tokens_per_day";r=20;t=43200',
        "x-ratelimit-limit-requests": b"3",
        "x-ratelimit-remaining-requests": b"2",
        "x-ratelimit-reset-requests": b"12h0m0s",
        "x-ratelimit-limit-tokens": b"50",
        "x-ratelimit-remaining-tokens": b"20",
        "x-ratelimit-reset-tokens": b"12h0m0s",
    }


def test_anthropic() -> None:
    """The same by Anthropic's names, its resets as times."""
    found = told("anthropic")
    assert set(found) == set(header_names("anthropic"))
    assert found["anthropic-ratelimit-requests-remaining"] == b"2"
    assert found["anthropic-ratelimit-tokens-limit"] == b"50"
    assert found["anthropic-ratelimit-tokens-reset"] == b"2026-09-01T00:00:00Z"


def test_where_only_the_gateway_is_limited_nothing_is_told() -> None:
    held = [(Account(), rules(Scope.GLOBAL, requests_per_second=7))]
    assert limit_headers("openai", b"", held, NOW, WINDOWS) == ()


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, b"0ms"),
        (1, b"1ms"),
        (999_000, b"999ms"),
        (1_000_000, b"1s"),
        (1_000_001, b"2s"),
        (360_000_000, b"6m0s"),
        (3_723_000_000, b"1h2m3s"),
    ],
)
def test_a_span_is_never_too_short(us: int, text: bytes) -> None:
    assert _span(us) == text
