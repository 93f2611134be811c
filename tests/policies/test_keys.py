"""The life of a key: how it stands, what is shown of it. What stores make of it is theirs."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from extproc.domain import KeyRecord
from extproc.policies.keys import KeyRequest, describe, end, make, own_tenant, state_of

NOW = 1_000.0
RECORD, KEY = make(KeyRequest("ci", "free"), "acme", now=0.0, token=bytes(32))


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        pytest.param({"revoked_at": NOW}, "revoked", id="revoked at this instant"),
        pytest.param({"revoked_at": 1.0, "expires_at": 2.0}, "revoked", id="revoked, then expired"),
        pytest.param({"revoked_at": 2.0, "expires_at": 1.0}, "revoked", id="expired, then revoked"),
        pytest.param({"expires_at": NOW}, "expired", id="expired at this instant"),
        pytest.param(
            {"expires_at": NOW, "revoked_at": NOW + 1}, "expired", id="expired in its grace"
        ),
        pytest.param({"revoked_at": NOW + 1}, "retiring", id="in the grace after its rotation"),
        pytest.param({"expires_at": NOW + 1}, "active", id="about to expire"),
        pytest.param({}, "active", id="without an end"),
    ],
)
def test_state(changes: dict[str, Any], state: str) -> None:
    """Say how a key stands at a moment."""
    assert state_of(replace(RECORD, **changes), NOW) == state


def test_an_end_is_never_put_off() -> None:
    """Keep the earlier of two ends."""
    assert end(end(RECORD, 5.0), 9.0).revoked_at == 5.0
    assert end(end(RECORD, 9.0), 5.0).revoked_at == 5.0


def test_a_tenant_of_its_own_is_one_that_nobody_has() -> None:
    """Count on until a name is free, and never take that of callers without a key."""
    assert own_tenant("A b", {"a-b", "a-b-2"}) == "a-b-3"
    assert own_tenant("anonymous", ()) == "anonymous-2"
    assert own_tenant("!" * 99, ()) == "tenant"
    assert len(own_tenant("n" * 100, ())) == 50


def test_what_is_shown_is_everything_but_the_digest() -> None:
    """Show every attribute as JSON, lists in order, and nothing that could open a door."""
    record = replace(RECORD, models=frozenset("ba"), tags=frozenset("dc"), last_used_at=3.0)
    shown = json.loads(json.dumps(describe(record, NOW)))
    assert set(shown) == {field.name for field in fields(KeyRecord)} - {"digest"} | {"state"}
    assert (shown["models"], shown["tags"], shown["endpoints"]) == (["a", "b"], ["c", "d"], None)
    text = json.dumps(shown)
    assert KEY not in text
    assert record.digest.hex() not in text
