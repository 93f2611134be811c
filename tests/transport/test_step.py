"""A coroutine stepped outside a task, and what is left of it awaited in one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from extproc.transport.step import Rest, begin

Work = Callable[[], Coroutine[Any, Any, bytes]]


async def stepped(work: Work) -> bytes | Rest | BaseException:
    """Begin in a callback, as the lane does."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[bytes | Rest | BaseException] = loop.create_future()

    def step() -> None:
        try:
            found.set_result(begin(work(), loop))
        except Exception as error:  # noqa: BLE001 (whatever the coroutine raised)
            found.set_result(error)

    loop.call_soon(step)
    return await found


async def finished(rest: Awaitable[bytes]) -> bytes:
    return await rest


async def at_once() -> bytes:
    return b"done"


async def broken() -> bytes:
    raise ZeroDivisionError


async def with_a_timeout_kept() -> bytes:
    async with asyncio.timeout(5):
        return b"done"


async def test_what_does_not_suspend_is_done_at_once() -> None:
    """Its result, also under a timeout that is kept; its exception is raised."""
    assert await stepped(at_once) == b"done"
    assert await stepped(with_a_timeout_kept) == b"done"
    assert isinstance(await stepped(broken), ZeroDivisionError)


async def test_what_suspends_goes_on_in_a_task() -> None:
    """From where it stood, and what it then raises comes out there."""
    gate = asyncio.Event()

    async def waits() -> bytes:
        await gate.wait()
        return b"done"

    async def waits_and_breaks() -> bytes:
        await gate.wait()
        raise ZeroDivisionError

    good, bad = await stepped(waits), await stepped(waits_and_breaks)
    assert isinstance(good, Rest)
    assert isinstance(bad, Rest)
    gate.set()
    assert await asyncio.create_task(finished(good)) == b"done"
    with pytest.raises(ZeroDivisionError):
        await asyncio.create_task(finished(bad))


async def test_a_timeout_begun_in_the_first_step_ends_the_rest() -> None:
    """The stand-in of the first step passes the cancellation on, and it is counted off."""

    async def late() -> bytes:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return b"timed out"
        return b""

    rest = await stepped(late)
    assert isinstance(rest, Rest)
    task = asyncio.create_task(finished(rest))
    assert await task == b"timed out"
    assert task.cancelling() == 0


async def test_cancelling_the_task_reaches_the_coroutine() -> None:
    """Its clean-up runs where it waits."""
    left = asyncio.Event()

    async def waits() -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return b""

    rest = await stepped(waits)
    assert isinstance(rest, Rest)
    task = asyncio.create_task(finished(rest))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left.is_set()
