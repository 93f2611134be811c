"""Calls in flight: each is forgotten at its entry or its deadline, and a drain waits for all."""

from __future__ import annotations

import asyncio

from extproc.inflight import GRACE_S, InFlight


class Clock:
    """Stands until it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_an_empty_set_waits_for_nothing() -> None:
    await InFlight(Clock()).empty()


async def test_a_drain_ends_with_the_last_call() -> None:
    calls = InFlight(Clock())
    calls.add("a", 110)
    calls.add("b", 110)
    drain = asyncio.create_task(calls.empty())
    calls.settled("a")
    await asyncio.wait([drain], timeout=0)
    assert not drain.done()
    calls.settled("b")
    await drain
    assert len(calls) == 0


async def test_a_lost_entry_holds_a_drain_to_its_deadline_and_no_longer() -> None:
    clock = Clock()
    calls = InFlight(clock)
    calls.add("late", 200)
    calls.add("early", 110)
    drain = asyncio.create_task(calls.empty())
    clock.now = 110 + GRACE_S - 0.001
    assert (calls.expire(), len(calls)) == (0, 2)
    clock.now = 110 + GRACE_S
    assert (calls.expire(), len(calls)) == (1, 1)
    await asyncio.wait([drain], timeout=0)
    assert not drain.done()
    clock.now = 1e9
    assert (calls.expire(), calls.expire()) == (1, 0)
    await drain


async def test_an_entry_of_an_earlier_process_is_fine() -> None:
    calls = InFlight(Clock())
    calls.add("a", 110)
    calls.settled("unknown")
    assert len(calls) == 1
    calls.settled("a")
    calls.settled("a")
    await calls.empty()


async def test_a_call_after_a_drain_is_waited_for_again() -> None:
    calls = InFlight(Clock())
    calls.add("a", 110)
    calls.settled("a")
    calls.add("b", 110)
    drain = asyncio.create_task(calls.empty())
    await asyncio.wait([drain], timeout=0)
    assert not drain.done()
    calls.settled("b")
    await drain


async def test_an_id_added_twice_is_one_call() -> None:
    calls = InFlight(Clock())
    calls.add("a", 110)
    calls.add("a", 120)
    assert len(calls) == 1
    calls.settled("a")
    await calls.empty()


async def test_the_end_of_a_call_is_told_once() -> None:
    """By its entry or its deadline, whichever is first."""
    clock, told = Clock(), []
    calls = InFlight(clock)
    for name in ("settled", "lost"):
        calls.add(name, 110, ended=lambda name=name: told.append(name))
    calls.settled("settled")
    calls.settled("settled")
    clock.now = 110 + GRACE_S
    assert calls.expire() == 1
    calls.settled("lost")
    assert told == ["settled", "lost"]
