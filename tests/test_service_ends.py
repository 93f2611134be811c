"""What an exchange leaves in a trace, and how it ends."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from extproc import pipeline
from extproc.domain import Model, Trace
from extproc.errors import Denied
from extproc.policies.trace import read as read_trace
from extproc.record import decode
from extproc.service import ProtocolError
from extproc.wire import messages as wire
from tests.calls import (
    ALICE,
    NOW,
    Identity,
    answer,
    body,
    body_message,
    headers_message,
    plain,
    snapshot,
    target,
)
from tests.test_service import Bench
from tests.test_settlement import ENTRY


class Spans:
    """A tracer that remembers what it was told."""

    def __init__(self, *, sampled: bool = True) -> None:
        self.trace = Trace(0xA, 0xB, 0xC, sampled)
        self.told: list[tuple[Any, ...]] = []

    def begin(self, traceparent: str | None) -> Trace:
        self.told.append(("begin", traceparent))
        return self.trace

    def admitted(self, trace: Trace, started: float, ended: float) -> None:
        self.told.append(("admitted", trace, started, ended))

    def denied(self, trace: Trace, **more: Any) -> None:
        self.told.append(("denied", trace, more))

    def settled(self, trace: Trace, outcome: Any) -> None:
        self.told.append(("settled", trace, outcome.id))


@pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "not sampled"])
async def test_a_call_is_traced_from_admission_to_settlement(*, sampled: bool) -> None:
    """The provider is called under our span, and the record carries what settlement needs."""
    spans = Spans(sampled=sampled)
    bench = Bench(tracer=spans)
    exchange = bench.open()
    raw = await exchange.receive(headers_message(("traceparent", "x"), ("x-request-id", "r")))
    common = answer(raw).request_headers.response  # type: ignore[union-attr]
    assert common is not None
    assert common.header_mutation is not None
    (option,) = common.header_mutation.set_headers
    assert option.header is not None
    sent = f"00-{0xA:032x}-{0xB:016x}-{sampled:02x}"
    assert (option.header.key, option.header.raw_value.decode()) == ("traceparent", sent)
    reply = answer(await exchange.receive(body_message(body())))
    assert spans.told == [("begin", "x"), ("admitted", spans.trace, NOW, NOW)]
    text = plain(reply.dynamic_metadata)["llm.call"]["record"]
    assert read_trace(decode(text).trace) == (spans.trace if sampled else None)
    outcome = pipeline.settle(bench.gateway, replace(ENTRY, record=text))
    assert outcome is not None
    settled = [("settled", spans.trace, outcome.id)] if sampled else []
    assert spans.told[2:] == settled


async def test_a_refusal_of_a_known_caller_is_traced_and_of_a_stranger_not() -> None:
    """Who is not known could fill the collector with spans."""
    stranger = Spans()
    denied = Denied("invalid_api_key", "No.")
    await Bench(Identity(denied), tracer=stranger).play(headers_message())
    assert stranger.told == []
    known = Spans()
    await Bench(tracer=known).play(headers_message(), body_message(body(model="none")))
    told = {"who": ALICE, "endpoint": "chat", "code": "model_not_found"}
    times = {"started": NOW, "ended": NOW}
    assert known.told == [("begin", None), ("denied", known.trace, told | times)]


async def test_without_a_tracer_a_trace_passes_through() -> None:
    """What nobody records is left to the caller and the provider."""
    headers = headers_message(("traceparent", "x"), ("x-request-id", "r"))
    assert await Bench().open().receive(headers) == wire.encode_continue(pipeline.Continue())


async def test_a_reload_in_between_leaves_the_call_its_snapshot() -> None:
    bench = Bench()
    exchange = bench.open()
    await exchange.receive(headers_message())
    bench.gateway.snapshot = snapshot(Model("other", "priority", (target("x"),)))
    assert answer(await exchange.receive(body_message(body()))).request_body is not None


async def test_closing_is_final_and_may_be_repeated() -> None:
    bench = Bench()
    exchange = bench.open()
    await exchange.receive(headers_message())
    exchange.close()
    exchange.close()
    assert exchange.ended
    with pytest.raises(ProtocolError):
        await exchange.receive(body_message(body()))
    assert len(bench.inflight) == 0


async def test_closing_does_not_settle_a_planned_call() -> None:
    bench = Bench()
    exchange = bench.open()
    await exchange.receive(headers_message())
    await exchange.receive(body_message(body()))
    exchange.close()
    assert len(bench.inflight) == 1


def test_a_call_whose_identity_is_at_hand_is_answered_in_one_step() -> None:
    """The lane steps the coroutine once; it must not suspend without a remote store."""
    exchange = Bench().open()
    for message in (headers_message(), body_message(body())):
        with pytest.raises(StopIteration):
            exchange.receive(message).send(None)
    assert exchange.ended
