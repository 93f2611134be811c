"""HTTP/2, the server's side of one connection, as far as a gRPC client needs it.

Knows: frames, header blocks, flow control (RFC 9113, RFC 7541). Must not know: gRPC or services.
Fed with bytes, it calls its `Handler` and collects what to send; whoever owns the socket writes
`take()` once per read. Peers are the Envoy on the same machine, so bounds are for a peer gone mad.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from hpack import Decoder
from hpack.exceptions import HPACKError

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, PRIORITIZED, ACK = 0x1, 0x4, 0x8, 0x20, 0x1
PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR = 0x1, 0x3, 0x6
STREAM_CLOSED, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0x5, 0x9, 0xB
MAX_FRAME_BYTES: Final = 16384  # the protocol's default, which we do not raise
STREAM_WINDOW: Final = 16 * 1024 * 1024  # a whole request body without waiting
MAX_WINDOW: Final = 2**31 - 1
REPLENISH_BYTES: Final = STREAM_WINDOW // 2
MAX_HEADER_BLOCK_BYTES: Final = 65536  # Envoy's own limit for request headers
MAX_CONTINUATIONS: Final = 16
MAX_STREAMS: Final = 100_000  # Envoy's connection limit stands before it
MAX_CONTROL_BACKLOG: Final = 10_000  # PING, SETTINGS and empty frames between two data frames
MAX_KNOWN_BLOCKS: Final = 256  # Envoy sends a handful
_frame_header = struct.Struct(">HBBBL")


class ConnectionFault(Exception):
    """The peer broke the connection's rules: GOAWAY with `code`, then close."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Handler(Protocol):
    """What the connection tells its owner."""

    def opened(self, stream: int, headers: dict[str, str]) -> None: ...

    def received(self, stream: int, data: bytes) -> None: ...

    def half_closed(self, stream: int) -> None: ...

    def reset(self, stream: int) -> None: ...


@dataclass(slots=True)
class _Stream:
    send_window: int
    consumed: int = 0
    ended_by_peer: bool = False
    queue: deque[tuple[bytes, bytes | None]] = field(default_factory=deque)  # data, then trailers


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Encode one frame."""
    size = len(payload)
    return _frame_header.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


class Connection:
    """The state of one connection. `feed` raises ConnectionFault."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._buffer = bytearray()
        self._greeted = False
        self._decoder = Decoder(max_header_list_size=MAX_HEADER_BLOCK_BYTES)
        self._known: dict[bytes, dict[str, str]] = {}
        self._streams: dict[int, _Stream] = {}
        self._last = 0
        self._block: tuple[int, int, bytearray, int] | None = None
        self._send_window = 65535
        self._initial_window = 65535
        self._peer_frame = MAX_FRAME_BYTES
        self._consumed = 0
        self._control = 0
        self._refusing = False
        self._readers: dict[int, Callable[[int, int, bytes], None]] = {
            DATA: self._data,
            HEADERS: self._headers,
            CONTINUATION: self._continuation,
            WINDOW: self._window,
            RST_STREAM: self._reset,
            SETTINGS: self._settings,
            PING: self._ping,
            PUSH: self._push,
        }
        self._out: list[bytes] = [
            frame(SETTINGS, 0, 0, struct.pack(">HLHL", 0x3, MAX_STREAMS, 0x4, STREAM_WINDOW)),
            frame(WINDOW, 0, 0, struct.pack(">L", MAX_WINDOW - 65535)),
        ]

    @property
    def streams(self) -> int:
        """Count the open streams."""
        return len(self._streams)

    def take(self) -> bytes:
        """Return what is to be written and forget it."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def feed(self, data: bytes) -> None:
        """Read bytes as they come, cut anywhere."""
        buffer = self._buffer
        buffer += data
        if not self._greeted:
            if len(buffer) < len(PREFACE):
                if not PREFACE.startswith(buffer):
                    raise ConnectionFault(PROTOCOL_ERROR, "not HTTP/2")
                return
            if not buffer.startswith(PREFACE):
                raise ConnectionFault(PROTOCOL_ERROR, "not HTTP/2")
            del buffer[: len(PREFACE)]
            self._greeted = True
        position, end = 0, len(buffer)
        whole = bytes(buffer)
        while end - position >= 9:  # noqa: PLR2004 (a frame header)
            high, low, kind, flags, stream = _frame_header.unpack_from(whole, position)
            size = high << 8 | low
            if size > MAX_FRAME_BYTES:
                raise ConnectionFault(FRAME_SIZE_ERROR, "frame too large")
            stop = position + 9 + size
            if stop > end:
                break
            self._frame(kind, flags, stream & MAX_WINDOW, whole[position + 9 : stop])
            position = stop
        del buffer[:position]

    def respond(self, stream: int, headers: bytes) -> None:
        """Send response headers, an encoded block."""
        if stream in self._streams:
            self._out.append(frame(HEADERS, END_HEADERS, stream, headers))

    def send(self, stream: int, data: bytes, trailers: bytes | None = None) -> None:
        """Send data as the windows allow, then the trailers, which end and forget the stream."""
        state = self._streams.get(stream)
        if state is None:
            return
        size = len(data)
        if not state.queue and size <= min(self._peer_frame, self._send_window, state.send_window):
            if size:
                self._send_window -= size
                state.send_window -= size
                self._out.append(frame(DATA, 0, stream, data))
            if trailers is not None:
                self._finish(stream, trailers)
            return
        state.queue.append((data, trailers))
        self._pump(stream, state)

    def refuse_new(self) -> None:
        """Announce that streams after the last one seen go elsewhere."""
        self._refusing = True
        self._out.append(frame(GOAWAY, 0, 0, struct.pack(">LL", self._last, 0)))

    def fail(self, fault: ConnectionFault) -> None:
        """Announce the end of the connection and its reason."""
        self._out.append(frame(GOAWAY, 0, 0, struct.pack(">LL", self._last, fault.code)))

    def _finish(self, stream: int, trailers: bytes) -> None:
        self._out.append(frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers))
        # What the peer still sends on it is ignored, as RFC 9113 5.1 asks for a closed stream.
        del self._streams[stream]

    def _pump(self, stream: int, state: _Stream) -> None:
        while state.queue:
            data, trailers = state.queue[0]
            sent = 0
            while sent < len(data):
                size = min(self._peer_frame, self._send_window, state.send_window, len(data) - sent)
                if size <= 0:
                    state.queue[0] = (data[sent:], trailers)
                    return
                self._out.append(frame(DATA, 0, stream, data[sent : sent + size]))
                self._send_window -= size
                state.send_window -= size
                sent += size
            state.queue.popleft()
            if trailers is not None:
                self._finish(stream, trailers)
                return

    def _pump_all(self) -> None:
        for stream, state in list(self._streams.items()):
            if state.queue:
                self._pump(stream, state)

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._block is not None and kind != CONTINUATION:
            raise ConnectionFault(PROTOCOL_ERROR, "a header block was interrupted")
        read = self._readers.get(kind)
        if read is None:  # PRIORITY, GOAWAY and kinds nobody has defined
            self._count_control()
        else:
            read(flags, stream, payload)

    def _push(self, _flags: int, _stream: int, _payload: bytes) -> None:
        raise ConnectionFault(PROTOCOL_ERROR, "a client cannot push")

    def _reset(self, _flags: int, stream: int, payload: bytes) -> None:
        if len(payload) != 4 or self._idle(stream):  # noqa: PLR2004
            raise ConnectionFault(PROTOCOL_ERROR, "bad RST_STREAM")
        if self._streams.pop(stream, None) is not None:
            self._handler.reset(stream)

    def _ping(self, flags: int, stream: int, payload: bytes) -> None:
        if len(payload) != 8 or stream:  # noqa: PLR2004
            raise ConnectionFault(FRAME_SIZE_ERROR, "bad PING")
        if not flags & ACK:
            self._count_control()
            self._out.append(frame(PING, ACK, 0, payload))

    def _idle(self, stream: int) -> bool:
        """Say whether the peer never opened it; one that crossed our GOAWAY is not idle."""
        return stream == 0 or (stream > self._last and not self._refusing)

    def _count_control(self) -> None:
        self._control += 1
        if self._control > MAX_CONTROL_BACKLOG:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "too many control frames")

    def _data(self, flags: int, stream: int, payload: bytes) -> None:
        if self._idle(stream):
            raise ConnectionFault(PROTOCOL_ERROR, "DATA on an idle stream")
        size = len(payload)
        self._consumed += size
        if self._consumed >= REPLENISH_BYTES:
            self._out.append(frame(WINDOW, 0, 0, struct.pack(">L", self._consumed)))
            self._consumed = 0
        state = self._streams.get(stream)
        if state is None:
            return
        if state.ended_by_peer:
            raise ConnectionFault(STREAM_CLOSED, "DATA after the end")
        state.consumed += size
        if state.consumed >= REPLENISH_BYTES:
            self._out.append(frame(WINDOW, 0, stream, struct.pack(">L", state.consumed)))
            state.consumed = 0
        if flags & PADDED:
            payload = _unpadded(payload)
        if payload:
            self._control = 0
            self._handler.received(stream, payload)
        elif not flags & END_STREAM:
            self._count_control()
        if flags & END_STREAM:
            self._end(stream)

    def _end(self, stream: int) -> None:
        state = self._streams.get(stream)
        if state is not None:
            state.ended_by_peer = True
            self._handler.half_closed(stream)

    def _headers(self, flags: int, stream: int, payload: bytes) -> None:
        if stream == 0:
            raise ConnectionFault(PROTOCOL_ERROR, "a header block on stream 0")
        if flags & PADDED:
            payload = _unpadded(payload)
        if flags & PRIORITIZED:
            payload = payload[5:]
        if flags & END_HEADERS:
            self._block_done(flags, stream, payload)
        else:
            self._block = (stream, flags, bytearray(payload), 0)

    def _continuation(self, flags: int, stream: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != stream:
            raise ConnectionFault(PROTOCOL_ERROR, "CONTINUATION of nothing")
        first, opening, block, count = self._block
        block += payload
        if count >= MAX_CONTINUATIONS or len(block) > MAX_HEADER_BLOCK_BYTES:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "header block too large")
        self._block = (first, opening, block, count + 1)
        if flags & END_HEADERS:
            self._block = None
            self._block_done(opening, stream, bytes(block))

    def _block_done(self, flags: int, stream: int, block: bytes) -> None:
        headers = self._decoded(block)
        if stream in self._streams:  # trailers
            if not flags & END_STREAM:
                raise ConnectionFault(PROTOCOL_ERROR, "trailers that do not end")
            self._end(stream)
            return
        if stream <= self._last:
            return  # trailers of a stream that is over
        if stream % 2 == 0:
            raise ConnectionFault(PROTOCOL_ERROR, "an even stream from a client")
        if len(self._streams) >= MAX_STREAMS:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "too many streams")
        if self._refusing:
            return  # above the last stream of our GOAWAY: the peer asks elsewhere
        self._last = stream
        self._streams[stream] = _Stream(self._initial_window)
        self._handler.opened(stream, headers)
        if flags & END_STREAM:
            self._end(stream)

    def _decoded(self, block: bytes) -> dict[str, str]:
        """Decode a header block; the answer of one that left the table as it was is kept.

        Envoy writes `:path` out in every block, so few are of indexes alone.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        table = self._decoder.header_table
        entries, maxsize = table.dynamic_entries, table.maxsize
        count, newest = len(entries), entries[0] if entries else None
        try:
            headers = {str(name): str(value) for name, value in self._decoder.decode(block)}
        except (HPACKError, UnicodeDecodeError) as error:
            raise ConnectionFault(COMPRESSION_ERROR, "bad header block") from error
        # By identity, because an equal entry may have pushed another one out.
        same = table.maxsize == maxsize and len(entries) == count
        if same and newest is (entries[0] if entries else None):
            if len(self._known) < MAX_KNOWN_BLOCKS:
                self._known[block] = headers
        else:
            self._known.clear()
        return headers

    def _window(self, _flags: int, stream: int, payload: bytes) -> None:
        if len(payload) != 4:  # noqa: PLR2004
            raise ConnectionFault(FRAME_SIZE_ERROR, "bad WINDOW_UPDATE")
        more = int.from_bytes(payload, "big") & MAX_WINDOW
        if more == 0:
            raise ConnectionFault(PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        if stream == 0:
            self._send_window += more
            if self._send_window > MAX_WINDOW:
                raise ConnectionFault(FLOW_CONTROL_ERROR, "window overflow")
            self._pump_all()
            return
        state = self._streams.get(stream)
        if state is not None:
            state.send_window += more
            if state.send_window > MAX_WINDOW:
                raise ConnectionFault(FLOW_CONTROL_ERROR, "window overflow")
            self._pump(stream, state)

    def _settings(self, flags: int, stream: int, payload: bytes) -> None:
        if stream or len(payload) % 6 or (flags & ACK and payload):
            raise ConnectionFault(FRAME_SIZE_ERROR, "bad SETTINGS")
        if flags & ACK:
            return
        self._count_control()
        for identifier, value in struct.iter_unpack(">HL", payload):
            if identifier == 0x4:  # noqa: PLR2004 (INITIAL_WINDOW_SIZE)
                if value > MAX_WINDOW:
                    raise ConnectionFault(FLOW_CONTROL_ERROR, "window too large")
                for state in self._streams.values():
                    state.send_window += value - self._initial_window
                    if state.send_window > MAX_WINDOW:
                        raise ConnectionFault(FLOW_CONTROL_ERROR, "window overflow")
                self._initial_window = value
            elif identifier == 0x5:  # noqa: PLR2004 (MAX_FRAME_SIZE)
                if not MAX_FRAME_BYTES <= value < 2**24:
                    raise ConnectionFault(PROTOCOL_ERROR, "frame size out of range")
                self._peer_frame = value
        self._out.append(frame(SETTINGS, ACK, 0))
        self._pump_all()


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(PROTOCOL_ERROR, "bad padding")
    return payload[1 : len(payload) - payload[0]]
