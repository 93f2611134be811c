"""Attempts that are translated or watched, each a stream of its own."""

from __future__ import annotations

import json

import pytest
from envoy_data_plane.envoy.service.ext_proc.v3 import HttpTrailers, ProcessingRequest

from extproc.errors import Denied
from extproc.service import ProtocolError
from extproc.wire.attempts import encode_chunk, encode_trailers
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


WATCHED = attempts.response_head(200, "text/event-stream", path="/v1/chat/completions")


async def test_a_stream_that_passes_is_watched_on_a_stream_of_its_own() -> None:
    """From the answer's headers on, as patiently as one that is translated."""
    bench = Bench(Identity(Denied("invalid_api_key", "never asked")))
    exchange = bench.open()
    assert exchange.patience_s is None
    assert answer(await exchange.receive(WATCHED)).mode_override is not None
    assert exchange.patience_s == bench.gateway.snapshot.wait_ms / 1000
    event = b"data: {}\n\n"
    assert await exchange.receive(attempts.chunk(event)) == encode_chunk(event, ends=False)
    assert not exchange.ended
    assert b"broke off" in exchange.overdue()
    assert exchange.ended
    assert (bench.identity.asked, bench.observer.phases, len(bench.inflight)) == ([], [], 0)


async def test_what_was_held_back_is_said_before_the_trailers() -> None:
    """Two messages for one, in this order, and the exchange is over."""
    exchange, said = Bench().open(), []

    async def say(message: bytes) -> None:
        said.append(message)

    await exchange.receive(WATCHED, say)
    await exchange.receive(attempts.chunk(b"data: half"), say)
    assert said == []
    trailers = bytes(ProcessingRequest(response_trailers=HttpTrailers()))
    assert await exchange.receive(trailers, say) == encode_trailers()
    assert said == [encode_chunk(b"data: half", ends=False)]
    assert exchange.ended


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([ATTEMPT, ATTEMPT], id="the first message twice"),
        pytest.param([ATTEMPT, attempts.chunk(b"x")], id="an answer to nothing"),
        pytest.param([ATTEMPT, b"\xff"], id="garbage"),
        pytest.param([headers_message(BEARER), ATTEMPT], id="in the middle of a decision"),
        pytest.param([headers_message(BEARER), WATCHED], id="an answer's in a decision"),
        pytest.param([WATCHED, WATCHED], id="an answer twice"),
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
