"""The response cache on a call's way: looked up before it is sent, filled when its log entry comes.

Knows: the cache's rules in their order, the ports of stores, flights and limits. Must not know:
where answers are kept, protobuf, transports.
An answer is kept under its call's digest and the name of the model that gave it: what a fallback
said is not told to calls that the first choice can take again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import blake2b
from http import HTTPStatus
from typing import Final, TypeAlias, cast

from extproc.answers import (
    NOT_ASKED,
    STATUS_HEADER,
    End,
    Entry,
    Filling,
    Form,
    Landing,
    Miss,
    Role,
    Told,
)
from extproc.cache import lookup, rules, status
from extproc.cache.control import read as read_control
from extproc.cache.key import DIGEST_BYTES
from extproc.cache.lookup import Asked, Use
from extproc.cache.reasons import Reason
from extproc.cache.replay import CannotTell, replay
from extproc.cache.status import Fwd
from extproc.domain import Call, Ended, EndpointName, LogEntry, Outcome, Reply
from extproc.errors import Denied
from extproc.gateway import (
    NO_GRANT,
    ONE_REQUEST,
    Caching,
    Gateway,
    Hit,
    Identified,
    Planned,
    reserve_request,
)
from extproc.limits import Grant, Settlement
from extproc.record import Record
from extproc.settlement import is_callers_error

Patience: TypeAlias = Callable[[float], Awaitable[None]]  # seconds that a reply may take from now
LEASE_GRACE_S: Final = 5.0  # from a call's time limit to its log entry
REPLY_GRACE_S: Final = 2.0  # between giving up waiting and the reply
_FORWARDED: Final[dict[Use, tuple[str, Fwd]]] = {
    Use.MISS: ("miss", "miss"),
    Use.STALE: ("stale", "stale"),
    Use.REFUSED: ("refused", "request"),
}


def key_of(digest: bytes, served_model: str) -> bytes:
    """Return what the answer of a call is kept under that this model gave."""
    return blake2b(served_model.encode(), key=digest, digest_size=DIGEST_BYTES).digest()


async def consult(gateway: Gateway, planned: Planned, patience: Patience) -> Hit | Miss:
    """Find the answer of a call that may be sent, or say what its own answer is to be.

    Suspends for a remote store, and while an identical call is under way; then `patience` is asked
    for. Raises Denied: a limit refuses, nothing else than a kept answer was wanted, time is over.
    """
    identified, call = planned.identified, planned.call
    caching, policy = gateway.caching, identified.snapshot.cache
    if caching is None or not policy.enabled:
        _must_go_on(identified)
        return NOT_ASKED
    asked = lookup.ask(policy, identified.head, identified.principal, call, planned.body)
    if asked.key is None:
        _must_go_on(identified)
        if asked.reason is Reason.OFF:
            return NOT_ASKED
        gateway.observer.looked_up("bypass")
        return Miss(status.forwarded("bypass", detail=asked.reason))
    key = key_of(asked.key, planned.plan.attempts[0].model)
    turn = _Turn(gateway, planned, asked, key, patience)
    use = Use.REFUSED
    if asked.may_look_up:
        entry = await caching.answers.get(key, turn.now_ms())
        use = turn.judge(entry)
        if entry is not None and use is Use.HIT:
            hit = await turn.told(entry)
            if hit is not None:
                return hit
            use = Use.MISS
    if asked.control.only_if_cached:
        raise _not_cached()
    result, fwd = _FORWARDED[use]
    if not asked.may_store:
        gateway.observer.looked_up(result)
        return Miss(turn.status(fwd))
    if not asked.may_look_up:
        gateway.observer.looked_up(result)
        return Miss(turn.status(fwd), asked.key, asked.ttl_ms)
    return await _collapse(caching, turn, fwd, result)


def filling_of(miss: Miss, call: Call, granted: int) -> Filling | None:
    """Return what is needed to keep the answer; `granted` is the bound a limit set, or 0."""
    if not miss.digest:
        return None
    bounded = granted > 0 and granted != call.max_output_tokens
    return Filling(miss.digest, miss.ttl_ms, miss.leads, bounded)


def abandon(gateway: Gateway, miss: Miss, call_id: str) -> None:
    """Let another call lead: this one is not sent."""
    if miss.leads and gateway.caching is not None:
        gateway.caching.flights.finish(miss.key, call_id, End.FAILED)


def fill(gateway: Gateway, record: Record, entry: LogEntry, outcome: Outcome) -> None:
    """Keep the answer of a settled call if it may be kept, and tell those who wait for it."""
    caching, filling = gateway.caching, record.filling
    if caching is None or filling is None:
        return
    found = _judged(gateway, filling, entry, outcome)
    if isinstance(found, Entry):
        caching.answers.put(key_of(filling.digest, outcome.served_model), found)
        gateway.observer.kept("stored")
    else:
        gateway.observer.kept(found.value)
    if filling.leads:
        end = found if isinstance(found, Entry) else _end(outcome)
        key = key_of(filling.digest, record.attempts[0].model)
        caching.flights.finish(key, outcome.id, end)


class _Turn:
    """One call on its way through the cache; `grant` is its place in the limits while it waits."""

    __slots__ = ("asked", "began", "gateway", "grant", "key", "patience", "planned")

    def __init__(
        self, gateway: Gateway, planned: Planned, asked: Asked, key: bytes, patience: Patience
    ) -> None:
        self.gateway = gateway
        self.planned = planned
        self.asked = asked
        self.key = key
        self.patience = patience
        self.grant: Grant | None = None
        self.began = 0.0

    def now_ms(self) -> int:
        return int(self.gateway.clock() * 1000)

    def judge(self, entry: Entry | None) -> Use:
        return lookup.judge(entry, self.asked, self.now_ms())

    def status(self, fwd: Fwd, *, collapsed: bool | None = None) -> bytes:
        return status.forwarded(fwd, collapsed=collapsed, key=self.shown_key())

    def shown_key(self) -> bytes | None:
        return self.key if self.planned.identified.snapshot.cache.debug_key else None

    async def waits(self) -> None:
        """Take a place in the limits, and time. Raises Denied."""
        if self.grant is None:
            self.began = self.gateway.steady()
            self.grant = await reserve_request(self.gateway, self.planned, self._place)
            await self.patience(self.planned.plan.timeout_ms / 1000 + REPLY_GRACE_S)

    def waited(self, requests: int) -> None:
        """Give the place up for so many requests."""
        if self.grant is not None:
            self._settle(self._place, self.grant, requests)

    async def told(self, entry: Entry, fwd: Fwd | None = None) -> Hit | None:
        """Answer with an entry, None where it cannot be told as asked. Raises Denied."""
        planned = self.planned
        call = planned.call
        try:
            told = replay(entry, stream=call.stream, include_usage=call.wants_usage)
        except CannotTell:
            self.gateway.observer.looked_up("untellable")
            return None
        grant = self.grant
        if grant is None:
            grant = await reserve_request(self.gateway, planned, planned.id)
            self._settle(planned.id, grant, 1)
        now_ms = self.now_ms()
        left_ms = max(0, lookup.remaining_ms(entry, self.asked, now_ms))
        key = self.shown_key()
        if fwd is None:
            said = status.hit(ttl_ms=left_ms, key=key)
        else:
            said = status.forwarded(fwd, collapsed=True, ttl_ms=left_ms, key=key)
        headers = (
            ("content-type", told.content_type.encode()),
            ("x-llm-provider", entry.provider.encode()),
            ("x-llm-model", entry.served_model.encode()),
            ("x-llm-attempts", b"0"),
            (STATUS_HEADER, said),
            ("age", status.age(entry.stored_ms, now_ms)),
            *grant.headers,
        )
        identified = planned.identified
        if identified.endpoint.dialect == "anthropic":
            headers += (("request-id", identified.request_id.encode()),)
        result: Told = "hit" if fwd is None else "collapsed"
        self.gateway.observer.looked_up(result)
        reply = Reply(HTTPStatus.OK, told.body, headers)
        return Hit(planned.id, identified.principal, call, entry, result, reply)

    @property
    def _place(self) -> str:
        return self.planned.id + "-wait"

    def _settle(self, id_: str, grant: Grant, requests: int) -> None:
        if grant is not NO_GRANT:
            amount = ONE_REQUEST if requests else (0, 0, 0)
            self.gateway.ledger.settle(Settlement(id_, amount, certain=True, hold=grant.hold))


async def _collapse(caching: Caching, turn: _Turn, fwd: Fwd, result: str) -> Hit | Miss:
    """Wait for an identical call's answer where one is under way, else lead the next."""
    gateway, plan, call_id = turn.gateway, turn.planned.plan, turn.planned.id
    patience_s = min(plan.timeout_ms, turn.planned.identified.snapshot.wait_ms) / 1000
    landing: Landing = Role.ALONE
    try:
        landing = await caching.flights.join(
            turn.key,
            call_id,
            lease_s=plan.timeout_ms / 1000 + LEASE_GRACE_S,
            patience_s=patience_s,
            waits=turn.waits,
        )
        if (
            isinstance(landing, Entry)
            and lookup.judge(landing, turn.asked, turn.now_ms()) is Use.HIT
        ):
            hit = await turn.told(landing, fwd)
            if hit is not None:
                turn.waited(1)
                return hit
    except BaseException:
        turn.waited(0)
        raise
    turn.waited(0)
    waited_ms = None if turn.grant is None else round((gateway.steady() - turn.began) * 1000)
    leads = landing is Role.LEAD
    said = turn.status(fwd, collapsed=None if waited_ms is None else False)
    miss = Miss(said, turn.asked.key or b"", turn.asked.ttl_ms, turn.key, leads, waited_ms)
    if waited_ms is not None and waited_ms >= plan.timeout_ms:
        abandon(gateway, miss, call_id)
        raise Denied("upstream_timeout", "The answer did not come in time.")
    gateway.observer.looked_up(result)
    return miss


def _judged(
    gateway: Gateway, filling: Filling, entry: LogEntry, outcome: Outcome
) -> Entry | Reason:
    policy = gateway.snapshot.cache
    finished = outcome.ended is Ended.FINISHED
    if not policy.enabled:
        return Reason.OFF
    if finished and entry.status == HTTPStatus.OK and not entry.answer:
        return Reason.TOO_LARGE  # or of a type that is not collected
    form: Form = "sse" if entry.answer_form == "sse" else "json"
    reason = rules.may_store(
        policy,
        endpoint=cast("EndpointName", outcome.endpoint),
        status=entry.status,
        form=form,
        body=entry.answer,
        finished=finished,
        bounded=filling.bounded,
    )
    if reason is not None:
        return reason
    usage = outcome.usage
    # Not later than it ended, because it must not look younger than a purge that came after that.
    now_ms = int(gateway.clock() * 1000)
    stored_ms = min(now_ms, entry.start_ms + int(entry.duration_ms))
    return Entry(
        endpoint=outcome.endpoint,
        tenant=outcome.tenant,
        model=outcome.model,
        provider=outcome.provider,
        served_model=outcome.served_model,
        stored_ms=stored_ms,
        expires_ms=stored_ms + filling.ttl_ms,
        form=form,
        usage=(usage.input, usage.output, usage.cached_input),
        body=entry.answer,
    )


def _end(outcome: Outcome) -> End:
    """Say whether another call would fare better where this one's answer is not kept."""
    if outcome.ended is Ended.FINISHED:
        return End.UNSHARED
    return End.UNSHARED if is_callers_error(outcome.status) else End.FAILED


def _must_go_on(identified: Identified) -> None:
    """Refuse a call that wants a kept answer or none, where none is kept."""
    written = identified.head.headers.get("cache-control")
    if written is not None and read_control(written).only_if_cached:
        raise _not_cached()


def _not_cached() -> Denied:
    return Denied("not_cached", "No answer to this call is kept, and no other was wanted.")
