"""Runs a coroutine at once, outside a task, until it suspends; a task takes it from there.

Knows: asyncio. Must not know: connections.
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import _enter_task, _leave_task  # for task implementations, as this is one
from collections.abc import Callable, Coroutine, Generator
from typing import Any


class _StandIn:
    """The current task of the first step: `asyncio.timeout` keeps it, and cancels it later."""

    __slots__ = ("__weakref__", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[Any] | None = None

    def cancel(self, msg: object = None) -> bool:
        return self.task is not None and self.task.cancel(msg)

    def cancelling(self) -> int:
        return 0 if self.task is None else self.task.cancelling()

    def uncancel(self) -> int:
        return 0 if self.task is None else self.task.uncancel()


class Rest:
    """What is left of a coroutine that has been stepped once, as something to await in a task."""

    def __init__(self, coroutine: Coroutine[Any, Any, bytes], first: Any, task: _StandIn) -> None:
        self._coroutine = coroutine
        self._first = first
        self._task = task

    def __await__(self) -> Generator[Any, Any, bytes]:
        self._task.task = asyncio.current_task()
        pending = self._first
        while True:
            try:
                sent = yield pending
            except BaseException as error:  # noqa: BLE001 (cancellation belongs to the coroutine)
                step: Callable[[Any], Any] = self._coroutine.throw
                argument: Any = error
            else:
                step, argument = self._coroutine.send, sent
            try:
                pending = step(argument)
            except StopIteration as done:
                return bytes(done.value)


def begin(coroutine: Coroutine[Any, Any, bytes], loop: asyncio.AbstractEventLoop) -> bytes | Rest:
    """Return the coroutine's result, or its rest when it suspends. Only outside a task."""
    task = _StandIn()
    _enter_task(loop, task)  # type: ignore[arg-type]
    try:
        return Rest(coroutine, coroutine.send(None), task)
    except StopIteration as done:
        return bytes(done.value)
    finally:
        _leave_task(loop, task)  # type: ignore[arg-type]
