"""Attempts at providers of another dialect, each a stream of its own."""

from __future__ import annotations

import json

import pytest

from extproc.errors import Denied
from extproc.service import ProtocolError
from tests import attempts
from tests.calls import (
    Identity,
    answer,
    body,
    headers_message,
)
from tests.test_service import ATTEMPT, BEARER, Bench


async def test_an_attempt_at_another_dialect_is_translated_on_a_stream_of_its_own() -> None:
    """No caller is asked for and nothing is counted: the call was admitted before."""
    bench = Bench(Identity(Denied("invalid_api_key", "never asked")))
    exchange = bench.open()
    await exchange.receive(ATTEMPT)
    sent = answer(await exchange.receive(attempts.request_body(body()))).request_body.response
    assert json.loads(sent.body_mutation.body)["model"] == "upstream"
    await exchange.receive(attempts.response_head(200, "application/json"))
    assert not exchange.ended
    last = await exchange.receive(attempts.chunk(b'{"type":"message"}', ends=True))
    made = answer(last).response_body.response.body_mutation.body
    assert json.loads(made)["object"] == "chat.completion"
    assert exchange.ended
    assert (bench.identity.asked, bench.observer.phases, len(bench.inflight)) == ([], [], 0)


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([ATTEMPT, ATTEMPT], id="the first message twice"),
        pytest.param([ATTEMPT, attempts.chunk(b"x")], id="an answer to nothing"),
        pytest.param([ATTEMPT, b"\xff"], id="garbage"),
        pytest.param([headers_message(BEARER), ATTEMPT], id="in the middle of a decision"),
    ],
)
async def test_an_attempt_out_of_order_ends_its_stream_alone(messages: list[bytes]) -> None:
    """The peer broke the protocol: one error, and the exchange is over."""
    exchange = Bench().open()
    for message in messages[:-1]:
        await exchange.receive(message)
    with pytest.raises(ProtocolError):
        await exchange.receive(messages[-1])
    assert exchange.ended
    exchange.close()


async def test_what_a_client_sends_never_looks_like_an_attempt() -> None:
    """Attributes are Envoy's to write; headers of their names are headers."""
    bench = Bench()
    exchange = bench.open()
    await exchange.receive(headers_message(BEARER, ("xds.cluster_name", "claude+openai")))
    assert bench.identity.asked
