"""Messages of a translated or watched attempt as Envoy would write them.

Knows: `envoy_data_plane`, the independent reading of Envoy's API. Must not know: `extproc.pb`.
"""

from __future__ import annotations

from collections.abc import Mapping

from envoy_data_plane.envoy.config.core.v3 import Metadata
from envoy_data_plane.envoy.service.ext_proc.v3 import HttpBody, HttpHeaders, ProcessingRequest
from envoy_data_plane.google.protobuf import Struct

from .calls import header_map

NO_MORE: Mapping[str, str] = {}


def head(cluster: str, model: str, request_id: str = "r-1") -> bytes:
    """Encode the first message: the request's headers, with what only Envoy can say."""
    return bytes(
        ProcessingRequest(
            request_headers=HttpHeaders(headers=header_map([("x-request-id", request_id)])),
            metadata_context=Metadata(
                filter_metadata={"llm.served": Struct.from_dict({"model": model})}
            ),
            attributes={
                "envoy.filters.http.ext_proc": Struct.from_dict({"xds.cluster_name": cluster})
            },
        )
    )


def request_body(body: bytes) -> bytes:
    """Encode the whole body of the request."""
    return bytes(ProcessingRequest(request_body=HttpBody(body=body, end_of_stream=True)))


def response_head(
    status: int, kind: str, *, ends: bool = False, path: str = "", more: Mapping[str, str] = NO_MORE
) -> bytes:
    """Encode the answer's headers, with the path that is told where nothing came before them."""
    pairs = [(":status", str(status)), ("content-type", kind), *more.items()]
    told = {"envoy.filters.http.ext_proc": Struct.from_dict({"request.path": path})}
    return bytes(
        ProcessingRequest(
            response_headers=HttpHeaders(headers=header_map(pairs), end_of_stream=ends),
            attributes=told if path else {},
        )
    )


def chunk(data: bytes, *, ends: bool = False) -> bytes:
    """Encode some of the answer's body."""
    return bytes(ProcessingRequest(response_body=HttpBody(body=data, end_of_stream=ends)))
