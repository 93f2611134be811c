"""HTTP/2 frames: kinds, flags, error codes and how one frame is written (RFC 9113 4.1, 6, 7).

Knows: the layout of a frame. Must not know: streams, header blocks or what a connection allows.
"""

from __future__ import annotations

import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, PRIORITIZED, ACK = 0x1, 0x4, 0x8, 0x20, 0x1
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0x0, 0x1, 0x2, 0x3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 0x5, 0x6, 0x7, 0x8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0x9, 0xB
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 0x1, 0x2, 0x3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 0x4, 0x5, 0x6
DEFAULT_WINDOW: Final = 65535
MAX_WINDOW: Final = 2**31 - 1  # also the mask that takes the reserved bit off
MAX_FRAME_BYTES: Final = 16384  # the protocol's default, which we do not raise
LARGEST_FRAME_BYTES: Final = 2**24 - 1  # what a peer may allow
HEADER_BYTES: Final = 9
PRIORITY_BYTES: Final = 5
PING_BYTES: Final = 8
GOAWAY_BYTES: Final = 8
header: Final = struct.Struct(">LBL")  # size << 8 | kind, flags, stream
number: Final = struct.Struct(">L")
pair: Final = struct.Struct(">LL")
setting: Final = struct.Struct(">HL")


class ConnectionFault(Exception):
    """The peer broke the connection's rules: GOAWAY with `code`, then close."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Encode one frame."""
    return header.pack(len(payload) << 8 | kind, flags, stream) + payload


def unpadded(payload: bytes) -> bytes:
    """Take the padding off DATA or HEADERS (6.1). Raises ConnectionFault."""
    if not payload:
        raise ConnectionFault(FRAME_SIZE_ERROR, "no room for the padding's length")
    if payload[0] >= len(payload):
        raise ConnectionFault(PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]
