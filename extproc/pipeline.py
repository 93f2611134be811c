"""The product, read top to bottom: `identify` and `admit` before the call, `settle` after it.

Knows: policies and ports. Must not know: protobuf, transports or where state is kept.
"""

from __future__ import annotations

import re
from typing import Final

from msgspec.structs import replace

from extproc.answers import OVERHEAD_BYTES, STATUS_HEADER
from extproc.cache.asked import Asked
from extproc.caching.fill import fill, filling_of
from extproc.caching.flow import abandon, asked_of, consult
from extproc.caching.turn import Patience
from extproc.dialects import anthropic, openai
from extproc.dialects.directions import DIRECTIONS
from extproc.dialects.json_body import Members, members
from extproc.domain import (
    ENDPOINTS,
    MODELS_PATH,
    Call,
    Continue,
    Dialect,
    Ended,
    Endpoint,
    FailedAttempt,
    Forward,
    Head,
    LogEntry,
    Outcome,
    Plan,
    Principal,
    Reply,
)
from extproc.errors import Denied
from extproc.gateway import Gateway, Hit, Identified, Miss, Planned
from extproc.limits import Settlement
from extproc.policies import models, routing, strictness
from extproc.policies.cooling import cool_s
from extproc.policies.health import Health, is_failure
from extproc.policies.trace import read as read_trace
from extproc.record import Foreign, Record, decode
from extproc.reserving import reserve
from extproc.settlement import settle as settle_entry
from extproc.settlement import settle_told, settlement_of
from extproc.snapshot import Snapshot

TIMED_OUT: Final = "upstream_request_timeout"  # Envoy's flag of the limit of all attempts
_TIMEOUT_KIND: Final[dict[str, str]] = {o.name: o.timeout_kind for o in ENDPOINTS.values()}
DIALECTS: Final = {"anthropic": anthropic, "openai": openai}
VERSION_HEADER: Final = "anthropic-version"
# What is kept of a client's choosing, but for what looks like a key: ids are stored and logged.
REQUEST_ID: Final = re.compile(r"(?!sk[-_]|eyJ)[A-Za-z0-9._-]{1,128}")


def request_id_of(gateway: Gateway, head: Head) -> str:
    """Keep the client's request id when it is valid, else make one."""
    given = head.headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else gateway.new_id()


def dialect_of(head: Head) -> Dialect:
    """Say in which dialect a caller expects the answer, errors included.

    Both APIs list models at one path: Anthropic's callers must name a version of it.
    """
    endpoint = ENDPOINTS.get((head.method, head.path))
    if endpoint is not None:
        return endpoint.dialect
    return "anthropic" if VERSION_HEADER in head.headers else "openai"


async def identify(gateway: Gateway, head: Head, request_id: str) -> Identified | Reply:
    """Decide on the headers alone: who is calling, and may they call this. Raises Denied."""
    snapshot = gateway.snapshot
    endpoint = ENDPOINTS.get((head.method, head.path))
    listing = head.method == "GET" and (
        head.path == MODELS_PATH or head.path.startswith(MODELS_PATH + "/")
    )
    if endpoint is None and not listing:
        raise Denied("not_found", "Unknown request URL.")
    principal = await gateway.identity.authenticate(head.headers, gateway.clock())
    if endpoint is None:
        return models.listing(snapshot, principal, head.path, dialect_of(head))
    _may_use(principal, endpoint, head)
    if head.ends:
        raise Denied("invalid_request_error", "The request body is empty.")
    length = head.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > snapshot.max_request_bytes:
        raise _too_large(snapshot)
    return Identified(head, endpoint, principal, request_id, snapshot)


def endpoint_of(head: Head, principal: Principal) -> Endpoint:
    """Return the endpoint a caller may call so. Raises Denied."""
    endpoint = ENDPOINTS.get((head.method, head.path))
    if endpoint is None:
        raise Denied("not_found", "Unknown request URL.")
    _may_use(principal, endpoint, head)
    return endpoint


def _may_use(principal: Principal, endpoint: Endpoint, head: Head) -> None:
    if not principal.may_use_endpoint(endpoint.name):
        raise Denied("permission_denied", f"This key may not use the endpoint {head.path}.")


def greet(identified: Identified) -> Continue:
    """Let an identified call send its body, under the request id it is logged by."""
    # Of a batch some inputs may turn out to be known, and the answer to the others a part of its.
    batches = identified.endpoint.name == "embeddings" and identified.snapshot.cache.enabled
    if identified.head.headers.get("x-request-id") == identified.request_id:
        return Continue(may_complete=batches)
    header = ("x-request-id", identified.request_id.encode())
    return Continue(set_headers=(header,), may_complete=batches)


def read(identified: Identified, body: bytes) -> Call:
    """Read the body in the caller's dialect. Raises Denied."""
    return _read(identified, body)[0]


def _read(identified: Identified, body: bytes) -> tuple[Call, Members]:
    if len(body) > identified.snapshot.max_request_bytes:
        raise _too_large(identified.snapshot)
    endpoint = identified.endpoint
    parsed = members(body)
    call: Call = DIALECTS[endpoint.dialect].call_of(endpoint, parsed, len(body))
    return call, parsed


async def _as_long_as_it_takes(_seconds: float) -> None:
    """Ask nobody for time."""


async def admit(
    gateway: Gateway,
    identified: Identified,
    body: bytes,
    patience: Patience = _as_long_as_it_takes,
) -> Forward | Hit:
    """Decide on the whole call: read it, plan it, look it up, rewrite it. Raises Denied.

    `patience` asks the caller for that many seconds from now; it is awaited where more than a
    store's answer is waited for.
    """
    planned, asked = _planned(gateway, identified, body)
    # After all that may forbid the call, because an answer is no less than the call itself; before
    # the limits, because a kept answer takes only a request of them.
    found = await consult(gateway, planned, asked, patience)
    if type(found) is Hit:  # because a Struct's class takes 500 instructions for `isinstance`
        return found
    try:
        return await _forward(gateway, planned, found)
    except BaseException:
        abandon(gateway, found, planned.id)
        raise


def _planned(gateway: Gateway, identified: Identified, body: bytes) -> tuple[Planned, Asked | None]:
    """Read and plan a call, and say what it may have of the cache. Raises Denied.

    Apart from `admit`, because what the body was decoded to must not stay while the call waits.
    """
    snapshot, principal = identified.snapshot, identified.principal
    call, parsed = _read(identified, body)
    ask = routing.ask_for(
        snapshot,
        identified.head,
        principal,
        call,
        estimator=gateway.estimator,
        health=gateway.health,
        now=gateway.steady(),
        draw=gateway.draw(),
    )
    plan = routing.plan(snapshot, identified.head, ask)
    plan = strictly(snapshot, call, plan, body)
    planned = Planned(gateway.new_id(), identified, call, plan, body)
    return planned, asked_of(gateway, planned, parsed)


async def _forward(gateway: Gateway, planned: Planned, miss: Miss) -> Forward:
    """Reserve what the call may take and rewrite it. Raises Denied."""
    planned, waited_ms = miss.part or planned, miss.waited_ms
    if waited_ms is not None:
        planned = replace(planned, plan=routing.later(planned.plan, waited_ms))
    grant = await reserve(gateway, planned, waited=waited_ms is not None)
    identified, call, plan, body = planned.identified, planned.call, planned.plan, planned.body
    dialect = DIALECTS[identified.endpoint.dialect]
    try:
        rewritten = dialect.rewrite(body, call, plan.attempts[0].model, grant.output or None)
    except BaseException:  # a bug must not hold a slot for the length of a lease
        gateway.ledger.settle(Settlement(planned.id, (0, 0, 0), certain=True, hold=grant.hold))
        raise
    sent = rewritten.body
    if sent is None and miss.part is not None:
        sent = body  # which Envoy has not seen
    headers = grant.headers
    if miss.status:
        headers += ((STATUS_HEADER, miss.status),)
    return Forward(
        plan=plan,
        call=call,
        principal=identified.principal,
        id=planned.id,
        body=sent,
        model_span=rewritten.model_span,
        strip_usage=rewritten.strip_usage,
        body_bytes=len(body),
        headers=headers,
        hold=grant.hold,
        filling=filling_of(miss, call, grant.output),
        keep_bytes=identified.snapshot.cache.max_entry_bytes - OVERHEAD_BYTES,
        complete=miss.complete,
    )


def strictly(snapshot: Snapshot, call: Call, plan: Plan, body: bytes) -> Plan:
    """Leave out of a strict model's plan who would not get the whole call. Raises Denied."""
    if not snapshot.models[call.model].strict:
        return plan
    caller = call.endpoint.dialect
    return strictness.enforce(plan, caller, lambda: DIRECTIONS[caller].request(body, "").lossy)


def settle(gateway: Gateway, entry: LogEntry) -> Outcome | None:
    """Bill one finished exchange; None when its record is not ours to read."""
    try:
        record = decode(entry.record)
    except Foreign:
        gateway.observer.store_error("accesslog", "decode")
        return None
    if record.told:
        outcome = settle_told(entry, record)
        _tell(gateway, record, outcome)
        return outcome
    outcome = settle_entry(entry, record, gateway.estimator)
    gateway.ledger.settle(settlement_of(outcome, record))
    if record.filling is not None:
        fill(gateway, record, entry, outcome)
    kind = "streaming" if outcome.stream else _TIMEOUT_KIND.get(outcome.endpoint, "completion")
    limit_ms = gateway.snapshot.timeout_ms[kind]
    _learn(gateway.health, outcome, limit_ms, gateway.steady(), keyless=entry.keyless)
    _tell(gateway, record, outcome)
    return outcome


def _tell(gateway: Gateway, record: Record, outcome: Outcome) -> None:
    gateway.observer.settled(outcome)
    if gateway.tracer is not None and (trace := read_trace(record.trace)) is not None:
        gateway.tracer.settled(trace, outcome)


def attempt_failed(gateway: Gateway, attempt: FailedAttempt) -> None:
    """Hold an attempt that a provider failed against it; what was the caller's doing is not."""
    if not is_failure(attempt.status, attempt.flags):
        return
    cool = cool_s(attempt.retry_after, attempt.resets, gateway.clock())
    key = f"{attempt.provider}/{attempt.model}"
    gateway.health.failed(key, gateway.steady(), cool)


def _learn(health: Health, outcome: Outcome, limit_ms: int, now: float, *, keyless: bool) -> None:
    """Note a good answer, one that took all the time there is, and a target without a credential.

    Other failures have been noted as they happened; of a time limit that a caller lowered below
    `limit_ms` nothing is held against the provider. Envoy answers itself where it has no
    credential, and tries no other target: only the breaker leads past such a one.
    """
    key = f"{outcome.provider}/{outcome.served_model}"
    if outcome.ended is not Ended.FINISHED:
        if keyless or (TIMED_OUT in outcome.flags and outcome.duration_ms >= limit_ms):
            health.failed(key, now, 0)
        return
    target = health.at(key)
    target.breaker.succeeded()
    usage = outcome.usage
    if outcome.ttft_ms is not None and outcome.stream:
        target.streamed(outcome.ttft_ms, outcome.duration_ms - outcome.ttft_ms, usage.output)
    elif not outcome.stream:
        target.answered(outcome.duration_ms, usage.output)
    if usage.input:
        target.cached(usage.cached_input / usage.input)


def _too_large(snapshot: Snapshot) -> Denied:
    limit = snapshot.max_request_bytes
    return Denied("request_too_large", f"The request body is over {limit} bytes.")
