"""Written limits as integers: never more than was written, the shipped tiers as the contract says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from extproc.config import load
from extproc.limits import Rules, Scope, Tier
from extproc.tiers import compile_tiers
from tests.ledgers import rules


def shipped() -> dict[str, Tier]:
    return dict(compile_tiers(load([], {})))


@pytest.mark.parametrize(
    ("name", "rate", "daily", "concurrent"),
    [("free", 10, 1_000, 5), ("pro", 100, 100_000, 50), ("enterprise", 1_000, None, 500)],
)
def test_the_shipped_tiers(name: str, rate: int, daily: int | None, concurrent: int) -> None:
    (key,) = shipped()[name].scopes
    assert key.scope is Scope.KEY
    assert 1_000_000 // key.interval_us == rate
    assert key.concurrent == concurrent
    limits = {meter.name: meter.limit for meter in key.meters}
    assert limits.get("requests_per_day") == daily


@pytest.mark.parametrize(
    ("rate", "interval_us"),
    [
        (10, 100_000),
        (3, 333_334),
        (0.5, 2_000_000),
        (0.1, 10_000_000),
        (1_000_000, 1),
        (7, 142_858),
    ],
)
def test_a_rate_is_never_more_than_was_written(rate: float, interval_us: int) -> None:
    made = rules(requests_per_second=rate)
    assert (made.interval_us, made.burst) == (interval_us, max(1, -(-int(rate * 10) // 10)))


def test_every_scope_comes_with_every_tier(tmp_path: Path) -> None:
    """The gateway's limits first, the key's last; what limits nothing is left out."""
    path = tmp_path / "llm-edge.yaml"
    path.write_text(
        "limits: {global: {requests_per_second: 5}, per_ip: {burst: 3},"
        " per_tenant: {usd_per_day: 0.5}}\n"
        "tiers: {t: {tokens_per_minute: 9}}"
    )
    tier = compile_tiers(load([path], {}))["t"]
    assert [one.scope for one in tier.scopes] == [Scope.GLOBAL, Scope.TENANT, Scope.KEY]
    assert (tier.bounded, tier.priced, tier.by_address) == (True, True, False)
    assert tier.scopes[1].meters[0].limit == 500_000_000_000


@pytest.mark.parametrize("limits", [{}, {"burst": 5}])
def test_nothing_limited_is_no_rules(limits: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        rules(**limits)


def test_rules_name_themselves() -> None:
    made: Rules = rules(Scope.TENANT, requests_per_second=1, usd_per_day=1)
    assert (made.rate_label, made.meters[0].label) == (
        "tenant/requests_per_second",
        "tenant/usd_per_day",
    )
