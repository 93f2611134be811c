"""Limits on the way of a call: reserved before it is forwarded, settled when its log entry comes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from extproc import pipeline
from extproc.domain import Model, Principal
from extproc.errors import Denied
from extproc.inflight import InFlight
from extproc.limits import Scope, Tier
from extproc.ports import SilentObserver
from extproc.record import decode
from extproc.service import Processor
from extproc.stores.memory import MemoryLedger
from extproc.tiers import tier_of
from tests.calls import (
    NOW,
    Identity,
    answer,
    body,
    body_message,
    gateway,
    headers_message,
    plain,
    snapshot,
    target,
)
from tests.ledgers import rules
from tests.test_settlement import ENTRY

SMALL = Model("small", "priority", (target("openai", "small"),), max_output_tokens=300)


class Bench:
    """A processor whose callers have a tier of limits."""

    def __init__(self, tier: Tier) -> None:
        self.ledger = MemoryLedger(lambda: NOW, SilentObserver())
        self.inflight = InFlight(lambda: NOW)
        self.gateway = gateway(snapshot=snapshot(SMALL, tier=tier), ledger=self.ledger)
        self.processor = Processor(self.gateway, self.inflight)

    async def play(self, *headers: tuple[str, str], **fields: Any) -> Any:
        exchange = self.processor.open()
        await exchange.receive(headers_message(*headers))
        return answer(await exchange.receive(body_message(body(**fields))))


async def test_a_refused_call_is_a_429_with_its_headers() -> None:
    bench = Bench(tier_of((rules(requests_per_day=1),)))
    await bench.play()
    refused = (await bench.play()).immediate_response
    assert int(refused.status.code) == 429
    error = json.loads(refused.body)["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    headers = {o.header.key: o.header.raw_value for o in refused.headers.set_headers}
    assert headers["x-ratelimit-remaining-requests"] == b"0"
    assert int(headers["retry-after"]) > 0
    assert len(bench.inflight) == 1


async def test_an_admitted_call_carries_its_headers_in_the_metadata() -> None:
    """Envoy adds them to the answer; Python is not asked again."""
    bench = Bench(tier_of((rules(requests_per_day=5, tokens_per_day=10_000),)))
    metadata = plain((await bench.play()).dynamic_metadata)
    llm = metadata["llm.limits"]
    assert llm["x-ratelimit-limit-requests"] == "5"
    assert llm["x-ratelimit-remaining-requests"] == "4"
    assert llm["ratelimit"].startswith('"key/requests_per_day";r=4;t=')
    assert llm["ratelimit-policy"].startswith('"key/requests_per_day";q=5;w=86400')
    assert decode(metadata["llm.call"]["record"]).hold is None


@pytest.mark.parametrize(
    ("limits", "fields", "bound"),
    [
        pytest.param({"requests_per_day": 5}, {}, None, id="none where only requests are counted"),
        pytest.param({"tokens_per_day": 10_000}, {}, 300, id="the model's where there is none"),
        pytest.param({"tokens_per_day": 200}, {"max_tokens": 250}, 200, id="what is left"),
        pytest.param({"tokens_per_day": 10_000}, {"max_tokens": 9}, 9, id="the caller's own"),
    ],
)
async def test_the_outputs_bound(
    limits: dict[str, Any], fields: dict[str, Any], bound: int | None
) -> None:
    bench = Bench(tier_of((rules(**limits),)))
    mutation = (await bench.play(**fields)).request_body.response.body_mutation
    sent = json.loads(mutation.body) if mutation else fields
    found = sent.get("max_tokens", sent.get("max_completion_tokens"))
    if bound == 200:
        size = -(-len(body(**fields)) // 4)  # the prompt's estimate
        bound -= size
    assert found == bound


async def test_the_address_is_what_envoy_appended() -> None:
    bench = Bench(tier_of((rules(Scope.IP, requests_per_day=1),)))
    assert (await bench.play(("x-forwarded-for", "1.1.1.1, 9.9.9.9"))).request_body is not None
    refused = await bench.play(("x-forwarded-for", "2.2.2.2, 9.9.9.9"))
    assert int(refused.immediate_response.status.code) == 429
    assert (await bench.play(("x-forwarded-for", "1.1.1.1, 8.8.8.8"))).request_body is not None


async def test_a_bug_after_the_reservation_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot is not held for the length of a lease by a call that never was sent."""
    bench = Bench(tier_of((rules(concurrent_requests=1, requests_per_day=1),)))

    def broken(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.openai, "rewrite", broken)
        assert int((await bench.play()).immediate_response.status.code) == 500
    assert (await bench.play()).request_body is not None


async def test_a_tier_the_snapshot_does_not_have_lets_nobody_in() -> None:
    """No tier would mean no limits: an answer of 500, never an open door."""
    bench = Bench(tier_of(()))
    bench.gateway.identity = Identity(Principal("acme", "key", "gone"))
    assert int((await bench.play()).immediate_response.status.code) == 500


def test_an_exchange_with_limits_is_answered_in_one_step() -> None:
    """The lane answers it inside its read callback."""
    bench = Bench(tier_of((rules(concurrent_requests=5, requests_per_second=5),)))
    exchange = bench.processor.open()
    for message in (headers_message(), body_message(body())):
        with pytest.raises(StopIteration):
            exchange.receive(message).send(None)


async def test_settling_frees_the_slot() -> None:
    bench = Bench(tier_of((rules(concurrent_requests=1),)))
    llm = plain((await bench.play()).dynamic_metadata)["llm.call"]
    pipeline.settle(bench.gateway, replace(ENTRY, record=llm["record"]))
    assert (await bench.play()).request_body is not None


async def test_random_keys_and_models_leave_nothing_behind() -> None:
    """Accounts and ratios are made for calls that are admitted, never for what strangers write."""
    bench = Bench(tier_of((rules(requests_per_second=1_000_000),)))
    for number in range(2_000):
        reply = await bench.play(model=f"model-{number}")
        assert int(reply.immediate_response.status.code) == 404
    bench.gateway.identity = Identity(Denied("invalid_api_key", "Incorrect API key provided."))
    for number in range(2_000):
        exchange = bench.processor.open()
        await exchange.receive(headers_message(("authorization", f"Bearer sk_{number}")))
        assert exchange.ended
    assert repr(bench.ledger) == "MemoryLedger(accounts=0, open=0)"
    assert (len(bench.gateway.estimator), len(bench.inflight)) == (0, 0)
