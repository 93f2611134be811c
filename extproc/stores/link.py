"""One connection to Redis that many calls share: commands go out together, replies come in order.

Knows: RESP by hiredis, the loop's transports, URLs. Must not know: what commands mean.
A reply belongs to the oldest command without one, whoever waits for it: a caller that is cancelled
or loses patience leaves its place, so nobody is ever handed another one's reply. A connection whose
oldest command is overdue by STUCK_S is closed, and with it everything that waits. Of a cluster it
is to the node that has one slot, and over when that node has it no more.
Failure mode: `Unavailable`, at once where there is no connection. What to do then is the caller's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import hiredis

from extproc.stores import cluster
from extproc.stores.cluster import Address

log: Final = logging.getLogger(__name__)

MAX_WAITING: Final = 4_096  # commands without a reply: beyond it Redis is not keeping up
STUCK_S: Final = 1.0  # far beyond any pause of a healthy server
CONNECT_S: Final = 1.0
BACKOFF_FIRST_S: Final = 0.05
BACKOFF_LAST_S: Final = 1.0
_NOTHING: Final = object()

Say: TypeAlias = Callable[
    ..., asyncio.Future[Any]
]  # send the parts of a command; raises Unavailable


class Unavailable(Exception):
    """Redis is not there, did not answer in time, or refuses to serve."""


class _Connection(asyncio.Protocol):
    """The bytes of one connection; `lost` is done when it is over."""

    def __init__(self, timeout_s: float, *, leaves: bool) -> None:
        """Take a command's patience; `leaves`: it is over when the node says that others serve."""
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._leaves = leaves
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._out: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.gone = asyncio.Event()  # the socket is closed, a moment after `close`

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _NOTHING:
                if self._leaves and isinstance(reply, hiredis.ReplyError) and _moved(reply):
                    self.close()
                    return
                turn, _ = self._waiting.popleft()
                if not turn.done():
                    turn.set_result(reply)
        except (hiredis.ProtocolError, IndexError):  # not Redis, or a reply nobody asked for
            self.close()

    def connection_lost(self, _: Exception | None) -> None:
        self.close()
        self.gone.set()

    def close(self) -> None:
        """Close it, and tell everybody who waits."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            turn, _ = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(Unavailable("connection lost"))
                turn.exception()  # it is no error of anybody who has left
        if not self.lost.done():
            self.lost.set_result(None)

    def send(self, parts: tuple[bytes, ...]) -> asyncio.Future[Any]:
        """Write a command with the next flush; the future is its reply. Raises Unavailable."""
        if self._transport is None or len(self._waiting) >= MAX_WAITING:
            raise Unavailable("no connection" if self._transport is None else "too many commands")
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(parts))  # type: ignore[arg-type]  # its stub says one part
        turn: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append((turn, self._loop.time() + self._timeout_s))
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._look)
        return turn

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None:
            self._transport.write(b"".join(out))

    def _look(self) -> None:
        """End the patience of those who have waited too long; their replies may still come."""
        self._timer = None
        now = self._loop.time()
        if self._waiting and self._waiting[0][1] + STUCK_S <= now:
            self.close()
            return
        due = None
        for turn, deadline in self._waiting:
            if deadline > now:
                due = deadline
                break
            if not turn.done():
                turn.set_exception(Unavailable("no reply in time"))
                turn.exception()
        if self._waiting:
            wait_s = self._timeout_s if due is None else due - now
            self._timer = self._loop.call_later(wait_s, self._look)


class Link:
    """A connection that is made anew whenever it is lost."""

    def __init__(
        self,
        url: str,
        timeout_s: float,
        ready: Callable[[Say], Awaitable[None]],
        *,
        slot: int | None = None,
    ) -> None:
        """Take a redis://, rediss:// or unix:// URL; `ready` is first to speak on every connection.

        `slot`: the URL is of any node of a cluster, and the connection wanted is to this slot's.
        """
        # Not at the top, because who keeps all in memory need not load the library: 0.1 s.
        from redis.connection import parse_url  # noqa: PLC0415

        self._options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
        self._slot = slot
        self._seats: deque[Address] = deque([self._seed()])  # nodes, the likeliest first
        self._complained = False
        self._secure = url.startswith("rediss:")
        self._timeout_s = timeout_s
        self._ready = ready
        self._made: _Connection | None = None  # the latest, whether it is good for anything
        self._connection: _Connection | None = None  # it, once it is
        self._keeper: asyncio.Task[None] | None = None
        self.connected = asyncio.Event()

    def __repr__(self) -> str:
        where = self._options.get("path") or self._options.get("host")
        return f"Link({where!r}, connected={self._connection is not None})"

    def start(self) -> None:
        """Keep a connection from now on."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """Close it for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        made, self._connection = self._made, None
        if made is not None:
            made.close()
            await made.gone.wait()

    def send(self, *parts: bytes) -> asyncio.Future[Any]:
        """Send a command and return its reply to come. Raises Unavailable, as the future does."""
        if self._connection is None:
            raise Unavailable("no connection")
        return self._connection.send(parts)

    async def _keep(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        while True:
            try:
                async with asyncio.timeout(CONNECT_S):
                    connection = self._made = await self._connect()
                async with asyncio.timeout(CONNECT_S):
                    await self._introduce(connection)
            except (OSError, TimeoutError, Unavailable):
                self._seats.rotate(-1)
                if self._made is not None:
                    self._made.close()
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_LAST_S)
                continue
            backoff_s = BACKOFF_FIRST_S
            self._connection = connection
            self.connected.set()
            try:
                await connection.lost
            finally:
                self.connected.clear()
                self._connection = None

    async def _introduce(self, connection: _Connection) -> None:
        """Do all that comes before the first command of others. Raises Unavailable."""

        def say(*parts: bytes) -> asyncio.Future[Any]:
            return connection.send(parts)

        password, db = self._options.get("password"), self._options.get("db", 0)
        if password is not None:
            user = self._options.get("username")
            words = [b"AUTH", *([user.encode()] if user else []), password.encode()]
            _raise(await say(*words))
        if db:
            _raise(await say(b"SELECT", b"%d" % db))
        if self._slot is not None:
            await self._locate(say, self._slot)
        await self._ready(say)

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()

        def make() -> _Connection:
            return _Connection(self._timeout_s, leaves=self._slot is not None)

        path = self._options.get("path")
        if path is not None:
            _, made = await loop.create_unix_connection(make, path)
            return made
        host, port = self._seats[0]
        context = ssl.create_default_context() if self._secure else None
        _, made = await loop.create_connection(make, host, port, ssl=context)
        return made

    async def _locate(self, say: Say, slot: int) -> None:
        """Go on where this node has the slot. Raises Unavailable where not, knowing who has it."""
        me, slots = await asyncio.gather(say(b"CLUSTER", b"MYID"), say(b"CLUSTER", b"SLOTS"))
        if isinstance(slots, hiredis.ReplyError):
            if not self._complained:
                log.error("redis is no cluster: take state.redis.cluster away")
            self._complained = True
            raise Unavailable("no cluster")
        here = self._seats[0]
        try:
            found = cluster.layout(slots, slot, here[0])
        except ValueError:
            raise Unavailable("not understood") from None
        if found is None:
            raise Unavailable("nobody has the slot")
        others = [a for a in (*found.others, self._seed()) if a not in {here, found.at}]
        if me == found.owner:
            self._seats = deque([here, *others])  # as it was reached, whatever others call it
            return
        # In this order, because the first is given up now.
        self._seats = deque([here, found.at, *others])
        raise Unavailable("another node has the slot")

    def _seed(self) -> Address:
        return self._options.get("host", "localhost"), self._options.get("port", 6379)


def _moved(reply: hiredis.ReplyError) -> bool:
    return str(reply).startswith("MOVED ")


def _raise(reply: Any) -> None:
    if isinstance(reply, hiredis.ReplyError):
        raise Unavailable("refused at the door")  # the text may quote what was sent
