"""An answer to a part of a batch as a script of messages; and the whole table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from extproc.cache.recorded import CannotTell
from extproc.exchange import OutOfOrder
from extproc.merging import LEGAL, Merging, State
from extproc.wire.messages import Malformed
from tests.attempts import chunk, request_body, response_head
from tests.calls import answer

JSON = "application/json"
EXPECTED = {
    ("awaits_answer", "response_headers"): "collects_a_document",
    ("awaits_answer", "response_headers_of_something_else"): "ended",
    ("collects_a_document", "response_body"): "ended",
}


def doubled(body: bytes) -> bytes:
    """Stand in for what completes an answer."""
    if not body:
        raise CannotTell("nothing to double")
    return body * 2


def merging() -> Merging:
    return Merging(doubled, "openai", "r-1")


def test_the_table_holds_these_pairs_and_no_others() -> None:
    assert {(s.value, str(e)): after.value for (s, e), after in LEGAL.items()} == EXPECTED


def test_a_good_answer_is_completed() -> None:
    """Its headers go on as they are, its length is the new one's."""
    exchange = merging()
    head = answer(exchange.receive(response_head(200, JSON)))
    assert head.response_headers is not None
    assert head.mode_override is None  # the decision asked for all of it already
    assert exchange.state is State.COLLECTS
    common = answer(exchange.receive(chunk(b"[1]", ends=True))).response_body.response
    headers = {one.header.key: one.header.raw_value for one in common.header_mutation.set_headers}
    assert common.body_mutation.body == b"[1][1]"
    assert headers == {"content-length": b"6", "content-type": b"application/json"}
    assert exchange.state is State.ENDED


@pytest.mark.parametrize(
    ("status", "ends"),
    [
        pytest.param(404, False, id="the provider's refusal"),
        pytest.param(500, False, id="its failure"),
        pytest.param(504, False, id="Envoy's own"),
        pytest.param(201, False, id="another success"),
        pytest.param(200, True, id="nothing at all"),
    ],
)
def test_anything_else_passes_unseen(status: int, ends: bool) -> None:
    """The RPC is over with its headers."""
    exchange = merging()
    reply = answer(exchange.receive(response_head(status, JSON, ends=ends)))
    assert reply.response_headers is not None
    assert reply.response_headers.response is None
    assert exchange.state is State.ENDED


def test_what_does_not_go_together_is_an_error_of_the_provider() -> None:
    exchange = merging()
    exchange.receive(response_head(200, JSON))
    common = answer(exchange.receive(chunk(b"", ends=True))).response_body.response
    headers = {one.header.key: one.header.raw_value for one in common.header_mutation.set_headers}
    told: dict[str, Any] = json.loads(common.body_mutation.body)
    assert headers[":status"] == b"502"
    assert told["error"]["code"] == "upstream_error"
    assert int(headers["content-length"]) == len(common.body_mutation.body)


@pytest.mark.parametrize(
    ("before", "message"),
    [
        pytest.param([], chunk(b"x"), id="a body before its headers"),
        pytest.param([], request_body(b"x"), id="a request again"),
        pytest.param([response_head(200, JSON)], response_head(200, JSON), id="headers twice"),
        pytest.param([response_head(500, JSON)], chunk(b"x"), id="a body of what passed unseen"),
    ],
)
def test_messages_out_of_order_are_refused(before: list[bytes], message: bytes) -> None:
    exchange = merging()
    for one in before:
        exchange.receive(one)
    with pytest.raises(OutOfOrder):
        exchange.receive(message)


def test_garbage_is_malformed() -> None:
    with pytest.raises(Malformed):
        merging().receive(b"\xff")
