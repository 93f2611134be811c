"""When nobody asks a store any more, and who asks first again."""

from __future__ import annotations

from extproc.stores.breaker import FAILURES, OPEN_S, Breaker
from tests.ledgers import Clock


def test_it_opens_after_failures_in_a_row() -> None:
    one = Breaker(Clock())
    for _ in range(3):
        for _ in range(FAILURES - 1):
            one.failed()
        assert not one.is_open
        one.succeeded()
    for _ in range(FAILURES):
        one.failed()
    assert one.is_open
    one.succeeded()
    assert not one.is_open


def test_one_probe_at_a_time() -> None:
    clock = Clock()
    one = Breaker(clock)
    for _ in range(FAILURES):
        one.failed()
    assert not one.probe()
    clock.now += OPEN_S
    assert one.probe()
    assert not one.probe()
    clock.now += OPEN_S
    assert one.probe()
