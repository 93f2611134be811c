"""Rung 3: an external processor that admits everything, as cheaply as grpc.aio allows.

Run: python -m benchmarks.noop_processor --socket PATH. Bytes in, constant bytes out: no protobuf
object is made per request, so what rung 3 costs over rung 2 is Envoy's and gRPC's price for asking
anyone at all. Two messages, then the RPC ends with the plan, as in the product.
"""

import argparse
import asyncio
from typing import Any

import grpc
import uvloop
from google.protobuf.struct_pb2 import Struct

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
MAX_MESSAGE_BYTES = 32 * 1024 * 1024  # above the largest prompt measured
MAX_STREAMS = 10_000

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


async def serve(socket: str) -> None:
    """Serve on a Unix socket until cancelled."""
    continue_body = plan("json")

    async def process(_: object, context: grpc.aio.ServicerContext) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            if message[0] == REQUEST_BODY:
                await context.write(continue_body)
                return
            if message[0] != REQUEST_HEADERS:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not headers, not body")
            await context.write(CONTINUE_HEADERS)

    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
    ]
    server = grpc.aio.server(options=options)
    handlers = {"Process": grpc.stream_stream_rpc_method_handler(process)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--socket", required=True)
    uvloop.install()
    asyncio.run(serve(options.parse_args().socket))


if __name__ == "__main__":
    main()
