"""How a refusal reads: which limit, whose, for how long; in words, code and headers."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.errors import render
from extproc.limits import Scope
from extproc.policies.quota import Refusal
from extproc.policies.refuse import refuse, refuse_concurrency
from tests.ledgers import rules

DAY_US = 86_400_000_000
RULES = {
    "rate": rules(requests_per_second=2.5, burst=4),
    "tokens": rules(Scope.TENANT, tokens_per_minute=900),
    "money": rules(Scope.GLOBAL, usd_per_month="12.5"),
    "address": rules(Scope.IP, requests_per_day=3),
}

ROWS: list[Any] = [
    (
        "rate",
        1_500,
        "rate_limit_exceeded",
        (
            "Limit reached for this key: 2.5 requests per second with a burst of 4"
            " (key/requests_per_second). Try again in 2 ms."
        ),
        {"retry-after": b"1", "retry-after-ms": b"2"},
    ),
    (
        "tokens",
        60_000_000,
        "rate_limit_exceeded",
        (
            "Limit reached for this tenant: 900 tokens per minute (tenant/tokens_per_minute)."
            " Try again in 60 s."
        ),
        {"retry-after": b"60", "retry-after-ms": b"60000"},
    ),
    (
        "money",
        DAY_US + 1,
        "insufficient_quota",
        (
            "Limit reached for this gateway: 12.5 USD per month (global/usd_per_month)."
            " Try again in 86401 s."
        ),
        {"retry-after": b"86401", "retry-after-ms": b"86400001", "x-should-retry": b"false"},
    ),
    (
        "address",
        None,
        "rate_limit_exceeded",
        (
            "This request alone is over the limit of this address: 3 requests per day"
            " (ip/requests_per_day)."
        ),
        {"x-should-retry": b"false"},
    ),
]


@pytest.mark.parametrize(
    ("which", "wait", "code", "message", "headers"), ROWS, ids=[r[0] for r in ROWS]
)
def test_a_refusal_names_the_limit(
    which: str, wait: int | None, code: str, message: str, headers: dict[str, bytes]
) -> None:
    one = RULES[which]
    denied = refuse(
        Refusal(one, one.meters[0] if one.meters else None, wait), (("ratelimit", b"x"),)
    )
    assert (denied.status, denied.code, denied.message) == (429, code, message)
    reply = render(denied, "openai", "r")
    told = dict(reply.headers)
    assert told.pop("content-type") == b"application/json"
    assert told.pop("ratelimit") == b"x"
    assert told == headers


def test_concurrency_names_its_limit() -> None:
    denied = refuse_concurrency(rules(concurrent_requests=5), ())
    assert (denied.status, denied.code) == (429, "concurrency_limit_exceeded")
    assert denied.message == (
        "Limit reached for this key: 5 concurrent requests (key/concurrent_requests)."
    )
    assert denied.retry_after_s == 1
