"""One call on its way through the cache: what it found, and how it is told what is kept.

Knows: the cache's rules, entries, a call's place in the limits. Must not know: the order of steps,
where answers are kept, protobuf, transports.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from extproc.answers import STATUS_HEADER, Entry, Told
from extproc.cache import lookup, status
from extproc.cache.asked import Asked
from extproc.cache.key import key_of
from extproc.cache.lookup import Use
from extproc.cache.replay import CannotTell, replay
from extproc.cache.status import Fwd
from extproc.caching.batch import MAX_INPUTS, Batched, look_up
from extproc.domain import Reply
from extproc.gateway import Caching, Gateway, Hit, Miss, Planned
from extproc.limits import Grant, Settlement
from extproc.reserving import NO_GRANT, ONE_REQUEST, reserve_request

Patience: TypeAlias = Callable[[float], Awaitable[None]]  # seconds that a reply may take from now
REPLY_GRACE_S: Final = 2.0  # between giving up waiting and the reply
_OK: Final = 200
_HIT: Final = Use.HIT  # because to read a member of an enum takes 700 instructions
_MISS: Final = Use.MISS
_REFUSED: Final = Use.REFUSED
_PARTIAL: Final = Use.PARTIAL


class Turn:
    """One call; `grant` is its place in the limits while it waits.

    `planned`, `asked` and `key` are of the call as it came, or of the part of a batch that is to be
    sent.
    """

    __slots__ = (
        *("_batched", "_came", "_near", "asked", "began", "caching", "gateway"),
        *("grant", "key", "patience", "planned"),
    )

    def __init__(
        self, gateway: Gateway, caching: Caching, planned: Planned, asked: Asked, patience: Patience
    ) -> None:
        self.gateway = gateway
        self.caching = caching
        self.patience = patience
        self.grant: Grant | None = None
        self.began = 0.0
        self._came = planned, asked
        self._batched: Batched | None = None
        self._near: Entry | None = None
        self._send(planned, asked)

    def _send(self, planned: Planned, asked: Asked) -> None:
        self.planned, self.asked = planned, asked
        self.key = key_of(asked.key or b"", planned.plan.attempts[0].model)

    def missed(self) -> Use | None:
        """Say why the call is not answered, where that takes nobody's word; None: `look_up` does.

        To be asked once, before `look_up`.
        """
        if _is_batch(self.planned):
            return None
        asked = self.asked
        if not asked.may_look_up:
            return _REFUSED
        answers, now_ms = self.caching.answers, self.now_ms()
        entry = answers.lookup(self.key, now_ms)
        if entry is None:
            return None if answers.remote else _MISS
        use = lookup.judge(entry, asked, now_ms)
        if use is not _HIT:
            return use
        self._near = entry
        return None

    async def look_up(self, fwd: Fwd | None = None) -> Hit | Use:
        """Return the answer where it is known, told as to a call that went on as `fwd`.

        Suspends for a remote store. Raises Denied.
        """
        planned, asked = self._came
        entry = batched = None
        if _is_batch(planned):
            self._batched = batched = await look_up(self.gateway, self.caching, planned, asked)
        if batched is not None:
            self._send(batched.planned, batched.asked)
            entry = batched.whole
        elif asked.may_look_up:
            answers, entry = self.caching.answers, self._near
            if _is_batch(planned):  # too long a one to be taken apart
                entry = await answers.get(self.key, self.now_ms())
            elif entry is None:
                entry = await answers.fetch(self.key, self.now_ms())
        if not asked.may_look_up:
            return _REFUSED
        use = self.judge(entry)
        if entry is not None and use is _HIT:
            hit = await self.told(entry, fwd)
            if hit is not None:
                return hit
            use = _MISS
        return _PARTIAL if self._batched is not None and self._batched.part else use

    async def look_again(self, fwd: Fwd) -> Hit | None:
        """Answer a batch whose like another process has had answered: its parts are kept by now.

        Suspends for a remote store. Raises Denied.
        """
        if self._batched is None:
            return None
        found = await self.look_up(fwd)
        return found if isinstance(found, Hit) else None

    async def land(self, entry: Entry, fwd: Fwd) -> Hit | None:
        """Answer with what an identical call got, None where it will not do. Raises Denied."""
        if self.judge(entry) is not _HIT:
            return None
        if self._batched is not None:
            try:
                entry = self._batched.joined(entry)
            except CannotTell:  # of another target than what is known: all of it is to be sent
                self._batched = self._batched.otherwise
                self._send(*self._came)
                return None
        return await self.told(entry, fwd)

    def miss(
        self,
        fwd: Fwd,
        *,
        leads: bool = False,
        collapsed: bool | None = None,
        waited_ms: int | None = None,
    ) -> Miss:
        """Return what the call's own answer is to be."""
        batched, digest = self._batched, b""
        inputs = part = complete = None
        if self.asked.may_store:
            digest = self.asked.key or b""
            inputs = None if batched is None else batched.inputs
        if batched is not None and batched.part is not None:
            part, complete, fwd = batched.planned, batched.part.complete, "partial"
        elif fwd == "partial":  # it was, until it turned out not to go with what is known
            fwd = "miss"
        said = status.forwarded(fwd, collapsed=collapsed, key=self.shown_key())
        return Miss(
            status=said,
            digest=digest,
            ttl_ms=self.asked.ttl_ms if digest else 0,
            key=self.key,
            leads=leads,
            waited_ms=waited_ms,
            inputs=inputs,
            part=part,
            complete=complete,
        )

    def now_ms(self) -> int:
        """Return unix milliseconds."""
        return int(self.gateway.clock() * 1000)

    def judge(self, entry: Entry | None) -> Use:
        """Say whether an entry will do."""
        return lookup.judge(entry, self.asked, self.now_ms())

    def shown_key(self) -> bytes | None:
        """Return the key where it is to be told."""
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
        reply = Reply(_OK, told.body, headers)
        return Hit(planned.id, identified.principal, call, entry, result, reply)

    @property
    def _place(self) -> str:
        return self.planned.id + "-wait"

    def _settle(self, id_: str, grant: Grant, requests: int) -> None:
        if grant is not NO_GRANT:
            amount = ONE_REQUEST if requests else (0, 0, 0)
            self.gateway.ledger.settle(Settlement(id_, amount, certain=True, hold=grant.hold))


def _is_batch(planned: Planned) -> bool:
    """Say whether the inputs of a call are looked up one by one."""
    return 1 < planned.call.inputs <= MAX_INPUTS
