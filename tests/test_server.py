"""What the composition root makes of the configuration, where nothing else would show it wrong."""

from __future__ import annotations

import pytest

from extproc.config import load
from extproc.limits import Rules
from extproc.ports import SilentObserver
from extproc.server import Server
from extproc.stores.redis_ledger import RedisLedger
from extproc.stores.scripts import scaled
from tests.ledgers import rules
from tests.written import Write


@pytest.mark.parametrize(
    ("workers", "replicas", "each"),
    [(1, 1, 60), (2, 1, 30), (1, 3, 20), (4, 3, 5)],
    ids=["one process", "workers", "replicas", "workers of replicas"],
)
def test_without_redis_limits_are_divided_by_every_process_there_is(
    write: Write, workers: int, replicas: int, each: int
) -> None:
    """Together they let in no more than the limit, whoever they are started by."""
    redis = f"{{url: 'unix:///nowhere', replicas: {replicas}}}"
    text = f"server: {{workers: {workers}}}\nstate: {{store: redis, redis: {redis}}}"
    server = Server(load([write(text)], {}), {})
    server.metrics = SilentObserver()  # type: ignore[assignment]
    ledger = server._open_ledger()
    assert isinstance(ledger, RedisLedger)
    (meter,) = share(ledger, rules(requests_per_day=60)).meters
    assert meter.limit == each


def share(ledger: RedisLedger, whole: Rules) -> Rules:
    """Return what this process allows alone."""
    return scaled(whole, ledger._replicas)
