"""HTTP/1.1 over asyncio: requests in, one exchange at a time out.

Knows HTTP/1.1 framing, keep-alive, pipelining and `Expect`. Knows no dialect, no behaviour and no
pacing: a handler gets an `Exchange` and answers it now or later.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import cast

import httptools
import msgspec

logger = logging.getLogger(__name__)

MAX_PIPELINED = 64  # reading stops there; below it, reading on is how a disconnect is noticed
JSON_TYPE = b"content-type: application/json\r\n"
MALFORMED = b'{"error":{"message":"malformed HTTP","type":"invalid_request_error"}}'
BROKEN_HANDLER = b'{"error":{"message":"the simulator has a bug","type":"server_error"}}'

Handler = Callable[["Exchange"], None]


class Request(msgspec.Struct, frozen=True, gc=False):
    """One request; header names are lower case, repeated headers are joined by a comma."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    chunkable: bool
    keep_alive: bool


@lru_cache(maxsize=4096)  # the same few names and values come with every request
def _text(raw: bytes) -> str:
    return raw.decode("latin-1")


@lru_cache(maxsize=512)
def _name(raw: bytes) -> str:
    return raw.decode("latin-1").lower()


@lru_cache(maxsize=256)
def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


class Exchange:
    """One request and the means to answer it, exactly once.

    Either `reply`, or `begin`, `write`..., `end`; `sever` breaks off. `on_closed` is called when
    the client left before the end, `on_drain` once when `blocked` turns false again.
    """

    __slots__ = ("_chunked", "_connection", "closed", "on_closed", "on_drain", "request", "started")

    def __init__(self, request: Request, connection: "Connection") -> None:
        self.request = request
        self.started = False
        self.closed = False
        self.on_closed: Callable[[], None] | None = None
        self.on_drain: Callable[[], None] | None = None
        self._connection = connection
        self._chunked = False

    def __repr__(self) -> str:
        state = "closed" if self.closed else "started" if self.started else "waiting"
        return f"<Exchange {self.request.method} {self.request.path} {state}>"

    @property
    def blocked(self) -> bool:
        """Return whether the client reads more slowly than it is written to."""
        return self._connection.blocked

    def reply(self, status: int, headers: bytes, body: bytes) -> None:
        """Send a whole answer; `headers` are lines, each ended by CRLF."""
        head = b"%bcontent-length: %d\r\n" % (headers, len(body))
        self._head(status, head, b"" if self.request.method == "HEAD" else body)
        self._finish()

    def begin(self, status: int, headers: bytes, length: int | None = None) -> None:
        """Send the head of an answer that follows in pieces, chunked unless `length` is given."""
        if length is not None:
            headers = b"%bcontent-length: %d\r\n" % (headers, length)
        elif self.request.chunkable:
            self._chunked = True
            headers += b"transfer-encoding: chunked\r\n"
        self._head(status, headers, b"")

    def write(self, data: bytes) -> None:
        """Send one piece of the body, in a chunk of its own."""
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._connection.write(data)

    def end(self) -> None:
        """Send the end of the body and go on to the next request."""
        if self._chunked:
            self._connection.write(b"0\r\n\r\n")
        self._finish()

    def sever(self) -> None:
        """Close the connection after what was written, leaving the answer incomplete."""
        self.closed = True
        self._connection.hang_up()

    def _head(self, status: int, headers: bytes, body: bytes) -> None:
        self.started = True
        close = b"" if self.request.keep_alive else b"connection: close\r\n"
        self._connection.write(b"%b%b%b\r\n%b" % (_status_line(status), headers, close, body))

    def _finish(self) -> None:
        self.closed = True
        self._connection.done(self.request.keep_alive)


class Connection(asyncio.Protocol):
    """One client connection; requests are answered in order, one at a time."""

    def __init__(self, handler: Handler, connections: set["Connection"]) -> None:
        self.blocked = False
        self._handler = handler
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Request | None] = deque()  # None: what came was not HTTP
        self._active: Exchange | None = None
        self._dispatching = False
        self._deaf = False
        self._continue_later = False

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by shape only
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Parse, then answer what is complete."""
        if self._deaf:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._deaf = True  # the upgrade is refused by answering in HTTP/1.1
        except httptools.HttpParserError:
            self._deaf = True
            self._queue.append(None)
        if len(self._queue) >= MAX_PIPELINED:
            self._transport.pause_reading()
        self._dispatch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who is answering that nobody listens."""
        del exc  # whatever it was, the client is gone
        self._connections.discard(self)
        self._queue.clear()
        active, self._active = self._active, None
        if active is not None and not active.closed:
            active.closed = True
            if active.on_closed is not None:
                active.on_closed()

    def pause_writing(self) -> None:
        """Remember that the client does not keep up."""
        self.blocked = True

    def resume_writing(self) -> None:
        """Let who is answering go on."""
        self.blocked = False
        if self._active is not None and self._active.on_drain is not None:
            drained, self._active.on_drain = self._active.on_drain, None
            drained()

    # What httptools calls.

    def on_message_begin(self) -> None:
        """Start a request."""
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        """Collect the target; it may come in parts."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header."""
        key, text = _name(name), _text(value)
        before = self._headers.get(key)
        self._headers[key] = text if before is None else f"{before}, {text}"

    def on_headers_complete(self) -> None:
        """Ask for the body if the client waits to be asked."""
        if self._headers.get("expect", "").lower() == "100-continue":
            if self._active is None and not self._queue:
                self._continue()
            else:
                self._continue_later = True

    def on_body(self, body: bytes) -> None:
        """Collect one part of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Queue the request."""
        path, _, query = self._url.partition(b"?")
        request = Request(
            self._parser.get_method().decode("latin-1"),
            _text(path),
            query.decode("latin-1"),
            self._headers,
            b"".join(self._body),
            self._parser.get_http_version() == "1.1",
            self._parser.should_keep_alive() and not self._parser.should_upgrade(),
        )
        self._queue.append(request)

    # What an exchange calls.

    def write(self, data: bytes) -> None:
        """Hand bytes to the socket."""
        self._transport.write(data)

    def hang_up(self) -> None:
        """Close after what was written."""
        self._deaf = True
        self._queue.clear()
        self._transport.close()

    def done(self, keep_alive: bool) -> None:
        """Go on to the next request, or close."""
        self._active = None
        if not keep_alive:
            self.hang_up()
            return
        if not self._transport.is_reading() and not self._transport.is_closing():
            self._transport.resume_reading()
        self._dispatch()

    def abort(self) -> None:
        """Drop the connection and what was not sent yet."""
        self._transport.abort()

    def _continue(self) -> None:
        self._continue_later = False
        self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _dispatch(self) -> None:
        if self._dispatching:
            return
        self._dispatching = True
        while self._queue and self._active is None:
            self._answer(self._queue.popleft())
        self._dispatching = False
        if self._continue_later and self._active is None and not self._transport.is_closing():
            self._continue()

    def _answer(self, request: Request | None) -> None:
        if request is None:
            refused = Exchange(Request("", "", "", {}, b"", True, False), self)
            refused.reply(400, JSON_TYPE, MALFORMED)
            return
        exchange = self._active = Exchange(request, self)
        try:
            self._handler(exchange)
        except Exception:
            logger.exception("simulator failed on %r", exchange)
            if exchange.started:
                exchange.sever()
            else:
                exchange.reply(500, JSON_TYPE, BROKEN_HANDLER)
