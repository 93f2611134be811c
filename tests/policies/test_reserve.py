"""What a call reserves: the prompt's estimate, the most it can cost, the answers it asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from extproc.dialects import anthropic, openai
from extproc.domain import ENDPOINTS, Endpoint, Price, Principal
from extproc.limits import MAX_AMOUNT, Ask, Scope
from extproc.pipeline import DIALECTS
from extproc.policies.reserve import LEASE_GRACE_US, ask_for, subjects_of
from extproc.tiers import tier_of
from tests.calls import ALICE, CHAT, EMBEDDINGS, body, target
from tests.ledgers import rules

PRICED = tier_of((rules(usd_per_month=5),))
COUNTED = tier_of((rules(tokens_per_day=5),))
PLAIN = tier_of((rules(requests_per_day=5),))
CHEAP = target("a", price=Price(10, 100, 5))
DEAR = target("b", price=Price(20, 50, 30))


def asked(tier: Any = PRICED, endpoint: Any = CHAT, attempts: Any = (CHEAP,), **fields: Any) -> Ask:
    call = openai.read(endpoint, body(**fields))
    return ask_for(
        "id",
        subjects_of(tier, ALICE, "1.2.3.4"),
        tier,
        call,
        attempts,
        prompt_tokens=7,
        usual_output=4096,
        timeout_ms=30_000,
    )


def test_money_is_reserved_for_a_token_a_byte_and_the_dearest_attempt() -> None:
    """Any of the attempts may be the one billed, its cached input too."""
    size = len(body(max_tokens=10, n=3))
    made = asked(attempts=(CHEAP, DEAR, target("free", price=None)), max_tokens=10, n=3)
    assert made.fixed == (1, 7, size * 30)
    assert made.per_output == (0, 3, 300)
    assert made.output == 10
    assert made.lease_us == 30_000_000 + LEASE_GRACE_US


@pytest.mark.parametrize(
    ("block", "dearest"),
    [
        pytest.param({}, 25, id="any prompt may be written into a cache"),
        pytest.param({"cache_control": {"type": "ephemeral"}}, 25, id="for five minutes"),
        pytest.param({"cache_control": {"type": "ephemeral", "ttl": "1h"}}, 40, id="for an hour"),
    ],
)
def test_a_prompt_that_a_cache_keeps_is_reserved_at_its_price(block: Any, dearest: int) -> None:
    """Because a budget that a caller can overspend by writing caches is none."""
    said = {"role": "user", "content": [{"type": "text", "text": "hi", **block}]}
    sent = json.dumps({"model": "m", "max_tokens": 9, "messages": [said]}).encode()
    call = anthropic.read(ENDPOINTS["POST", "/v1/messages"], sent)
    claude = target("c", price=Price(20, 50, 2, cache_write=25, cache_write_1h=40))
    made = ask_for(
        "id",
        (),
        PRICED,
        call,
        (claude,),
        prompt_tokens=7,
        usual_output=9,
        timeout_ms=1,
        may_keep_an_hour=lambda: anthropic.may_keep_an_hour(sent),
    )
    assert made.fixed == (1, 7, len(sent) * dearest)


def test_a_bound_that_is_absent_is_the_models() -> None:
    assert asked().output == 4096


@pytest.mark.parametrize(
    ("tier", "fixed", "per", "output"),
    [
        pytest.param(COUNTED, (1, 7, 0), (0, 1, 0), 4096, id="tokens without money"),
        pytest.param(PLAIN, (1, 0, 0), (0, 0, 0), 0, id="requests alone ask for no bound"),
    ],
)
def test_only_what_is_counted_is_reserved(
    tier: Any, fixed: tuple[int, ...], per: tuple[int, ...], output: int
) -> None:
    made = asked(tier)
    assert (made.fixed, made.per_output, made.output) == (fixed, per, output)


def test_embeddings_have_no_output() -> None:
    call = openai.read(EMBEDDINGS, b'{"model":"small","input":["a","b"]}')
    made = ask_for("id", (), PRICED, call, (CHEAP,), prompt_tokens=7, usual_output=9, timeout_ms=1)
    assert (made.output, made.per_output) == (0, (0, 0, 0))


def test_a_prompt_is_never_more_than_a_store_counts() -> None:
    dear = (target("a", price=Price(10**15, 10**15, 0)),)
    made = asked(attempts=dear)
    assert (made.fixed[2], made.per_output[2]) == (MAX_AMOUNT, 10**15)


def test_each_scope_has_an_account_of_its_own() -> None:
    """A tenant cannot have the name of a key's account."""
    scopes = [rules(scope, requests_per_day=1) for scope in Scope]
    names = [n for n, _ in subjects_of(tier_of(tuple(scopes)), Principal("t", "k", "free"), "::")]
    assert names == ["global", "ip:::", "tenant:t", "key:k"]


WRITES = {
    "chat": b'{"model":"m","messages":[{"role":"user","content":"hi"}]}',
    "completions": b'{"model":"m","prompt":"hi","max_tokens":null}',
    "responses": b'{"model":"m","input":"hi","max_output_tokens":9}',
    "messages": b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}',
}
COUNT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'


@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=lambda one: one.name)
def test_every_endpoint_that_writes_can_be_bounded(endpoint: Endpoint) -> None:
    """Those of no output are the ones `ask_for` knows to reserve none for."""
    if endpoint.name not in WRITES:
        assert endpoint.name in {"embeddings", "count_tokens"}
        return
    sent = WRITES[endpoint.name]
    dialect = DIALECTS[endpoint.dialect]
    made = dialect.rewrite(sent, dialect.read(endpoint, sent), "m", 5)
    assert made.body is not None
    assert dialect.read(endpoint, made.body).max_output_tokens == 5


def test_counting_tokens_reserves_a_request_and_no_more() -> None:
    call = anthropic.read(ENDPOINTS["POST", "/v1/messages/count_tokens"], COUNT)
    made = ask_for("id", (), PRICED, call, (CHEAP,), prompt_tokens=7, usual_output=9, timeout_ms=1)
    assert (made.fixed, made.per_output, made.output) == ((1, 0, 0), (0, 0, 0), 0)
    assert anthropic.rewrite(COUNT, call, "m", 5).body is None
