"""The published vectors: what the code says, what the document says, and nothing shared by mistake."""

from __future__ import annotations

import json
from typing import Any

import pytest

from extproc.cache.key import VERSION
from extproc.dialects import json_body
from tests.cache import oracle
from tests.cache.vectors import FILE, render

GROUPS: list[dict[str, Any]] = json.loads(FILE.read_text())["groups"]
CASES = [
    pytest.param(case, id=f"{group['rule']} {at}")
    for group in GROUPS
    for at, case in enumerate(group["cases"])
]


def test_the_file_is_what_the_code_says_today() -> None:
    """A key that changes needs a new `VERSION`, and then `make vectors`."""
    assert FILE.read_text() == render()
    assert json.loads(FILE.read_text())["version"] == VERSION


@pytest.mark.parametrize("case", CASES)
def test_a_second_reading_of_the_document_comes_to_the_same(case: dict[str, Any]) -> None:
    rest = [
        case[name] for name in ("scope", "policy", "tier", "endpoint", "model", "query", "headers")
    ]
    for body in case["bodies"]:
        form = oracle.canonical(case["endpoint"], body.encode())
        assert form.decode() == case["canonical"]
        assert oracle.digest(case["secret"].encode(), *rest, form).hex() == case["key"]


@pytest.mark.parametrize("group", GROUPS, ids=[group["rule"] for group in GROUPS])
def test_the_requests_of_a_group_are_different(group: dict[str, Any]) -> None:
    keys = [case["key"] for case in group["cases"]]
    assert len(set(keys)) == len(keys)


def test_every_body_is_one_that_clients_may_send() -> None:
    bodies = [body for group in GROUPS for case in group["cases"] for body in case["bodies"]]
    assert len(bodies) > 100
    for body in bodies:
        json_body.members(body.encode())
