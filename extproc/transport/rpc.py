"""gRPC as it stands in HTTP/2: paths, timeouts, messages, status (the gRPC over HTTP/2 protocol).

Knows: header fields and the five bytes before a message. Must not know: connections or exchanges.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from enum import Enum
from typing import Final
from urllib.parse import quote

from extproc.transport import ACCESS_LOG, EXT_PROC, HEALTH

OK, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND = 0, 3, 4, 5
RESOURCE_EXHAUSTED, ABORTED, UNIMPLEMENTED, INTERNAL = 8, 10, 12, 13
prefix: Final = struct.Struct(">BL")
PREFIX_BYTES: Final = prefix.size
CONTENT_TYPE: Final = "application/grpc"
MAX_REASON_CHARS: Final = 256  # of a status message; nothing we say is longer
PRINTABLE: Final = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"  # and all letters and digits; not %
HPACK_PREFIX: Final = 0x7F  # the largest length byte says that more follow (RFC 7541 5.1)
_timeout: Final = re.compile(r"([0-9]{1,8})([HMSmun])")
UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Method(Enum):
    """What may be called."""

    PROCESS = f"/{EXT_PROC}/Process"
    LOGS = f"/{ACCESS_LOG}/StreamAccessLogs"
    CHECK = f"/{HEALTH}/Check"
    WATCH = f"/{HEALTH}/Watch"


METHODS: Final = {method.value: method for method in Method}


def literal(name: bytes, value: bytes) -> bytes:
    """Encode a header field that no table keeps (RFC 7541 6.2.2)."""
    return b"\x00" + _string(name) + _string(value)


def _string(raw: bytes) -> bytes:
    size = len(raw)
    if size < HPACK_PREFIX:
        return bytes((size,)) + raw
    length = bytearray((HPACK_PREFIX,))
    size -= HPACK_PREFIX
    while size >= 0x80:  # noqa: PLR2004 (seven bits a byte)
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes(length) + raw


RESPONSE: Final = b"\x88" + literal(b"content-type", CONTENT_TYPE.encode())  # :status 200
TRAILERS_OK: Final = literal(b"grpc-status", b"0")


def trailers(status: int, reason: str = "") -> bytes:
    """Encode the trailers of a call."""
    if status == OK:
        return TRAILERS_OK
    message = quote(reason[:MAX_REASON_CHARS], safe=PRINTABLE).encode()
    return literal(b"grpc-status", b"%d" % status) + literal(b"grpc-message", message)


def refusal(headers: Mapping[str, str]) -> bytes:
    """Return the whole answer to what is not a gRPC call (405, 415), or nothing."""
    if headers.get(":method") != "POST":
        status, reason = b"405", "gRPC is POST"
    else:
        kind = headers.get("content-type", "")
        if kind == CONTENT_TYPE or kind.startswith((CONTENT_TYPE + "+", CONTENT_TYPE + ";")):
            return b""
        status, reason = b"415", "not application/grpc"
    return literal(b":status", status) + trailers(INTERNAL, reason)


def timeout_s(value: str) -> float:
    """Read `grpc-timeout`. Raises ValueError."""
    found = _timeout.fullmatch(value)
    if found is None:
        raise ValueError("malformed grpc-timeout")
    return int(found[1]) * UNITS[found[2]]
