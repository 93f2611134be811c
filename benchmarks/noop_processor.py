"""Rungs 3 and 7: an external processor that admits everything, on the transport that is named.

Run: python -m benchmarks.noop_processor --transport lane --socket PATH. Bytes in, constant bytes
out: no protobuf object is made per request, so what such a rung costs over rung 2 is the price of
asking anyone at all, Envoy's and the transport's. Two messages, then the RPC ends with the plan,
as in the product; transport, loop and garbage collection are the product's.
"""

import argparse
import asyncio
import gc
from typing import Any

import uvloop
from google.protobuf.struct_pb2 import Struct

from extproc.server import GC_ALLOCATIONS
from extproc.service import ProtocolError
from extproc.transport import Transport
from extproc.transport.grpcio import GrpcioTransport
from extproc.transport.lane import LaneTransport

TRANSPORTS = {"lane": LaneTransport, "grpcio": GrpcioTransport}
MAX_BODY_BYTES = 32 * 1024 * 1024  # above the largest prompt measured

# ProcessingRequest fields by their tag byte: field number << 3 | 2 (length-delimited).
REQUEST_HEADERS = 0x12
REQUEST_BODY = 0x22

# ProcessingResponse.request_headers = HeadersResponse{}: CONTINUE is the zero value.
CONTINUE_HEADERS = b"\x0a\x00"


def varint(number: int) -> bytes:
    """Encode a non-negative integer as a protobuf varint."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, payload: bytes) -> bytes:
    """Encode one length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def plan(cluster: str) -> bytes:
    """Return the reply to the body: CONTINUE, a plan of one cluster, and a fresh route.

    BodyResponse is field 3, its CommonResponse field 1 {header_mutation 2, clear_route_cache 5},
    dynamic_metadata field 8 (envoy.service.ext_proc.v3.ProcessingResponse).
    """
    metadata = Struct()
    groups: list[Any] = [{"name": cluster, "clusters": [{"cluster_name": cluster, "weight": 1}]}]
    metadata.update({"llm": {"priority_groups": groups}})
    common = field(2, b"") + b"\x28\x01"
    return field(3, field(1, common)) + field(8, metadata.SerializeToString())


CONTINUE_BODY = plan("json")


class Nothing:
    """One exchange, and all of them: continue, then the plan."""

    __slots__ = ("ended", "patience_s")

    def __init__(self) -> None:
        self.ended = False
        self.patience_s = None

    def open(self) -> "Nothing":
        """Start one exchange."""
        return Nothing()

    async def receive(self, raw: bytes, _say: object = None) -> bytes:
        """Answer headers and body. Raises ProtocolError for anything else."""
        if raw[0] == REQUEST_BODY:
            self.ended = True
            return CONTINUE_BODY
        if raw[0] != REQUEST_HEADERS:
            raise ProtocolError("not headers, not body")
        return CONTINUE_HEADERS

    def overdue(self) -> bytes:
        """Say nothing: it waits for nobody."""
        return b""

    def close(self) -> None:
        """Forget nothing."""


class NoLogs:
    """An access log that nobody sends."""

    def receive(self, raw: bytes) -> None:
        """Pass over a message."""


async def serve(kind: str, socket: str) -> None:
    """Serve on a Unix socket until cancelled."""
    transport: Transport = TRANSPORTS[kind](f"unix:{socket}", Nothing(), NoLogs(), MAX_BODY_BYTES)
    await transport.start()
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 20)
    await asyncio.Event().wait()


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--transport", choices=sorted(TRANSPORTS), required=True)
    options.add_argument("--socket", required=True)
    chosen = options.parse_args()
    uvloop.run(serve(chosen.transport, chosen.socket))


if __name__ == "__main__":
    main()
