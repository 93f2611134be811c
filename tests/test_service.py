"""Scripts of messages against the processor: security rows first."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from extproc import pipeline
from extproc.domain import Model, Principal
from extproc.errors import Denied
from extproc.inflight import GRACE_S, InFlight
from extproc.record import decode
from extproc.service import Exchange, Processor, ProtocolError
from extproc.wire import messages as wire
from tests import attempts
from tests.calls import (
    ALICE,
    NOW,
    Identity,
    Watcher,
    answer,
    body,
    body_message,
    gateway,
    headers_message,
    plain,
    snapshot,
    target,
)

ATTEMPT = attempts.head("claude+openai", "upstream")
BEARER = ("authorization", "Bearer sk_x")
SECRET = "postgres://user:hunter2@db"  # stands in an exception's text


class Bench:
    """A processor with everything around it in reach."""

    def __init__(self, identity: Any = None, **more: Any) -> None:
        self.identity = identity or Identity()
        self.observer = Watcher()
        self.inflight = InFlight(lambda: NOW)
        self.gateway = gateway(self.identity, self.observer, **more)
        self.processor = Processor(self.gateway, self.inflight)

    def open(self) -> Exchange:
        return self.processor.open()

    async def play(self, *messages: bytes) -> Any:
        """Send messages to a new exchange; return its last reply."""
        exchange = self.open()
        replies = [await exchange.receive(message) for message in messages]
        assert exchange.ended
        return answer(replies[-1])


def refused(response: Any) -> tuple[int, dict[str, Any], dict[str, bytes]]:
    """Read an answer of the processor: status, error or document, headers."""
    immediate = response.immediate_response
    headers = {o.header.key: o.header.raw_value for o in immediate.headers.set_headers}
    document = json.loads(immediate.body)
    return int(immediate.status.code), document.get("error", document), headers


async def test_a_caller_nobody_knows_is_refused_at_the_headers() -> None:
    bench = Bench(Identity(Denied("invalid_api_key", "Incorrect API key provided.")))
    status, error, headers = refused(await bench.play(headers_message()))
    assert status == 401
    assert error == {
        "message": "Incorrect API key provided.",
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }
    assert headers == {"content-type": b"application/json", "www-authenticate": b"Bearer"}
    assert bench.observer.refused == [("chat", 401, "invalid_api_key")]
    assert len(bench.inflight) == 0


async def test_nothing_comes_after_a_refusal() -> None:
    exchange = Bench(Identity(Denied("invalid_api_key", "No."))).open()
    await exchange.receive(headers_message())
    with pytest.raises(ProtocolError, match="request_body in state ended"):
        await exchange.receive(body_message(body()))


@pytest.mark.parametrize("stage", ["authenticate", "admit"])
async def test_a_failure_of_ours_is_a_500_that_tells_nothing(
    stage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(SECRET)

    bench = Bench(Identity(RuntimeError(SECRET)) if stage == "authenticate" else None)
    script = [headers_message(("x-request-id", "req-7"))]
    if stage == "admit":
        monkeypatch.setattr(pipeline.routing, "plan", broken)
        script.append(body_message(body()))
    with caplog.at_level(logging.ERROR):
        response = await bench.play(*script)
    status, error, _ = refused(response)
    assert (status, error["code"], error["type"]) == (500, "internal_error", "server_error")
    assert "hunter2" not in str(response)
    assert bench.observer.refused == [("chat", 500, "internal_error")]
    assert len(bench.inflight) == 0
    (logged,) = caplog.records
    assert logged.exc_info is not None
    assert logged.__dict__["request_id"] == "req-7"


async def test_what_a_key_may_not_use_is_refused() -> None:
    narrow = Principal("acme", "key", "free", frozenset({"other"}), frozenset({"chat"}))
    bench = Bench(Identity(narrow))
    status, error, _ = refused(await bench.play(headers_message(path="/v1/embeddings")))
    assert (status, error["code"]) == (403, "permission_denied")
    status, error, _ = refused(await bench.play(headers_message(), body_message(body())))
    assert (status, error["code"], error["param"]) == (403, "permission_denied", "model")
    status, listed, _ = refused(
        await bench.play(headers_message(method="GET", path="/v1/models", ends=True))
    )
    assert (status, listed["data"]) == (200, [])
    assert [row[0] for row in bench.observer.refused] == ["embeddings", "chat"]


async def test_a_call_is_let_in_planned_and_counted() -> None:
    bench = Bench()
    exchange = bench.open()
    first = answer(await exchange.receive(headers_message(BEARER, ("x-request-id", "req-1"))))
    assert first.request_headers is not None
    assert first.request_headers.response is None
    assert not exchange.ended
    assert len(bench.inflight) == 0
    assert bench.identity.asked[0]["authorization"] == "Bearer sk_x"

    second = answer(await exchange.receive(body_message(body())))
    assert exchange.ended
    metadata = plain(second.dynamic_metadata)
    (group,) = metadata["llm"]["priority_groups"]
    assert group["clusters"] == [{"cluster_name": "openai", "weight": 1.0}]
    assert metadata["llm.served"] == {"model": "gpt-4o-mini"}
    common = second.request_body.response
    sent = json.loads(common.body_mutation.body)
    assert sent["model"] == "gpt-4o-mini"
    record = decode(metadata["llm.call"]["record"])
    assert (record.tenant, record.model) == (ALICE.tenant, "small")
    assert record.id in bench.inflight
    assert record.prompt_bytes == len(body())
    assert bench.observer.phases == ["headers", "body"]
    assert bench.observer.refused == []
    assert len(bench.inflight) == 1
    bench.inflight.settled(record.id)
    assert len(bench.inflight) == 0


async def test_a_planned_call_is_in_flight_until_its_time_is_over() -> None:
    bench = Bench()
    moment = NOW
    bench.inflight = InFlight(lambda: moment)
    bench.processor = Processor(bench.gateway, bench.inflight)
    await bench.play(headers_message(("x-llm-timeout-ms", "1500")), body_message(body()))
    moment = NOW + 1.5 + GRACE_S - 0.01
    assert bench.inflight.expire() == 0
    moment = NOW + 1.5 + GRACE_S
    assert bench.inflight.expire() == 1


@pytest.mark.parametrize(
    ("content", "param"),
    [
        pytest.param(b"{", None, id="not JSON"),
        pytest.param(b"", None, id="nothing"),
        pytest.param(body(temperature=9), "temperature", id="out of range"),
        pytest.param(body(model=7), "model", id="wrong type"),
        pytest.param(body()[:-1] + b',"model":"x"}', "model", id="a key twice"),
    ],
)
async def test_a_bad_body_is_a_400_naming_the_field(content: bytes, param: str | None) -> None:
    bench = Bench()
    response = await bench.play(headers_message(), body_message(content))
    status, error, _ = refused(response)
    assert (status, error["code"], error["param"]) == (400, "invalid_request_error", param)
    assert bench.observer.refused == [("chat", 400, "invalid_request_error")]
    assert len(bench.inflight) == 0


async def test_a_model_nobody_configured_is_a_404() -> None:
    bench = Bench()
    response = await bench.play(headers_message(), body_message(body(model="huge")))
    status, error, _ = refused(response)
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert len(bench.inflight) == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/models"),
        ("POST", "/v1/chat/completions/"),
        ("GET", "/v1/modelsx"),
        ("POST", "/"),
        ("", ""),
    ],
    ids="{}".format,
)
async def test_any_other_place_is_a_404_before_anyone_is_asked_who_calls(
    method: str, path: str
) -> None:
    bench = Bench()
    response = await bench.play(headers_message(method=method, path=path))
    status, error, _ = refused(response)
    assert (status, error["code"]) == (404, "not_found")
    assert bench.identity.asked == []
    assert [row[1:] for row in bench.observer.refused] == [(404, "not_found")]


async def test_a_query_does_not_hide_the_endpoint() -> None:
    bench = Bench()
    script = headers_message(path="/v1/chat/completions?api-version=1"), body_message(body())
    assert (await bench.play(*script)).request_body is not None


@pytest.mark.parametrize("ends", [True, False])
async def test_the_models_are_listed_and_shown(ends: bool) -> None:
    models = (Model("a", "priority", (target("x"),)), Model("b", "priority", (target("y"),)))
    principal = Principal("acme", "key", "free", models=frozenset({"b"}))
    bench = Bench(Identity(principal), snapshot=snapshot(*models))

    async def get(path: str) -> tuple[int, dict[str, Any]]:
        raw = headers_message(method="GET", path=path, ends=ends)
        status, document, headers = refused(await bench.play(raw))
        assert headers == {"content-type": b"application/json"}
        return status, document

    status, listed = await get("/v1/models")
    assert (status, [model["id"] for model in listed["data"]]) == (200, ["b"])
    assert (await get("/v1/models/b"))[1]["owned_by"] == "y"
    assert bench.observer.refused == []
    assert (await get("/v1/models/a"))[0] == 404
    assert bench.observer.refused == [("models", 404, "model_not_found")]


async def test_headers_that_end_the_request_are_an_empty_body() -> None:
    status, error, _ = refused(await Bench().play(headers_message(ends=True)))
    assert (status, error["code"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(
            lambda size: [headers_message(("content-length", str(size)))], id="as announced"
        ),
        pytest.param(lambda size: [headers_message(), body_message(b" " * size)], id="as sent"),
        pytest.param(
            lambda size: [headers_message(("content-length", "9" * 5000))], id="beyond reading"
        ),
    ],
)
async def test_a_body_over_the_limit_is_a_413(script: Callable[[int], list[bytes]]) -> None:
    bench = Bench(snapshot=snapshot(max_request_bytes=1024))
    status, error, _ = refused(await bench.play(*script(1025)))
    assert (status, error["code"]) == (413, "request_too_large")
    assert "1024" in error["message"]
    assert len(bench.inflight) == 0


async def test_a_body_at_the_limit_is_let_in() -> None:
    content = body().ljust(1024)
    bench = Bench(snapshot=snapshot(max_request_bytes=1024))
    script = headers_message(("content-length", "1024")), body_message(content)
    assert (await bench.play(*script)).request_body is not None


@pytest.mark.parametrize("length", ["²", "-1", "1e9", "", "4, 4"])
async def test_a_length_that_is_no_number_is_left_to_envoy(length: str) -> None:
    script = headers_message(("content-length", length)), body_message(body())
    assert (await Bench().play(*script)).request_body is not None


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param([b""], "empty in state new", id="an empty message"),
        pytest.param([body_message(b"{}")], "request_body in state new", id="body first"),
        pytest.param(
            [headers_message(), headers_message()],
            "request_headers in state awaits_body",
            id="headers twice",
        ),
        pytest.param([headers_message(), b""], "empty in state awaits_body", id="empty for a body"),
        pytest.param(
            [headers_message(), body_message(body()), body_message(body())],
            "request_body in state ended",
            id="body twice",
        ),
        pytest.param(
            [headers_message(method="GET", path="/v1/models", ends=True), headers_message()],
            "request_headers in state ended",
            id="a message after the end",
        ),
        pytest.param([b"\xff\xff"], "not a ProcessingRequest", id="garbage"),
        pytest.param([headers_message(), b"\x0a"], "not a ProcessingRequest", id="garbage later"),
    ],
)
async def test_a_breach_of_the_protocol_ends_the_exchange(script: list[bytes], reason: str) -> None:
    exchange = Bench().open()
    for message in script[:-1]:
        await exchange.receive(message)
    with pytest.raises(ProtocolError, match=reason):
        await exchange.receive(script[-1])
    assert exchange.ended
    with pytest.raises(ProtocolError):
        await exchange.receive(headers_message())


async def test_what_envoy_refuses_before_it_has_the_body_passes() -> None:
    """Where answers are asked for, its own come here too."""
    refusal = attempts.response_head(413, "application/json")
    reply = await Bench().play(headers_message(BEARER), refusal)
    assert reply.response_headers is not None
    assert reply.response_headers.response is None


async def test_a_breach_does_not_touch_another_exchange() -> None:
    bench = Bench()
    exchange, broken = bench.open(), bench.open()
    await exchange.receive(headers_message())
    with pytest.raises(ProtocolError):
        await broken.receive(b"\xff")
    assert answer(await exchange.receive(body_message(body()))).request_body is not None
    assert len(bench.inflight) == 1


@pytest.mark.parametrize("given", ["req-1", "A.b_c-9", "x" * 128])
async def test_a_good_request_id_is_kept(given: str) -> None:
    raw = await Bench().open().receive(headers_message(("x-request-id", given)))
    assert raw == wire.encode_continue(pipeline.Continue())


@pytest.mark.parametrize(
    "given",
    ["", "a b", "x" * 129, "a\n", "é", "a, b", "<script>", "sk_" + "a" * 43, "sk-x", "eyJhb.eyJ.x"],
    ids=lambda v: repr(v)[:12],
)
async def test_a_bad_request_id_is_replaced(given: str) -> None:
    raw = await Bench().open().receive(headers_message(("x-request-id", given)))
    common = answer(raw).request_headers.response  # type: ignore[union-attr]
    assert common is not None
    assert common.header_mutation is not None
    (option,) = common.header_mutation.set_headers
    assert option.header is not None
    assert (option.header.key, option.header.raw_value) == ("x-request-id", b"made-1")


async def test_an_id_of_the_clients_choosing_is_never_the_one_calls_are_billed_by() -> None:
    script = headers_message(("x-request-id", "req-1")), body_message(body())
    call = plain((await Bench().play(*script)).dynamic_metadata)["llm.call"]
    assert decode(call["record"]).id == "made-1"
