"""One call, several providers: what each of them is sent, and what the caller gets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from extproc.wire.times import nanoseconds

from .harness import CHAT, Gateway, until
from .scripted import Request, http_answer, plan, stream_answer

pytestmark = pytest.mark.asyncio(loop_scope="module")
BODY = b'{"messages":[],"model":"one","stream":false}'
BROKEN = http_answer(503, b'{"error":1}')
LARGEST = 10 * 1024 * 1024  # the default of server.max_request_bytes


async def call(gateway: Gateway, *attempts: tuple[str, str], body: bytes = BODY) -> Any:
    """Send one call planned so."""
    gateway.processor.plans = lambda seen: plan(*attempts, body=seen)
    return await gateway.chat(body)


async def test_each_attempt_sees_its_own_model_and_the_right_length(gateway: Gateway) -> None:
    """Of a, b and c every one gets the original body with its own name spliced in."""
    gateway.providers["a"].answer = BROKEN
    gateway.providers["b"].answer = BROKEN
    answer = await call(gateway, ("a", "one"), ("b", "a-longer-name"), ("c", 'q"\\é'))
    assert answer.status_code == 200
    seen = {name: gateway.providers[name].seen[0] for name in "abc"}
    assert seen["a"].body == BODY
    assert seen["b"].body == BODY.replace(b'"one"', b'"a-longer-name"')
    assert seen["c"].body == BODY.replace(b'"one"', '"q\\u0022\\u005cé"'.encode())
    for request in seen.values():
        assert int(request.headers["content-length"]) == len(request.body)


async def test_an_attempt_after_a_renamed_one_gets_the_body_as_it_was(gateway: Gateway) -> None:
    """The announced length of the attempt before does not stay on the headers."""
    gateway.providers["a"].answer = BROKEN
    gateway.providers["b"].answer = BROKEN
    answer = await call(gateway, ("a", "one"), ("b", "longer-name"), ("c", "one"))
    assert answer.status_code == 200
    assert gateway.providers["c"].seen[0].body == BODY
    assert answer.headers["x-llm-model"] == "one"


async def test_a_chunked_upload_is_renamed_too(gateway: Gateway) -> None:
    """A body without an announced length has one once its name is changed."""
    gateway.providers["a"].answer = BROKEN

    async def pieces() -> Any:
        yield BODY[:10]
        yield BODY[10:]

    gateway.processor.plans = lambda seen: plan(("a", "one"), ("b", "two-two"), body=seen)
    async with gateway.client() as client:
        answer = await client.post(CHAT, content=pieces())
    assert answer.status_code == 200
    assert gateway.providers["b"].seen[0].body == BODY.replace(b'"one"', b'"two-two"')


async def test_the_largest_body_is_retried_and_renamed(gateway: Gateway) -> None:
    """What the processor admits fits every buffer on the way, twice."""
    gateway.providers["a"].answer = BROKEN
    body = BODY + b" " * (LARGEST - len(BODY))
    answer = await call(gateway, ("a", "one"), ("b", "two-two"), body=body)
    assert answer.status_code == 200
    assert gateway.processor.bodies == [LARGEST]
    assert gateway.providers["b"].seen[0].body == body.replace(b'"one"', b'"two-two"')


@pytest.mark.parametrize("first", ["dead", "nowhere", "b"], ids=["refused", "unresolved", "closes"])
async def test_a_provider_that_cannot_be_reached_is_passed_over(
    gateway: Gateway, first: str
) -> None:
    """Connection refused, a name that does not resolve and a break before an answer fail over."""

    async def close(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.close()

    gateway.providers["b"].answer = close
    answer = await call(gateway, (first, "one"), ("a", "two"))
    assert (answer.status_code, answer.headers["x-llm-provider"]) == (200, "a")
    assert answer.headers["x-llm-attempts"] == "2"
    assert answer.headers["x-llm-model"] == "two"


@pytest.mark.parametrize(("status", "tried"), [(429, 2), (500, 2), (503, 2), (400, 1), (404, 1)])
async def test_which_answers_are_tried_elsewhere(gateway: Gateway, status: int, tried: int) -> None:
    """Overload and faults are the provider's; anything else would be the same everywhere."""
    gateway.providers["a"].answer = http_answer(status, b'{"error":"a"}')
    answer = await call(gateway, ("a", "one"), ("b", "one"))
    assert answer.headers["x-llm-attempts"] == str(tried)
    assert answer.status_code == (200 if tried == 2 else status)


async def test_past_the_end_of_the_plan_the_last_provider_is_tried_again(gateway: Gateway) -> None:
    """So a plan names each provider once, however often the last may be tried."""
    gateway.providers["a"].answer = BROKEN
    gateway.providers["b"].answers = [BROKEN, BROKEN]
    gateway.processor.retries = 3
    answer = await call(gateway, ("a", "one"), ("b", "two"))
    assert (answer.status_code, answer.headers["x-llm-attempts"]) == (200, "4")
    assert (answer.headers["x-llm-provider"], answer.headers["x-llm-model"]) == ("b", "two")
    assert [len(gateway.providers[name].seen) for name in "abc"] == [1, 3, 0]
    assert {one.body for one in gateway.providers["b"].seen} == {BODY.replace(b'"one"', b'"two"')}


async def test_a_name_all_targets_share_is_sent_and_told(gateway: Gateway) -> None:
    """Nothing is spliced where the body has the name already."""
    gateway.providers["a"].answer = BROKEN
    answer = await call(gateway, ("a", "one"), ("b", "one"))
    assert (answer.headers["x-llm-provider"], answer.headers["x-llm-model"]) == ("b", "one")
    assert [gateway.providers[name].seen[0].body for name in "ab"] == [BODY, BODY]


async def test_the_last_answer_is_the_callers_when_all_fail(gateway: Gateway) -> None:
    """The last provider's own words pass, with who said them."""
    gateway.providers["a"].answer = BROKEN
    gateway.providers["b"].answer = http_answer(429, b'{"error":"b"}', retry_after="7")
    answer = await call(gateway, ("a", "one"), ("b", "two"))
    assert (answer.status_code, answer.content) == (429, b'{"error":"b"}')
    assert (answer.headers["x-llm-provider"], answer.headers["retry-after"]) == ("b", "7")


async def test_nothing_is_tried_again_after_the_first_byte(gateway: Gateway) -> None:
    """A stream that breaks ends broken; it does not begin again elsewhere."""

    async def cut(request: Request, writer: asyncio.StreamWriter) -> None:
        await stream_answer([b"data: {}\n\n"], ends=False)(request, writer)
        writer.close()

    gateway.providers["a"].answer = cut
    gateway.processor.plans = lambda seen: plan(("a", "one"), ("b", "one"), body=seen)
    raw = await gateway.raw(
        b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
        % (CHAT.encode(), len(BODY), BODY)
    )
    assert b"data: {}" in raw
    assert not raw.endswith(b"0\r\n\r\n")
    assert gateway.providers["b"].seen == []


async def test_the_processors_timeout_bounds_all_attempts(gateway: Gateway) -> None:
    """Two providers that hang share one budget."""

    async def hang(_request: Request, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    gateway.providers["a"].answer = hang
    gateway.processor.timeout_ms = 200
    answer = await call(gateway, ("a", "one"), ("b", "one"))
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "upstream_timeout"


async def test_a_reply_without_a_plan_goes_nowhere(gateway: Gateway) -> None:
    """There is no default provider to fall through to."""
    gateway.processor.plans = lambda _seen: {
        "llm": {"priority_groups": []},
        "llm.call": {"record": "r"},
    }
    answer = await gateway.chat(BODY)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_healthy_provider"
    assert all(provider.seen == [] for provider in gateway.providers.values())


async def test_path_and_host_are_the_providers(gateway: Gateway) -> None:
    """The caller's host and query string stay outside."""
    async with gateway.client() as client:
        await client.post(CHAT + "?a=b", content=BODY, headers={"host": "evil.example"})
    request = gateway.providers["a"].seen[0]
    assert request.path == "/v1/chat/completions"
    assert request.headers["host"] == f"127.0.0.1:{gateway.providers['a'].port}"


async def hang(_request: Request, _writer: asyncio.StreamWriter) -> None:
    """Never answer."""
    await asyncio.Event().wait()


async def failures(gateway: Gateway, request_id: str) -> list[Any]:
    """Return the log of failed attempts of a call, once the call itself is logged."""
    await gateway.entry(request_id)
    return [
        one
        for one in gateway.processor.entries
        if one.request.request_id == request_id and one.request.request_headers
    ]


async def test_a_failed_attempt_is_logged_by_itself(gateway: Gateway) -> None:
    """With its target's name, its status and what it asked for; good attempts are not."""
    headers = {"retry_after": "7", "x_ratelimit_remaining_requests": "0"}
    headers["x_ratelimit_reset_requests"] = "9s"
    gateway.providers["a"].answer = http_answer(429, b"{}", **headers)
    gateway.processor.plans = lambda seen: plan(("dead", "z"), ("a", "m"), ("b", "n"), body=seen)
    answer = await gateway.chat(BODY, x_request_id="logged", x_upstream_model="forged")
    assert answer.status_code == 200
    assert not [name for name in answer.headers if "reset" in name or "upstream" in name]
    logged = await failures(gateway, "logged")
    assert [
        (one.common_properties.upstream_cluster, one.request.request_headers["x-upstream-model"])
        for one in logged
    ] == [("dead", "z"), ("a", "m")]
    assert logged[0].common_properties.response_flags.upstream_connection_failure
    assert logged[1].response.response_code.value == 429
    told = dict(logged[1].response.response_headers)
    assert told == {"retry-after": "7", "x-llm-resets": "0;9s;;"}


async def test_a_target_that_does_not_begin_in_time_is_passed_over(gateway: Gateway) -> None:
    """And it is logged as its failure."""
    gateway.providers["a"].answer = hang
    gateway.processor.first_byte_ms = 100
    gateway.processor.plans = lambda seen: plan(("a", "m"), ("b", "m"), body=seen)
    answer = await gateway.chat(BODY, x_request_id="slow")
    assert (answer.status_code, answer.headers["x-llm-provider"]) == (200, "b")
    (logged,) = await failures(gateway, "slow")
    assert logged.common_properties.response_flags.upstream_request_timeout


async def test_the_limit_for_the_first_byte_lets_go_of_an_answer_that_began(
    gateway: Gateway,
) -> None:
    """A stream goes on although a later call with the same limit has run into it."""
    passed = asyncio.Event()

    async def slowly(request: Request, writer: asyncio.StreamWriter) -> None:
        await stream_answer([b"data: {}\n\n"], ends=False)(request, writer)
        await writer.drain()
        await passed.wait()
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    gateway.providers["a"].answers = [slowly, hang]
    gateway.processor.first_byte_ms = 100
    gateway.processor.plans = lambda seen: plan(("a", "m"), ("b", "m"), body=seen)
    patient = asyncio.create_task(gateway.chat(BODY, x_request_id="patient"))
    await until("the stream to begin", lambda: not gateway.providers["a"].answers[1:])
    later = await gateway.chat(BODY)
    assert later.headers["x-llm-provider"] == "b"
    passed.set()
    answer = await patient
    assert answer.content == b"data: {}\n\ndata: [DONE]\n\n"
    assert await failures(gateway, "patient") == []


async def test_running_out_of_the_callers_time_is_no_failed_attempt(gateway: Gateway) -> None:
    """Or one tenant could open the breaker of all."""
    gateway.providers["a"].answer = hang
    gateway.processor.timeout_ms = 100
    gateway.processor.first_byte_ms = 5_000
    answer = await gateway.chat(BODY, x_request_id="hasty")
    assert answer.status_code == 504
    assert await failures(gateway, "hasty") == []


async def silent(request: Request, writer: asyncio.StreamWriter) -> None:
    """Begin a stream and say nothing."""
    await stream_answer([], ends=False)(request, writer)
    await writer.drain()
    await asyncio.Event().wait()


async def vanish(request: Request, writer: asyncio.StreamWriter) -> None:
    """Begin a stream and break off before its first byte."""
    await stream_answer([], ends=False)(request, writer)
    writer.close()


@pytest.mark.parametrize("how", [silent, vanish], ids=["says nothing", "breaks off"])
async def test_headers_alone_are_no_answer(gateway: Gateway, how: Any) -> None:
    """Nothing has reached the caller before the first byte, so the next target may answer."""
    gateway.providers["a"].answer = how
    gateway.providers["b"].answer = stream_answer([b"data: {}\n\n", b"data: [DONE]\n\n"])
    gateway.processor.first_byte_ms = 100
    gateway.processor.plans = lambda seen: plan(("a", "m"), ("b", "m"), body=seen)
    answer = await gateway.chat(BODY)
    assert (answer.status_code, answer.headers["x-llm-provider"]) == (200, "b")
    assert answer.content == b"data: {}\n\ndata: [DONE]\n\n"


async def test_an_answer_without_a_body_is_not_held(gateway: Gateway) -> None:
    """Its headers are all there is to wait for."""
    gateway.providers["a"].answer = http_answer(204, b"")
    assert (await gateway.chat(BODY)).status_code == 204
    gateway.providers["a"].answer = stream_answer([])
    assert (await gateway.chat(BODY)).content == b""


async def test_the_time_to_the_first_token_is_not_that_of_the_headers(gateway: Gateway) -> None:
    """What is held does not look quick in the log."""
    go_on = asyncio.Event()

    async def late(request: Request, writer: asyncio.StreamWriter) -> None:
        await stream_answer([], ends=False)(request, writer)
        await writer.drain()
        await go_on.wait()
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    gateway.providers["a"].answers = [late, hang]
    gateway.processor.plans = lambda seen: plan(("a", "m"), ("b", "m"), body=seen)
    first = asyncio.create_task(gateway.chat(BODY, x_request_id="late"))
    await until("the stream to begin", lambda: not gateway.providers["a"].answers[1:])
    gateway.processor.first_byte_ms = 150
    await gateway.chat(BODY)  # takes that long, so the first has waited longer
    go_on.set()
    await first
    common = (await gateway.entry("late")).common_properties
    assert nanoseconds(common.time_to_first_downstream_tx_byte) >= 150_000_000
