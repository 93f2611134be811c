"""A connection to Redis with its own breaker: what a store asks that must never be waited for.

Knows: links, breakers, scripts. Must not know: what commands mean, keys.
Failure mode: `Unavailable`, at once while the breaker is open; every failure is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis

from extproc.ports import Observer
from extproc.stores.breaker import Breaker
from extproc.stores.link import Link, Say, Unavailable
from extproc.stores.scripts import Script

log: Final = logging.getLogger(__name__)

PROBE_S: Final = 0.1
START_S: Final = 1.0
STORE: Final = "redis"

Command = tuple[bytes, ...]


async def _nothing(_: Say) -> None:
    """Do nothing on a new connection."""


class GuardedLink:
    """One connection and one breaker; `clock` is unix seconds."""

    def __init__(
        self,
        url: str,
        timeout_s: float,
        *,
        clock: Callable[[], float],
        observer: Observer,
        slot: int | None = None,
    ) -> None:
        """Take where Redis is, of a cluster any node and the `slot` that is wanted."""
        self._link = Link(url, timeout_s, _nothing, slot=slot)
        self._breaker = Breaker(clock)
        self._observer = observer
        self._watcher: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"GuardedLink({self._link!r}, {self._breaker!r})"

    @property
    def usable(self) -> bool:
        """Say whether a command would be sent."""
        return self._link.connected.is_set() and not self._breaker.is_open

    async def start(self) -> None:
        """Connect, for a second at most."""
        self._link.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                await self._link.connected.wait()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        """Close the connection for good."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        await self._link.close()

    async def ask(self, op: str, *commands: Command) -> list[Any]:
        """Send commands in one write and return their replies, in order.

        `op` names the failure that is counted. Raises Unavailable, for an error reply as well.
        """
        if self._breaker.is_open:
            self._observer.store_error(STORE, op)
            raise Unavailable("the breaker is open")
        try:
            turns = [self._link.send(*parts) for parts in commands]
            replies = [await turn for turn in turns]
        except Unavailable:
            self.failed(op)
            raise
        if not self.judge(op, replies):
            raise Unavailable("refused")
        return replies

    async def run(self, op: str, script: Script, *parts: bytes) -> Any:
        """Run a script that is run seldom, sent whole; otherwise as `ask`."""
        return (await self.ask(op, (b"EVAL", script.text, *parts)))[0]

    def send(self, op: str, command: Command) -> asyncio.Future[Any]:
        """Send one command; whoever takes the reply hands it to `judge` or `failed`.

        Raises Unavailable.
        """
        if self._breaker.is_open:
            raise Unavailable("the breaker is open")
        try:
            return self._link.send(*command)
        except Unavailable:
            self.failed(op)
            raise

    def judge(self, op: str, replies: Sequence[Any]) -> bool:
        """Note that Redis answered; say whether no reply is an error."""
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                code = str(reply).partition(" ")[0]  # the rest may quote a key
                log.error("redis refuses a command", extra={"op": op, "code": code})
                self.failed(op)
                return False
        self._breaker.succeeded()
        return True

    def failed(self, op: str) -> None:
        """Note that no reply came, or one that is an error."""
        self._observer.store_error(STORE, op)
        self._breaker.failed()

    async def _watch(self) -> None:
        """Ask again where Redis failed, so that no call has to find out."""
        while True:
            await asyncio.sleep(PROBE_S)
            if self._breaker.is_open and self._breaker.probe():
                with contextlib.suppress(Unavailable):
                    await self._link.send(b"PING")
                    self._breaker.succeeded()
                    log.info("redis answers again")
