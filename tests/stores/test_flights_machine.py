"""Any order of joining, ends, losses and cancellations: one leads, and nobody waits for nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from extproc.answers import End, Entry, Landing, Role
from extproc.stores.flights import Flights
from tests.kept import entry

KEYS = (b"a", b"b")
ENDS = (entry(1), End.FAILED, End.UNSHARED)


class Loop(asyncio.SelectorEventLoop):
    """A loop whose time the test sets."""

    now = 1_000.0

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.failures.append(context))

    def time(self) -> float:
        return self.now


@dataclass(eq=False)
class Call:
    """One call and what it was told."""

    id: str
    key: bytes
    task: asyncio.Task[Landing]
    lease_s: float
    deadline: float
    led_at: float | None = None
    finished: bool = False

    @property
    def waits(self) -> bool:
        return not self.task.done()

    def leads(self, now: float) -> bool:
        """Say whether it leads and may still come back."""
        return self.led_at is not None and not self.finished and self.led_at + self.lease_s > now


class Machine(RuleBasedStateMachine):
    """Drives flights on a loop of its own; each step is run until nothing moves."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.flights = Flights()
        self.calls: list[Call] = []

    def teardown(self) -> None:
        try:
            self.everything_ends()
        finally:
            self.loop.close()

    def everything_ends(self) -> None:
        """Whatever was going on: nobody waits, and nothing is remembered."""
        for _ in self.calls:
            for call in self.calls:
                if call.leads(self.loop.now):
                    self.end(call, End.FAILED)
        assert not any(call.waits for call in self.calls)
        self.loop.now += 10_000.0
        self.settle()
        self.loop.run_until_complete(self.sweep())
        assert (len(self.flights), self.flights.waiting) == (0, 0)

    async def sweep(self) -> None:
        self.flights.sweep()

    def settle(self) -> None:
        async def turns() -> None:
            for _ in range(6):
                await asyncio.sleep(0)

        before = [call for call in self.calls if call.waits]
        self.loop.run_until_complete(turns())
        assert self.loop.failures == []
        for call in self.calls:
            task = call.task
            if call.led_at is None and task.done() and not task.cancelled():
                if task.result() is not Role.LEAD:
                    continue
                call.led_at = self.loop.now
                ahead = before[: before.index(call)] if call in before else []
                assert not any(one.waits for one in ahead if one.key == call.key), "not its turn"

    def end(self, call: Call, end: Entry | End) -> None:
        self.loop.call_soon(self.flights.finish, call.key, call.id, end)
        call.finished = call.led_at is not None  # whoever waits can still be asked to lead
        self.settle()

    @rule(
        key=st.sampled_from(KEYS),
        lease_s=st.sampled_from((5.0, 60.0)),
        patience_s=st.sampled_from((0.0, 3.0, 30.0, 300.0)),
    )
    def join(self, key: bytes, lease_s: float, patience_s: float) -> None:
        call_id = str(len(self.calls))
        work = self.flights.join(key, call_id, lease_s=lease_s, patience_s=patience_s)
        task = self.loop.create_task(work)
        deadline = self.loop.now + patience_s
        self.calls.append(Call(call_id, key, task, lease_s, deadline))
        self.settle()

    @rule(at=st.integers(0, 1_000), end=st.sampled_from(ENDS))
    @precondition(lambda self: self.calls)
    def finish(self, at: int, end: Entry | End) -> None:
        """Settle any call, a leader or not, once more or for the first time."""
        call = self.calls[at % len(self.calls)]
        led = call.leads(self.loop.now)
        self.end(call, end)
        if led and end is not End.FAILED:
            assert not any(one.waits for one in self.calls if one.key == call.key)

    @rule(at=st.integers(0, 1_000))
    @precondition(lambda self: any(call.waits for call in self.calls))
    def cancel(self, at: int) -> None:
        waiting = [call for call in self.calls if call.waits]
        waiting[at % len(waiting)].task.cancel()
        self.settle()

    @rule(at=st.integers(0, 1_000), end=st.sampled_from(ENDS), first=st.booleans())
    @precondition(lambda self: any(call.waits for call in self.calls))
    def cancel_and_finish(self, at: int, end: Entry | End, first: bool) -> None:
        """In one turn of the loop, in either order: who is elected may be gone already."""
        waiting = [call for call in self.calls if call.waits]
        call = waiting[at % len(waiting)]
        leaders = [c for c in self.calls if c.key == call.key and c.leads(self.loop.now)]
        if first:
            call.task.cancel()
        for one in leaders:
            self.loop.call_soon(self.flights.finish, one.key, one.id, end)
            one.finished = True
        if not first:
            self.loop.call_soon(call.task.cancel)
        self.settle()

    @rule(seconds=st.sampled_from((0.0, 1.0, 4.0, 20.0, 100.0)))
    def wait(self, seconds: float) -> None:
        self.loop.now += seconds
        self.settle()

    @rule()
    def clean(self) -> None:
        self.loop.run_until_complete(self.sweep())

    @invariant()
    def one_leads(self) -> None:
        """At most one, and exactly one where somebody waits."""
        for key in KEYS:
            leading = [c.id for c in self.calls if c.key == key and c.leads(self.loop.now)]
            waiting = [c.id for c in self.calls if c.key == key and c.waits]
            assert len(leading) <= 1, leading
            assert len(leading) == 1 or not waiting, (leading, waiting)

    @invariant()
    def nobody_waits_too_long(self) -> None:
        assert all(call.deadline > self.loop.now for call in self.calls if call.waits)

    @invariant()
    def no_trace_is_left(self) -> None:
        assert self.flights.waiting == sum(call.waits for call in self.calls)


def test_any_order() -> None:
    """Fifty steps at a time."""
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=80,
            stateful_step_count=50,
            suppress_health_check=list(HealthCheck),
        ),
    )
