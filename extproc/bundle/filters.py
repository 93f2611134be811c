"""The HTTP filters every request passes, in their order.

Knows: the processor's contract with Envoy and the response probe. Must not know: routes, providers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutationRules
from envoy_data_plane.envoy.config.core.v3 import GrpcService, GrpcServiceEnvoyGrpc
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ExternalProcessor,
    HeaderForwardingRules,
    MetadataOptions,
    MetadataOptionsMetadataNamespaces,
    ProcessingMode,
    ProcessingModeBodySendMode,
    ProcessingModeHeaderSendMode,
)
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.type.matcher.v3 import ListStringMatcher, StringMatcher
from envoy_data_plane.envoy.type.v3 import HttpStatus, StatusCode

from extproc.bundle.access_log import attempt_logs
from extproc.bundle.cors import cors_filters
from extproc.bundle.messages import http_filter, inline, seconds
from extproc.bundle.places import CALL, LIMITS, PLAN, PROCESSOR, SERVED
from extproc.bundle.processor import REQUEST_RETRIES, reconnect
from extproc.headers import READ, READ_OF_ANSWERS
from extproc.schema import Server

DECIDE: Final = "llm-edge.decide"
PROBE: Final = "llm-edge.probe"
MESSAGE_TIMEOUT_S: Final = 5.0  # the default, 200 ms, is a garbage collection away
# What the processor may ask for instead, for a call that waits for another's answer.
MAX_MESSAGE_TIMEOUT_S: Final = 3600.0  # the most that Envoy takes
_LUA: Final = Path(__file__).with_name("lua")


def lua(*names: str, constants: Mapping[str, str] | None = None) -> Lua:
    """Return scripts beside this file, in order, as one filter, with constants set before them."""
    lines = [f"local {key} = {_quoted(value)}\n" for key, value in (constants or {}).items()]
    scripts = [_LUA.joinpath(name).read_text() for name in names]
    return Lua(default_source_code=inline("".join([*lines, *scripts])))


def _quoted(value: str) -> str:
    """Return a Lua string: every byte that is no plain character as a decimal escape."""
    plain = (
        chr(b) if chr(b).isalnum() or b in b"/.:-_~[]" else f"\\{b:03}" for b in value.encode()
    )
    return f'"{"".join(plain)}"'


def http_filters(server: Server) -> list[HttpFilter]:
    """List the filters; the order is the order on the way in, and reversed on the way out."""
    return [
        # First, because a preflight carries no credential, and refusals too need its headers.
        *cors_filters(server.cors),
        # Before all that acts, because nothing may act on a request nobody has vouched for.
        http_filter(DECIDE, _decide(server.workers)),
        # After the decision, because it reads the plan; before the router, whose answer it watches.
        http_filter(PROBE, lua("keep.lua", "probe.lua")),
        # Last, because it sends. It adds no x-envoy-* headers: the inside stays inside.
        http_filter("envoy.filters.http.router", _router(server.workers)),
    ]


def _router(workers: int) -> Router:
    return Router(suppress_envoy_headers=True, upstream_log=attempt_logs(workers))


def _decide(workers: int) -> ExternalProcessor:
    return ExternalProcessor(
        # No grpc_service.timeout: it would cap the whole stream, waiting for the body included.
        grpc_service=GrpcService(
            envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=PROCESSOR),
            retry_policy=reconnect(REQUEST_RETRIES, workers),
        ),
        failure_mode_allow=False,  # a dead processor is a 503, never an open door
        status_on_error=HttpStatus(code=StatusCode.ServiceUnavailable),
        processing_mode=ProcessingMode(
            request_header_mode=ProcessingModeHeaderSendMode.SEND,
            request_body_mode=ProcessingModeBodySendMode.BUFFERED,
            response_header_mode=ProcessingModeHeaderSendMode.SKIP,
            response_body_mode=ProcessingModeBodySendMode.NONE,
            request_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
            response_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
        ),
        allow_mode_override=True,
        message_timeout=seconds(MESSAGE_TIMEOUT_S),
        max_message_timeout=seconds(MAX_MESSAGE_TIMEOUT_S),
        # The processor sets x-envoy-max-retries and the timeout, which Envoy protects by default.
        mutation_rules=HeaderMutationRules(allow_envoy=True, allow_all_routing=False),
        allow_content_length_header=True,
        forward_rules=HeaderForwardingRules(
            allowed_headers=ListStringMatcher(
                [StringMatcher(exact=name) for name in (*READ, *READ_OF_ANSWERS)]
            )
        ),
        metadata_options=MetadataOptions(
            receiving_namespaces=MetadataOptionsMetadataNamespaces(
                untyped=[PLAN, CALL, LIMITS, SERVED]
            )
        ),
    )
