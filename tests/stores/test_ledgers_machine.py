"""Any order of admissions, settlements, losses, crashes and clock steps leaves the counters true.

The model keeps a list of charges; the ledgers keep sums. After every step they are the same.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from extproc.errors import Denied
from extproc.limits import SLOTS, US_PER_S, Grant, Rules, Scope
from extproc.policies import quota
from extproc.stores.journal import Journal
from tests.ledgers import (
    LEASE_S,
    Bench,
    MemoryBench,
    RedisBench,
    on_the_tests_clock,
    rules,
    without_waiting,
)
from tests.redis_server import RedisServer

STEPS = settings(
    max_examples=40,
    stateful_step_count=30,
    suppress_health_check=list(HealthCheck),
)
KEYS = {
    "key:a": rules(
        requests_per_second=1000,
        burst=8,
        requests_per_day=20,
        tokens_per_minute=120,
        tokens_per_day=300,
        usd_per_day="0.000004",
        usd_per_month="0.000006",
        concurrent_requests=4,
    ),
    "key:b": rules(tokens_per_minute=200, requests_per_day=12),
}
WHOLE = ("global", rules(Scope.GLOBAL, tokens_per_minute=250, concurrent_requests=6))
TENANT = ("tenant:t", rules(Scope.TENANT, usd_per_month="0.000008", requests_per_day=30))


@dataclass
class Charge:
    """One admitted call in the model."""

    call_id: str
    grant: Grant
    subjects: tuple[tuple[str, Rules], ...]
    reserved: tuple[int, int, int]
    now: tuple[int, int, int]
    windows: tuple[int, int, int]
    lease_end: float
    open: bool = True


class Machine(RuleBasedStateMachine):
    """Drives a ledger and the model side by side."""

    loop: ClassVar[asyncio.AbstractEventLoop]
    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.model: list[Charge] = []
        self.bench = self.make()
        self.run(self.bench.start())

    def make(self) -> Bench:
        raise NotImplementedError  # because a machine is run once for each store, which says which

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.run(self.bench.stop())

    def windows(self) -> tuple[int, int, int]:
        return quota.windows_at(int(self.bench.clock.now) * US_PER_S)

    @rule(
        target=calls,
        key=st.sampled_from(sorted(KEYS)),
        prompt=st.integers(0, 60),
        output=st.integers(0, 60),
        price=st.sampled_from([0, 10_000, 70_000]),
    )
    def admit(self, key: str, prompt: int, output: int, price: int) -> Any:
        subjects = (WHOLE, TENANT, (key, KEYS[key]))
        before = self.sums()
        per = (0, 1, price) if output else (0, 0, 0)
        try:
            call_id, grant = self.run(
                self.bench.admit(
                    *subjects, fixed=(1, prompt, prompt * price), per_output=per, output=output
                )
            )
        except Denied:
            assert self.sums() == before
            return multiple()
        assert grant.output <= output
        amount = (1, prompt + per[1] * grant.output, prompt * price + per[2] * grant.output)
        end = self.bench.clock.now + LEASE_S
        charge = Charge(call_id, grant, subjects, amount, amount, self.windows(), end)
        self.model.append(charge)
        return charge

    @rule(call=calls, part=st.floats(0, 1), served=st.booleans())
    def settle(self, call: Charge, part: float, served: bool) -> None:
        """Settle with no more than was reserved: `max_tokens` was known and kept to."""
        truth = (
            (1, int(call.reserved[1] * part), int(call.reserved[2] * part)) if served else (0, 0, 0)
        )
        self.run(self.bench.settle(call.call_id, call.grant, *truth))
        if call.open:
            call.now, call.open = truth, False

    @rule(seconds=st.sampled_from([0.0, 1 / 256, 1.0, 30.0, 59.0, 61.0, 40_000.0]))
    def wait(self, seconds: float) -> None:
        self.run(self.bench.advance(seconds))
        for charge in self.model:
            if charge.lease_end <= self.bench.clock.now:
                charge.open = False

    @invariant()
    def counters_are_the_models(self) -> None:
        sums = self.sums()
        for name, scope in (WHOLE, TENANT, *KEYS.items()):
            expected = [0] * len(SLOTS)
            for charge in self.model:
                if (name, scope) in charge.subjects:
                    for meter in scope.meters:
                        if charge.windows[meter.window] == self.windows()[meter.window]:
                            expected[meter.slot] += charge.now[meter.unit]
            assert sums[name] == tuple(expected), name
            for meter in scope.meters:
                assert expected[meter.slot] <= meter.limit, (name, meter)

    @invariant()
    def slots_are_held_by_open_calls_alone(self) -> None:
        for name, scope in (WHOLE, ("key:a", KEYS["key:a"])):
            held = sum(c.open and (name, scope) in c.subjects for c in self.model)
            assert self.bench.slots(name) == held <= scope.concurrent

    def sums(self) -> dict[str, tuple[int, ...]]:
        return {name: self.bench.counters(name) for name in ("global", "tenant:t", *KEYS)}


@contextmanager
def machine_loop(kind: type[Machine]) -> Iterator[None]:
    """Give a machine an event loop of its own."""
    kind.loop = asyncio.new_event_loop()
    try:
        yield
    finally:
        kind.loop.close()


class MemoryMachine(Machine):
    """The memory ledger with its journal; a crash forgets everything else."""

    def make(self) -> Bench:
        self.directory = Path(tempfile.mkdtemp())
        return MemoryBench(Journal(self.directory / "limits.journal"))

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.directory)

    @rule(back=st.sampled_from([0.0, 5.0]))
    @precondition(lambda self: bool(self.model))
    def crash(self, back: float) -> None:
        """`kill -9`: what the journal's file holds is all there is."""
        bench = self.bench
        assert isinstance(bench, MemoryBench)
        bench.ledger.flush()
        journal = bench.ledger._journal
        assert journal is not None
        journal.close()
        fresh = MemoryBench(Journal(self.directory / "limits.journal"))
        fresh.ids = bench.ids
        assert fresh.errors.failures == []
        self.bench = fresh
        fresh.clock.now = bench.clock.now
        # Leases that ended while nobody was there end now.
        fresh.ledger.sweep()

    @rule(back=st.sampled_from([0.001, 2.0, 4_000.0]))
    def clock_set_back(self, back: float) -> None:
        """The clock jumps back and forth again: no window reopens, nothing is given twice."""
        self.bench.clock.now -= back
        for key in KEYS.items():
            try:
                call_id, grant = self.run(self.bench.admit(WHOLE, TENANT, key, output=1))
            except Denied:
                continue
            self.run(self.bench.settle(call_id, grant, 0, 0, 0))
        self.bench.clock.now += back


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory ledger, killed and started again at any moment."""
    without_waiting(monkeypatch)
    with machine_loop(MemoryMachine):
        run_state_machine_as_test(MemoryMachine, settings=STEPS)


def test_redis(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared ledger on a real Redis."""
    without_waiting(monkeypatch)
    on_the_tests_clock(monkeypatch)

    class RedisMachine(Machine):
        def make(self) -> Bench:
            redis_server.client.flushdb()
            return RedisBench(redis_server)

        @rule()
        def forget_the_scripts(self) -> None:
            """SCRIPT FLUSH costs a second try, not an answer."""
            redis_server.client.script_flush()

    with machine_loop(RedisMachine):
        run_state_machine_as_test(RedisMachine, settings=STEPS)
