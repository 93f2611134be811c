"""The access-log service: every entry of a planned call becomes one settled outcome.

Knows: the codec, the pipeline and the usage log. Must not know: gRPC or sockets.
"""

from __future__ import annotations

import logging
from typing import Final

from extproc.domain import FailedAttempt
from extproc.gateway import Gateway
from extproc.inflight import InFlight
from extproc.pipeline import attempt_failed, settle
from extproc.ports import UsageLog
from extproc.wire.logs import log_entries
from extproc.wire.messages import Malformed

log: Final = logging.getLogger(__name__)


class AccessLog:
    """Settles batches as Envoy flushes them (every 50 ms)."""

    def __init__(self, gateway: Gateway, usage_log: UsageLog, inflight: InFlight) -> None:
        self._gateway = gateway
        self._usage_log = usage_log
        self._inflight = inflight

    def receive(self, raw: bytes) -> None:
        """Settle one StreamAccessLogsMessage; a broken entry is counted, the others count."""
        outcomes = []
        try:
            for entry in log_entries(raw):
                if entry is None:
                    self._gateway.observer.store_error("accesslog", "decode")
                    continue
                if type(entry) is FailedAttempt:
                    attempt_failed(self._gateway, entry)
                    continue
                outcome = settle(self._gateway, entry)
                if outcome is not None:
                    outcomes.append(outcome)
                    self._inflight.settled(outcome.id)
        except Malformed:
            self._gateway.observer.store_error("accesslog", "decode")
            log.warning("access log message is not readable")
        if outcomes:
            self._gateway.ledger.flush()
            self._usage_log.record(outcomes)
