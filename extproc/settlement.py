"""What a finished HTTP exchange came to: the record of its admission plus Envoy's log entry.

Knows: records, log entries, usage and prices. Must not know: transports, stores or the loop.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import msgspec

from extproc.domain import Ended, LogEntry, Outcome, Usage, UsageSource
from extproc.limits import Settlement
from extproc.policies.cost import cost_pico_usd
from extproc.policies.estimate import Estimator
from extproc.policies.usage import read_usage
from extproc.record import Attempt, Record, price_of

# Plain integers, because these are compared for every call, and an enum takes a look-up each time.
OK: Final = int(HTTPStatus.OK)
ERRORS: Final = int(HTTPStatus.BAD_REQUEST)  # from here on
SERVER_ERRORS: Final = int(HTTPStatus.INTERNAL_SERVER_ERROR)  # and from here on
NOT_THE_CALLERS: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
CERTAIN: Final = frozenset({UsageSource.PROVIDER, UsageSource.NONE})
CLIENT_LEFT: Final = "downstream_connection_termination"  # Envoy's flag
_FINISHED: Final = Ended.FINISHED
_FAILED: Final = Ended.FAILED
_PROVIDER: Final = UsageSource.PROVIDER
NOTHING: Final = Usage(0, 0, 0, UsageSource.NONE)


def settle(entry: LogEntry, record: Record, estimator: Estimator) -> Outcome:
    """Work out the bill of one planned call; teaches the estimator what the provider reported."""
    ended = _ended(entry)
    usage = _usage(entry, record, ended, estimator)
    number = min(max(entry.attempts, 1), len(record.attempts))
    attempt = record.attempts[number - 1]
    return _row(
        entry,
        record,
        attempt,
        ended=ended,
        usage=usage,
        cost_pico_usd=cost_pico_usd(usage, price_of(attempt)),
        attempts=entry.attempts,
        ttft_ms=_ttft_ms(entry),
        retried=_retried(entry, record) if entry.attempts > 1 else (),
    )


def settle_told(entry: LogEntry, record: Record) -> Outcome:
    """Return the row of a call that a kept answer was told to: a request, and nothing used."""
    return _row(
        entry,
        record,
        record.attempts[0],
        # The whole answer was handed over at once; if the client left, some of it was in vain.
        ended=Ended.PARTIAL if CLIENT_LEFT in entry.flags else Ended.FINISHED,
        usage=NOTHING,
        cost_pico_usd=0,
        attempts=0,
        ttft_ms=None,
        retried=(),
    )


def _row(
    entry: LogEntry,
    record: Record,
    attempt: Attempt,
    *,
    ended: Ended,
    usage: Usage,
    cost_pico_usd: int | None,
    attempts: int,
    ttft_ms: int | None,
    retried: tuple[str, ...],
) -> Outcome:
    return Outcome(
        id=record.id,
        request_id=entry.request_id,
        time_ms=entry.start_ms,
        tenant=record.tenant,
        key_id=record.key_id,
        endpoint=record.endpoint,
        model=record.model,
        provider=attempt.provider,
        served_model=attempt.model,
        stream=record.stream,
        status=entry.status,
        ended=ended,
        usage=usage,
        cost_pico_usd=cost_pico_usd,
        attempts=attempts,
        duration_ms=round(entry.duration_ms),
        ttft_ms=ttft_ms,
        request_bytes=entry.request_bytes,
        response_bytes=entry.response_bytes,
        flags=",".join(entry.flags),
        retried=retried,
        cache=record.told,
    )


def is_callers_error(status: int) -> bool:
    """Say whether an answer is the caller's own error, so that a repeat would fail too."""
    return ERRORS <= status < SERVER_ERRORS and status not in NOT_THE_CALLERS


def settlement_of(outcome: Outcome, record: Record) -> Settlement:
    """Return what the call takes from its limits.

    A call that failed before its first byte for no fault of the caller takes nothing; the caller's
    own error is a request all the same.
    """
    usage = outcome.usage
    served = outcome.ended is not _FAILED or is_callers_error(outcome.status)
    amount = (int(served), usage.input + usage.output, outcome.cost_pico_usd or 0)
    certain = usage.source in CERTAIN
    return Settlement(record.id, amount, certain, record.hold)


def _retried(entry: LogEntry, record: Record) -> tuple[str, ...]:
    """Name the providers before the last attempt; past the plan's end its last is tried again."""
    last = len(record.attempts) - 1
    return tuple(record.attempts[min(n, last)].provider for n in range(entry.attempts - 1))


def _ended(entry: LogEntry) -> Ended:
    if entry.status >= ERRORS:
        # Because a client that leaves while an error is written has still had its answer decided.
        return _FAILED
    if entry.status < OK or not entry.done:
        return Ended.PARTIAL
    return _FINISHED


def _usage(entry: LogEntry, record: Record, ended: Ended, estimator: Estimator) -> Usage:
    # A good answer that did not go with what was kept of its batch was made, and is billed.
    if ended is _FAILED and not (record.part and entry.done):
        return NOTHING
    if entry.first_upstream_tx_ms is None:
        # The client left before any provider saw the call.
        return Usage(0, 0, 0, UsageSource.PARTIAL)
    if record.endpoint == "count_tokens":
        return NOTHING  # counting is free: nothing was generated and nothing is charged
    reported = read_usage(entry.usage) if entry.usage else None
    if reported is not None and reported.source is _PROVIDER:
        if ended is _FINISHED:
            estimator.learn(
                record.model, record.stream, record.prompt_bytes, entry.response_bytes, reported
            )
        return reported
    source = UsageSource.ESTIMATED if ended is Ended.FINISHED else UsageSource.PARTIAL
    output = 0
    if entry.response_bytes and record.endpoint != "embeddings":
        output = estimator.estimate_output(
            record.model, record.stream, entry.response_bytes, entry.events
        )
    if reported is not None:  # the stream was cut after its provider had counted the prompt
        return msgspec.structs.replace(reported, output=output)
    return Usage(estimator.estimate_input(record.model, record.prompt_bytes), output, 0, source)


def _ttft_ms(entry: LogEntry) -> int | None:
    if entry.first_chunk_ms is None or entry.first_upstream_rx_ms is None:
        return None
    # Headers may have come long before, and were held until there was something to send.
    received = entry.first_upstream_rx_ms + entry.first_chunk_ms
    return round(max(received, entry.first_downstream_tx_ms or 0.0))
