"""What a call may have of the cache, from the request to the verdict on what was found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from extproc.answers import Entry
from extproc.cache.control import Control
from extproc.cache.key import VARY
from extproc.cache.lookup import MAX_REPEATED_BYTES, Asked, Use, ask, ask_each, judge, remaining_ms
from extproc.cache.reasons import Reason
from extproc.cache.rules import HOSTED, STATE
from extproc.cache_policy import OFF, ModelPolicy, Policy, Scope, Terms
from extproc.dialects import json_body
from extproc.domain import ENDPOINTS, EndpointName, Head, Principal
from extproc.errors import Denied
from tests.cache.asking import LEAST, read, written
from tests.cache.test_key import principals

POLICY = Policy(True, models={"m": ModelPolicy("v1"), "m2": ModelPolicy("v1")})
ALICE = Principal("acme", "key_alice", "free")
MOST_AROUND = MAX_REPEATED_BYTES // 64
PATHS = {endpoint.name: path for (_, path), endpoint in ENDPOINTS.items()}


def asked(
    policy: Policy = POLICY,
    who: Principal = ALICE,
    endpoint: EndpointName = "chat",
    query: str = "",
    headers: dict[str, str] | None = None,
    **fields: Any,
) -> Asked:
    """Ask for a call as a client makes it."""
    body = written(endpoint, fields)
    head = Head("POST", PATHS[endpoint], query, headers or {}, False)
    return ask(policy, head, who, read(endpoint, body), body)


def key(*given: Any, **changes: Any) -> bytes:
    """Return the key of a call that has one."""
    found = asked(*given, **changes)
    assert found.key is not None
    assert found.reason is None
    return found.key


BOB = Principal("acme", "key_bob", "free")


@pytest.mark.parametrize(
    ("scope", "other", "shares"),
    [
        pytest.param("tenant", Principal("other", "key_alice", "free"), False, id="another tenant"),
        pytest.param(
            "key",
            Principal("other", "key_alice", "free"),
            False,
            id="another tenant with a key of this name",
        ),
        pytest.param(
            "shared",
            Principal("acme", "key_alice", "pro"),
            False,
            id="another tier, whoever shares",
        ),
        pytest.param(
            "tenant", Principal("acme", "key_alice", "pro"), False, id="another tier of one tenant"
        ),
        pytest.param("key", BOB, False, id="another key where each has its own"),
        pytest.param("tenant", BOB, True, id="another key of one tenant"),
        pytest.param("shared", Principal("other", "key_x", "free"), True, id="everyone"),
    ],
)
def test_who_shares_answers(scope: Scope, other: Principal, shares: bool) -> None:
    policy = replace(POLICY, scope=scope)
    assert (key(policy) == key(policy, other)) is shares


@given(one=principals, other=principals, scope=st.sampled_from(["tenant", "key", "shared"]))
@example(one=Principal("a", "b", ""), other=Principal("a:b", "", ""), scope="key")
@example(one=Principal("", "", ""), other=Principal("\x00", "", ""), scope="tenant")
@example(one=Principal("e\u0301", "", ""), other=Principal("\u00e9", "", ""), scope="tenant")
@example(one=Principal("a", "", "b"), other=Principal("ab", "", ""), scope="tenant")
@example(one=Principal("a", "", "b"), other=Principal("a", "", ""), scope="shared")
def test_two_callers_share_only_what_is_within_the_scope_and_tier_of_both(
    one: Principal, other: Principal, scope: Scope
) -> None:
    """Whatever they are called, from the request on."""
    within = {"tenant": ("tenant",), "key": ("tenant", "key_id"), "shared": ()}[scope]
    share = all(getattr(one, name) == getattr(other, name) for name in (*within, "tier"))
    policy = replace(POLICY, scope=scope)
    assert (key(policy, one) == key(policy, other)) is share


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            {"policy": replace(POLICY, models={"m": ModelPolicy("v2")})},
            id="another version of the policy",
        ),
        pytest.param({"policy": replace(POLICY, secret=b"s" * 16)}, id="another secret"),
        pytest.param({"endpoint": "messages"}, id="another endpoint"),
        pytest.param({"model": "m2"}, id="another model of the same version"),
        pytest.param({"query": "beta=true"}, id="a query"),
        pytest.param({"seed": 1}, id="a field that matters"),
        *[pytest.param({"headers": {name: "x"}}, id=name) for name in VARY],
    ],
)
def test_what_else_gives_another_key(change: dict[str, Any]) -> None:
    assert key(**change) != key()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"stream": True}, id="a stream"),
        pytest.param({"user": "u"}, id="a user"),
        pytest.param({"temperature": 1}, id="a default"),
        pytest.param({"headers": {"authorization": "Bearer x", "cache-control": "no-cache", "x-request-id": "1"}}, id="headers that change no answer"),
    ],
)  # fmt: skip
def test_what_is_the_same_call(change: dict[str, Any]) -> None:
    assert key(**change) == key()


def test_a_model_whose_providers_have_other_defaults() -> None:
    policy = replace(POLICY, models={"m": ModelPolicy("v1", api_defaults=False)})
    assert key(policy, temperature=1) != key(policy)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"policy": OFF}, Reason.OFF, id="no cache"),
        pytest.param({"policy": replace(POLICY, models={})}, Reason.OFF, id="a model of no policy"),
        pytest.param({"policy": replace(POLICY, tiers={"free": Terms(enabled=False)})}, Reason.OFF, id="off for the tier"),
        pytest.param({"endpoint": "count_tokens"}, Reason.ENDPOINT, id="a count"),
        pytest.param({"temperature": 2}, Reason.TEMPERATURE, id="a rule"),
        pytest.param({"query": "a=\ufffd"}, Reason.NOT_CANONICAL, id="a query that was no UTF-8"),
        *[pytest.param({"with_header": name}, Reason.NOT_CANONICAL, id=f"{name} that was no UTF-8") for name in VARY],
        pytest.param({"with_header": "x-of-nobody"}, None, id="a header that changes no answer"),
        pytest.param({"of_tomorrow": 1e308 * 10**0, "seed": 2**63 - 1}, None, id="large numbers"),
    ],
)  # fmt: skip
def test_why_a_call_has_no_key(change: dict[str, Any], reason: Reason | None) -> None:
    headers = {"cache-control": "only-if-cached"}
    if "with_header" in change:
        headers[change["with_header"]] = "a\ufffd"
    fields = {name: value for name, value in change.items() if name != "with_header"}
    found = asked(**fields, headers=headers)
    assert found.reason is reason
    assert (found.key is None) is (reason is not None)
    assert found.control.only_if_cached
    assert found.may_look_up is found.may_store is (reason is None)


def test_what_cannot_be_made_canonical_has_no_key_and_is_no_error() -> None:
    body = written("chat", {})
    call = read("chat", body)
    for broken in (
        b"",
        b"[]",
        body[:-1],
        body[:-1] + b',"x":1e999}',
        body[:-1] + b',"x":' + b"[" * 10**5,
    ):
        found = ask(POLICY, Head("POST", "/", "", {}, False), ALICE, call, broken)
        assert (found.key, found.reason) == (None, Reason.NOT_CANONICAL)


READ = ("n", "stop", "store", "temperature", "tool_choice", "tools", "user")
NAMES = {*READ, *(n for ruled in (HOSTED, STATE) for names in ruled.values() for n in names)}
ANYTHING: tuple[Any, ...] = (
    *(None, True, 0, 1, 1.0, 0.5, 10**30, "", "x"),
    *([], ["x"], [1], [None], [[]], [{}], [{"type": []}], {}, {"type": 0.5}),
)


@pytest.mark.parametrize("endpoint", LEAST)
@pytest.mark.parametrize("name", sorted(NAMES))
def test_no_body_that_was_accepted_is_an_error(endpoint: EndpointName, name: str) -> None:
    """Of the fields that the rules look at none need be of a type that a dialect checks."""
    for value in ANYTHING:
        body = written(endpoint, {name: value})
        try:
            call = read(endpoint, body)
        except Denied:
            continue
        head = Head("POST", PATHS[endpoint], "", {}, False)
        found = ask(POLICY, head, ALICE, call, body, json_body.members(body))
        again = ask(POLICY, head, ALICE, call, body)
        assert (found.key, found.reason) == (again.key, again.reason)


@pytest.mark.parametrize(
    ("header", "looks_up", "stores"),
    [
        pytest.param("no-cache", False, True, id="a fresh answer, which may be kept"),
        pytest.param("no-store", True, False, id="any answer, which is not kept"),
        pytest.param("no-cache, no-store", False, False, id="neither"),
        pytest.param("only-if-cached", True, True, id="only from the cache"),
        pytest.param("max-age=0", True, True, id="judged by what is found"),
        pytest.param("", True, True, id="nothing asked"),
    ],
)
def test_what_the_caller_asks_of_the_cache(header: str, looks_up: bool, stores: bool) -> None:
    found = asked(headers={"cache-control": header})
    assert (found.may_look_up, found.may_store) == (looks_up, stores)


def entry(stored_ms: int, expires_ms: int) -> Entry:
    """Return an entry of these times."""
    return Entry("chat", "acme", "m", "p", "x", stored_ms, expires_ms, "json", (1, 1, 0), b"{}")


@pytest.mark.parametrize(
    ("found", "control", "ttl_ms", "use"),
    [
        pytest.param(None, Control(), 9000, Use.MISS, id="nothing"),
        pytest.param(entry(0, 90_000), Control(), 9000, Use.STALE, id="older than is good for the caller"),
        pytest.param(entry(0, 9999), Control(), 99_000, Use.STALE, id="expired"),
        pytest.param(entry(5000, 90_000), Control(max_age_s=4), 9000, Use.REFUSED, id="older than wanted"),
        pytest.param(entry(5000, 90_000), Control(max_age_s=5), 9000, Use.REFUSED, id="as old as is not wanted"),
        pytest.param(entry(10_000, 90_000), Control(max_age_s=0), 9000, Use.REFUSED, id="none is wanted, stored this moment"),
        pytest.param(entry(99_000, 190_000), Control(max_age_s=0), 9000, Use.REFUSED, id="none is wanted, and a clock is behind"),
        pytest.param(entry(5000, 90_000), Control(max_age_s=6), 9000, Use.HIT, id="young enough"),
        pytest.param(entry(5000, 90_000), Control(only_if_cached=True), 9000, Use.HIT, id="fresh"),
        pytest.param(entry(1001, 90_000), Control(), 9000, Use.HIT, id="fresh for a moment"),
        pytest.param(entry(99_000, 190_000), Control(), 9000, Use.HIT, id="a clock that is behind"),
    ],
)  # fmt: skip
def test_whether_a_call_is_answered_with_what_was_found(
    found: Entry | None, control: Control, ttl_ms: int, use: Use
) -> None:
    call = Asked(b"k", None, control, ttl_ms)
    assert judge(found, call, 10_000) is use
    if found is not None:
        assert (remaining_ms(found, call, 10_000) > 0) is (use is not Use.STALE)


@pytest.mark.parametrize(
    "fields",
    [{}, {"dimensions": 256, "user": "u"}, {"a": 1, "z": 0.5, "encoding_format": "base64"}],
)
def test_each_input_of_a_batch_has_the_key_of_a_call_for_it_alone(fields: dict[str, Any]) -> None:
    inputs = ["one", "é😀", "", 'a "quoted"\n\x00 one']
    body = written("embeddings", {"input": ["x", *inputs[:2]], **fields})
    call = read("embeddings", body)
    pieces = [msgspec.json.encode(one) for one in inputs]
    keys = ask_each(
        POLICY, Head("POST", "/v1/embeddings", "", {}, False), ALICE, call, body, inputs=pieces
    )
    assert keys is not None
    assert len(set(keys)) == len(inputs)
    assert keys[0] == key(endpoint="embeddings", input="one", **fields)
    assert keys[1] == key(endpoint="embeddings", input=["é😀"], **fields)
    assert key(endpoint="embeddings", input=["one", "é😀"], **fields) not in keys


@pytest.mark.parametrize(
    ("fields", "query", "headers"),
    [
        pytest.param({"a": "x" * MOST_AROUND}, "", {}, id="before the input"),
        pytest.param({"z": "x" * MOST_AROUND}, "", {}, id="after it"),
        pytest.param({}, "q" * MOST_AROUND, {}, id="in the query"),
        pytest.param({}, "", {"openai-beta": "x" * MOST_AROUND}, id="in a header"),
    ],
)
def test_inputs_have_no_keys_where_the_rest_would_be_digested_too_often(
    fields: dict[str, Any], query: str, headers: dict[str, str]
) -> None:
    """Where it would take long: 64 inputs beside so much, and not half of them."""
    body = written("embeddings", {"input": ["x", "y"], **fields})
    call = read("embeddings", body)
    head = Head("POST", "/v1/embeddings", query, headers, False)
    pieces = [b"%d" % number for number in range(64)]
    assert ask_each(POLICY, head, ALICE, call, body, inputs=pieces) is None
    half = ask_each(POLICY, head, ALICE, call, body, inputs=pieces[:32])
    assert half is not None
    assert len(set(half)) == 32
