"""The response cache filled: an answer is kept, if it may be, when its call's log entry comes.

Knows: which answers may be kept, the ports of stores and flights. Must not know: how a call was
looked up, where answers are kept, protobuf, transports.
A batch of embeddings is kept input by input, under the keys that calls for each alone have.
"""

from __future__ import annotations

from typing import Final, cast

from msgspec.structs import replace

from extproc.answers import End, Entry, Filling, Form, Inputs
from extproc.cache import embeddings, rules
from extproc.cache.key import DIGEST_BYTES, key_of
from extproc.cache.reasons import Reason
from extproc.cache.recorded import CannotTell
from extproc.domain import Call, Ended, EndpointName, LogEntry, Outcome
from extproc.gateway import Caching, Gateway, Miss
from extproc.record import Record
from extproc.settlement import is_callers_error

_FINISHED: Final = Ended.FINISHED  # because to read a member of an enum takes 700 instructions
_PURGED: Final = Reason.PURGED
_OK: Final = 200


def filling_of(miss: Miss, call: Call, granted: int) -> Filling | None:
    """Return what is needed to keep the answer; `granted` is the bound a limit set, or 0."""
    digest = miss.digest
    if not digest:
        return None
    bounded = granted > 0 and granted != call.max_output_tokens
    return Filling(digest, miss.ttl_ms, miss.leads, bounded, miss.inputs)


def fill(gateway: Gateway, record: Record, entry: LogEntry, outcome: Outcome) -> None:
    """Keep the answer of a settled call if it may be kept, and tell those who wait for it."""
    caching, filling = gateway.caching, record.filling
    if caching is None or filling is None:
        return
    found = _judged(gateway, record, filling, entry, outcome)
    key = key_of(filling.digest, outcome.served_model)
    if isinstance(found, Entry):
        # From its beginning, because what a purge is about may be what it was asked of.
        if caching.answers.purged_since(outcome.tenant, outcome.model, entry.start_ms):
            found = _PURGED
        else:
            found = _keep(caching, filling.inputs, key, found)
    gateway.observer.kept("stored" if isinstance(found, Entry) else found.value)
    if filling.leads:
        end = found if isinstance(found, Entry) else _end(outcome, found)
        planned = record.attempts[0].model  # by which others wait
        if planned != outcome.served_model:
            key = key_of(filling.digest, planned)
        caching.flights.finish(key, outcome.id, end)


def _keep(caching: Caching, inputs: Inputs | None, key: bytes, entry: Entry) -> Entry | Reason:
    """Put an answer, or each of its parts; say why not where it has none."""
    if inputs is None:
        caching.answers.put(key, entry)
        return entry
    try:
        parts = embeddings.each_of(entry.body, inputs.sizes)
    except CannotTell:
        return Reason.UNREADABLE
    for digest, (part, tokens) in zip(_digests(inputs), parts, strict=True):
        one = replace(entry, usage=(tokens, 0, 0), body=part)
        caching.answers.put(key_of(digest, entry.served_model), one)
    return entry


def _digests(inputs: Inputs) -> list[bytes]:
    every = inputs.digests
    return [every[at : at + DIGEST_BYTES] for at in range(0, len(every), DIGEST_BYTES)]


def _judged(
    gateway: Gateway, record: Record, filling: Filling, entry: LogEntry, outcome: Outcome
) -> Entry | Reason:
    policy = gateway.snapshot.cache
    answer = entry.answer
    # What a provider answered to a part of a batch may be good though the client got an error: it
    # did not go with what was kept, and takes the place of that.
    good = record.part and bool(answer)
    finished = good or outcome.ended is _FINISHED
    status = _OK if good else entry.status
    if not policy.enabled:
        return Reason.OFF
    if finished and status == _OK and not answer:
        return Reason.TOO_LARGE  # or of a type that is not collected
    form: Form = "sse" if entry.answer_form == "sse" else "json"
    reason = rules.may_store(
        policy,
        endpoint=cast("EndpointName", outcome.endpoint),
        status=status,
        form=form,
        body=answer,
        finished=finished,
        bounded=filling.bounded,
    )
    if reason is not None:
        return reason
    usage = outcome.usage
    # Not later than it ended, because it must not look younger than a purge that came after that.
    now_ms = int(gateway.clock() * 1000)
    stored_ms = min(now_ms, entry.start_ms + int(entry.duration_ms))
    return Entry(  # by position, which takes half as long
        outcome.endpoint,
        outcome.tenant,
        outcome.model,
        outcome.provider,
        outcome.served_model,
        stored_ms,
        stored_ms + filling.ttl_ms,
        form,
        (usage.input, usage.output, usage.cached_input),
        answer,
    )


def _end(outcome: Outcome, reason: Reason) -> End:
    """Say whether another call would fare better where this one's answer is not kept."""
    if reason is _PURGED:
        return End.FAILED
    if outcome.ended is _FINISHED:
        return End.UNSHARED
    return End.UNSHARED if is_callers_error(outcome.status) else End.FAILED
