"""A batch of embeddings at the cache: which of its inputs are known, and the call for the others.

Knows: keys of inputs, the store, plans. Must not know: who waits, how an answer is told, the wire.
What is known is used where the plan's first target gave it, and a call for the others is planned
for that target alone: vectors of two models do not compare. Where it has failed of late and others
could answer, the whole batch is sent instead, so that nothing keeps the call from those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from extproc.answers import Entry, Inputs
from extproc.cache import embeddings, lookup
from extproc.cache.asked import Asked
from extproc.cache.embeddings import Batch, Part
from extproc.cache.key import key_of
from extproc.cache.lookup import Use
from extproc.cache.recorded import CannotTell
from extproc.dialects import openai
from extproc.gateway import Caching, Gateway, Planned
from extproc.policies import routing

MAX_INPUTS: Final = 2_048  # as many as OpenAI takes; of more the batch is looked up as a whole
# Of the largest request: what a provider answers to a part passes the processor as one message.
MAX_SHARE: Final = 0.5


class Batched(msgspec.Struct, frozen=True, gc=False):
    """What a batch comes to: `whole` is its answer, else `planned` and `asked` are what to send.

    `inputs` are those that are sent. `part` is None where that is all of them; else what it was
    made with is as old as `since_ms` and good until `until_ms`, and `otherwise` is the whole batch.
    """

    planned: Planned
    asked: Asked
    inputs: Inputs
    whole: Entry | None = None
    part: Part | None = None
    since_ms: int = 0
    until_ms: int = 0
    otherwise: Batched | None = None

    def joined(self, entry: Entry) -> Entry:
        """Return the answer to the batch, from one to what is sent. Raises CannotTell."""
        if self.part is None:
            return entry
        target = self.planned.plan.attempts[0]
        if (entry.provider, entry.served_model) != (target.provider, target.model):
            # Whoever else asked for the same may have been routed elsewhere, or failed over.
            raise CannotTell("another target than the one that gave what is known")
        return replace(
            entry,
            stored_ms=min(entry.stored_ms, self.since_ms),
            expires_ms=min(entry.expires_ms, self.until_ms),
            body=self.part.complete(entry.body),
        )


async def look_up(
    gateway: Gateway, caching: Caching, planned: Planned, asked: Asked
) -> Batched | None:
    """Find the inputs that are known of a batch that `lookup.ask` gave a key.

    None where it is to be looked up as a whole, because the rest of the call is too long.
    Suspends for a remote store, once. In memory 15 us an input, and 20 us more to put 8 KB of a
    known one together with the others.
    """
    identified, target = planned.identified, planned.plan.attempts[0]
    batch = embeddings.split(planned.body)
    digests = lookup.ask_each(
        identified.snapshot.cache,
        identified.head,
        identified.principal,
        planned.call,
        planned.body,
        inputs=batch.pieces,
    )
    if digests is None:
        return None
    unknown = Batched(planned, asked, _inputs(batch, digests, range(len(digests))))
    if not asked.may_look_up:
        return unknown
    now_ms = int(gateway.clock() * 1000)
    found = await caching.answers.get_many([key_of(d, target.model) for d in digests], now_ms)
    known = {
        index: entry
        for index, entry in enumerate(found)
        if entry is not None
        and entry.provider == target.provider
        and lookup.judge(entry, asked, now_ms) is Use.HIT
    }
    try:
        return _put_together(gateway, unknown, batch, digests, known)
    except CannotTell:  # kept bytes that are none, or models that do not go together
        return unknown


def _put_together(
    gateway: Gateway,
    unknown: Batched,
    batch: Batch,
    digests: Sequence[bytes],
    known: Mapping[int, Entry],
) -> Batched:
    """Use what is known as far as may be. Raises CannotTell."""
    planned, most = unknown.planned, unknown.planned.identified.snapshot.max_request_bytes
    known_bytes = sum([len(entry.body) for entry in known.values()])
    if not known or known_bytes > most:
        return unknown
    bodies = {index: entry.body for index, entry in known.items()}
    since_ms = min([entry.stored_ms for entry in known.values()])
    until_ms = min([entry.expires_ms for entry in known.values()])
    sent = embeddings.to_ask(batch, known)
    if not sent:
        told = replace(
            next(iter(known.values())),
            stored_ms=since_ms,
            expires_ms=until_ms,
            usage=(sum([entry.usage[0] for entry in known.values()]), 0, 0),
            body=embeddings.whole(batch, bodies),
        )
        return replace(unknown, whole=told)
    mean_bytes = known_bytes // len(known)
    too_much = mean_bytes * len(sent) > most * MAX_SHARE or mean_bytes * len(batch.pieces) > most
    if too_much or not _may_pin(gateway, planned):
        return unknown
    embeddings.model_of(bodies.values())
    body = embeddings.ask_only(planned.body, batch, sent)
    identified = planned.identified
    call = openai.read(identified.endpoint, body)
    asked = lookup.ask(identified.snapshot.cache, identified.head, identified.principal, call, body)
    return Batched(
        replace(planned, call=call, plan=routing.pinned(planned.plan), body=body),
        asked,
        _inputs(batch, digests, sent),
        part=Part(batch, bodies, sent),
        since_ms=since_ms,
        until_ms=until_ms,
        otherwise=unknown,
    )


def _may_pin(gateway: Gateway, planned: Planned) -> bool:
    """Say whether the first target is to be asked and no other."""
    attempts = planned.plan.attempts
    health = gateway.health.of(attempts[0].key)
    alone = all(target == attempts[0] for target in attempts)
    return alone or health is None or not health.breaker.failing


def _inputs(batch: Batch, digests: Sequence[bytes], sent: Sequence[int]) -> Inputs:
    return Inputs(
        b"".join([digests[index] for index in sent]),
        tuple([embeddings.size_of(batch.pieces[index]) for index in sent]),
    )
