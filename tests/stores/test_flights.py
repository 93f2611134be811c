"""Identical calls in one process: who leads, who waits, what each way to end does to them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from extproc.answers import End, Entry, Landing, Role
from extproc.stores import flights as module
from extproc.stores.flights import Flights
from tests.kept import entry

KEY, OTHER = b"a", b"b"
LONG_S = 3_600.0
ANSWER = entry(1)


class Scene:
    """Flights and the calls that joined them, in order."""

    def __init__(self) -> None:
        self.flights = Flights()
        self.calls: dict[str, asyncio.Task[Landing]] = {}

    async def join(
        self, *ids: str, key: bytes = KEY, patience_s: float = LONG_S, lease_s: float = LONG_S
    ) -> None:
        """Have calls join one after the other, and return when each has its place."""
        for call_id in ids:
            work = self.flights.join(key, call_id, lease_s=lease_s, patience_s=patience_s)
            self.calls[call_id] = asyncio.ensure_future(work)
            await asyncio.sleep(0)

    def finish(self, call_id: str, end: Entry | End, key: bytes = KEY) -> None:
        self.flights.finish(key, call_id, end)

    async def landings(self) -> dict[str, Any]:
        """Return what became of each call so far: a value, "waits" or "cancelled"."""
        for _ in range(3):
            await asyncio.sleep(0)
        return {
            call_id: "cancelled" if t.cancelled() else t.result() if t.done() else "waits"
            for call_id, t in self.calls.items()
        }

    async def leave(self) -> None:
        for call in self.calls.values():
            call.cancel()
        await asyncio.gather(*self.calls.values(), return_exceptions=True)
        assert self.flights.waiting == 0


@pytest.fixture
async def scene() -> Any:
    made = Scene()
    yield made
    await made.leave()


@pytest.mark.parametrize(
    ("end", "left"),
    [
        pytest.param(ANSWER, (ANSWER, ANSWER), id="an answer is for everybody"),
        pytest.param(End.UNSHARED, (Role.ALONE, Role.ALONE), id="one not to be kept is for nobody"),
        pytest.param(End.FAILED, (Role.LEAD, "waits"), id="after a failure the next one leads"),
    ],
)
async def test_what_becomes_of_followers(scene: Scene, end: Entry | End, left: Any) -> None:
    """And of those who come later: the first one leads."""
    await scene.join("1", "2", "3")
    assert await scene.landings() == {"1": Role.LEAD, "2": "waits", "3": "waits"}
    scene.finish("1", end)
    found = await scene.landings()
    assert (found["2"], found["3"]) == left
    if end is not End.FAILED:
        assert len(scene.flights) == 0
        await scene.join("4")
        assert (await scene.landings())["4"] is Role.LEAD


async def test_another_key_is_another_flight(scene: Scene) -> None:
    """With its own leader and its own end."""
    await scene.join("1", "2")
    await scene.join("3", "4", key=OTHER)
    scene.finish("3", ANSWER, key=OTHER)
    assert await scene.landings() == {"1": Role.LEAD, "2": "waits", "3": Role.LEAD, "4": ANSWER}


@pytest.mark.parametrize("end", [End.FAILED, End.UNSHARED])
async def test_the_end_of_a_call_that_does_not_lead_is_no_end(scene: Scene, end: End) -> None:
    """A follower that went alone, a leader whose lease was over, an unknown id."""
    await scene.join("1", "2")
    for call_id in ("2", "none"):
        scene.finish(call_id, end)
    assert await scene.landings() == {"1": Role.LEAD, "2": "waits"}


async def test_an_answer_is_welcome_from_whoever_brings_it(scene: Scene) -> None:
    """Those who wait get it; the leader still leads those who come later."""
    await scene.join("1", "2")
    scene.finish("late", ANSWER)
    await scene.join("3")
    assert await scene.landings() == {"1": Role.LEAD, "2": ANSWER, "3": "waits"}


async def test_patience(scene: Scene) -> None:
    """Whoever waited long enough goes alone; without patience at once."""
    await scene.join("1", "2")
    await scene.join("3", patience_s=0.0)
    await scene.join("4", patience_s=0.001)
    await scene.calls["4"]
    found = {"1": Role.LEAD, "2": "waits", "3": Role.ALONE, "4": Role.ALONE}
    assert await scene.landings() == found
    assert scene.flights.waiting == 1


async def test_a_leader_that_is_never_heard_of_again(scene: Scene) -> None:
    """The one that waits leads when the lease is over; without one the next to come does."""
    await scene.join("1", lease_s=0.001)
    await scene.join("2", lease_s=0.001)
    assert await scene.calls["2"] is Role.LEAD
    scene.finish("1", End.FAILED)
    await asyncio.sleep(0.002)  # the lease's own length
    await scene.join("3", "4")
    assert await scene.landings() == {
        "1": Role.LEAD,
        "2": Role.LEAD,
        "3": Role.LEAD,
        "4": "waits",
    }


async def test_a_follower_that_leaves_leaves_no_trace(scene: Scene) -> None:
    """It is not asked to lead."""
    await scene.join("1", "2", "3")
    scene.calls["2"].cancel()
    await scene.landings()
    assert scene.flights.waiting == 1
    scene.finish("1", End.FAILED)
    assert await scene.landings() == {"1": Role.LEAD, "2": "cancelled", "3": Role.LEAD}


async def test_a_follower_that_leaves_as_it_is_elected(scene: Scene) -> None:
    """Hands on what it was given."""
    await scene.join("1", "2", "3")
    scene.finish("1", End.FAILED)
    scene.calls["2"].cancel()
    assert await scene.landings() == {"1": Role.LEAD, "2": "cancelled", "3": Role.LEAD}


async def test_five_hundred_at_once(scene: Scene) -> None:
    """One goes upstream; when that fails, one more."""
    ids = [str(n) for n in range(500)]
    await scene.join(*ids)
    scene.finish("0", End.FAILED)
    scene.finish("1", ANSWER)
    found = [*(await scene.landings()).values()]
    assert found == [Role.LEAD, Role.LEAD] + [ANSWER] * 498
    stats = scene.flights.stats()
    assert (stats.led, stats.landed, stats.elected, stats.alone) == (2, 498, 1, 0)
    assert (stats.flights, stats.waiting) == (0, 0)


async def test_bounds(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of followers of a key, of all followers, of keys; beyond them calls go alone."""
    monkeypatch.setattr(module, "MAX_FOLLOWERS", 2)
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    monkeypatch.setattr(module, "MAX_FLIGHTS", 2)
    await scene.join("1", "2", "3", "one too many")
    await scene.join("4", "5", "one more", key=OTHER)
    await scene.join("a third key", key=b"c")
    alone = {call_id for call_id, one in (await scene.landings()).items() if one is Role.ALONE}
    assert alone == {"one too many", "one more", "a third key"}


async def test_lost_flights_make_room(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those whose lease is over and that nobody waits for."""
    monkeypatch.setattr(module, "MAX_FLIGHTS", 2)
    await scene.join("1", key=b"c", lease_s=0.0)
    await scene.join("2", key=b"d", lease_s=0.0)
    await scene.join("3")
    assert (await scene.landings())["3"] is Role.LEAD
    assert len(scene.flights) == 1


async def test_leading_at_once_is_joining_where_nobody_leads(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it says no it has done nothing: not counted, no place taken."""
    monkeypatch.setattr(module, "MAX_FLIGHTS", 1)
    flights = scene.flights
    assert flights.lead(KEY, "a", LONG_S)
    assert not flights.lead(KEY, "b", LONG_S)  # one is under way
    assert not flights.lead(OTHER, "c", LONG_S)  # no place
    await scene.join("d")
    assert await scene.landings() == {"d": "waits"}
    scene.finish("a", End.FAILED)
    assert await scene.landings() == {"d": Role.LEAD}
    assert not flights.lead(KEY, "e", LONG_S)
    scene.finish("d", ANSWER)
    assert flights.lead(KEY, "f", -1.0)
    assert flights.lead(KEY, "g", LONG_S)  # of the last one nothing was heard in time
    scene.finish("f", End.FAILED)
    assert KEY in flights
    stats = flights.stats()
    assert (stats.flights, stats.led, stats.alone, stats.elected) == (1, 4, 0, 1)
