"""The response cache on a call's way: looked up before it is sent, shared with those like it.

Knows: the cache's steps in their order, the ports of stores and flights. Must not know: where
answers are kept, how they are told, protobuf, transports.
An answer is kept under its call's digest and the name of the model that gave it: what a fallback
said is not told to calls that the first choice can take again.
"""

from __future__ import annotations

from typing import Final

from extproc.answers import End, Entry, Landing, Role
from extproc.cache import lookup, status
from extproc.cache.asked import Asked
from extproc.cache.control import read as read_control
from extproc.cache.lookup import Use
from extproc.cache.reasons import Reason
from extproc.cache.status import Fwd
from extproc.caching.turn import Patience, Turn
from extproc.dialects.json_body import Members
from extproc.errors import Denied
from extproc.gateway import NOT_ASKED, Gateway, Hit, Identified, Miss, Planned

LEASE_GRACE_S: Final = 5.0  # from a call's time limit to its log entry
_OFF: Final = Reason.OFF
_LEAD: Final = Role.LEAD
_ALONE: Final = Role.ALONE
_MISS: Final = Use.MISS
_FORWARDED: Final[dict[Use, tuple[str, Fwd]]] = {
    Use.MISS: ("miss", "miss"),
    Use.STALE: ("stale", "stale"),
    Use.REFUSED: ("refused", "request"),
    Use.PARTIAL: ("partial", "partial"),
}


def asked_of(gateway: Gateway, planned: Planned, members: Members) -> Asked | None:
    """Say what a call may have of the cache; None where there is none. `members` are its body's."""
    identified = planned.identified
    policy = identified.snapshot.cache
    if gateway.caching is None or not policy.enabled:
        return None
    return lookup.ask(
        policy, identified.head, identified.principal, planned.call, planned.body, members
    )


async def consult(
    gateway: Gateway, planned: Planned, asked: Asked | None, patience: Patience
) -> Hit | Miss:
    """Find the answer of a call that may be sent, or say what its own answer is to be.

    `asked` as `asked_of` says. Suspends for a remote store, and while an identical call is under
    way; then `patience` is asked for. Raises Denied: a limit refuses, nothing else than a kept
    answer was wanted, time is over.
    """
    caching = gateway.caching
    if caching is None or asked is None:
        _must_go_on(planned.identified)
        return NOT_ASKED
    if asked.key is None:
        _must_go_on(planned.identified)
        if asked.reason is _OFF:
            return NOT_ASKED
        gateway.observer.looked_up("bypass")
        return Miss(status.forwarded("bypass", detail=asked.reason))
    turn = Turn(gateway, caching, planned, asked, patience)
    # Coroutines last, because one costs more than what it does where nothing is waited for.
    found: Hit | Use | None = turn.missed()
    if found is None:
        found = await turn.look_up()
    if isinstance(found, Hit):
        return found
    if asked.control.only_if_cached:
        raise _not_cached()
    result = "miss"
    fwd: Fwd = "miss"
    if found is not _MISS:  # by far the most; to hash a member of an enum takes 700 instructions
        result, fwd = _FORWARDED[found]
    leads = False
    if asked.may_look_up and asked.may_store:
        lease_s = planned.plan.timeout_ms / 1000 + LEASE_GRACE_S
        leads = caching.flights.lead(turn.key, planned.id, lease_s)
        if not leads:
            return await _collapse(turn, fwd, result, lease_s)
    gateway.observer.looked_up(result)
    return turn.miss(fwd, leads=leads)


def abandon(gateway: Gateway, miss: Miss, call_id: str) -> None:
    """Let another call lead: this one is not sent."""
    if miss.leads and gateway.caching is not None:
        gateway.caching.flights.finish(miss.key, call_id, End.FAILED)


async def _collapse(turn: Turn, fwd: Fwd, result: str, lease_s: float) -> Hit | Miss:
    """Wait for an identical call's answer where one is under way, else lead the next."""
    gateway, plan, call_id = turn.gateway, turn.planned.plan, turn.planned.id
    patience_s = min(plan.timeout_ms, turn.planned.identified.snapshot.wait_ms) / 1000
    landing: Landing = _ALONE
    try:
        landing = await turn.caching.flights.join(
            turn.key,
            call_id,
            lease_s=lease_s,
            patience_s=patience_s,
            waits=turn.waits,
        )
        hit = None
        if isinstance(landing, Entry):
            hit = await turn.land(landing, fwd)
        elif landing is _ALONE:
            hit = await turn.look_again(fwd)
        if hit is not None:
            turn.waited(1)
            return hit
    except BaseException:
        turn.waited(0)
        raise
    turn.waited(0)
    waited_ms = None if turn.grant is None else round((gateway.steady() - turn.began) * 1000)
    miss = turn.miss(
        fwd,
        leads=landing is _LEAD,
        collapsed=None if waited_ms is None else False,
        waited_ms=waited_ms,
    )
    if waited_ms is not None and waited_ms >= plan.timeout_ms:
        abandon(gateway, miss, call_id)
        raise Denied("upstream_timeout", "The answer did not come in time.")
    gateway.observer.looked_up(result)
    return miss


def _must_go_on(identified: Identified) -> None:
    """Refuse a call that wants a kept answer or none, where none is kept."""
    written = identified.head.headers.get("cache-control")
    if written is not None and read_control(written).only_if_cached:
        raise _not_cached()


def _not_cached() -> Denied:
    return Denied("not_cached", "No answer to this call is kept, and no other was wanted.")
