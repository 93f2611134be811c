"""The filters that have the processor translate one attempt, or watch its stream.

Knows: the processor's contract with Envoy for both. Must not know: dialects, routes.
The one is in the cluster of a provider whose dialect is not the caller's, the other in the own
cluster of a provider with `stall_events`, so each runs when that cluster is tried and only then.
"""

from __future__ import annotations

from typing import Any, Final

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutationRules
from envoy_data_plane.envoy.config.core.v3 import GrpcService, GrpcServiceEnvoyGrpc
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ExternalProcessor,
    MetadataOptions,
    MetadataOptionsMetadataNamespaces,
    ProcessingMode,
    ProcessingModeBodySendMode,
    ProcessingModeHeaderSendMode,
)
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter

from extproc.bundle.messages import http_filter, seconds
from extproc.bundle.places import PROCESSOR, SERVED
from extproc.bundle.processor import REQUEST_RETRIES, reconnect

TRANSLATE: Final = "llm-edge.translate"
MESSAGE_TIMEOUT_S: Final = 5.0  # as for the decision: a garbage collection is not a failure
ATTRIBUTES: Final = ("xds.cluster_name",)  # also how the processor tells these exchanges
WATCH: Final = "llm-edge.watch"
WATCH_ATTRIBUTES: Final = ("request.path",)  # likewise; whose events these are


def translate(workers: int = 1) -> HttpFilter:
    """Send the processor both headers, the whole request and the answer.

    A document is buffered; the processor asks for a stream's chunks one by one when it sees one.
    """
    return http_filter(
        TRANSLATE,
        _external(
            workers,
            ProcessingMode(
                request_header_mode=ProcessingModeHeaderSendMode.SEND,
                request_body_mode=ProcessingModeBodySendMode.BUFFERED,
                response_header_mode=ProcessingModeHeaderSendMode.SEND,
                response_body_mode=ProcessingModeBodySendMode.BUFFERED,
                request_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
                response_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
            ),
            request_attributes=list(ATTRIBUTES),
            metadata_options=MetadataOptions(
                forwarding_namespaces=MetadataOptionsMetadataNamespaces(untyped=[SERVED])
            ),
        ),
    )


def watch(workers: int = 1) -> HttpFilter:
    """Send the processor the answer's headers; it asks for the chunks of a stream."""
    return http_filter(
        WATCH,
        _external(
            workers,
            ProcessingMode(
                request_header_mode=ProcessingModeHeaderSendMode.SKIP,
                request_body_mode=ProcessingModeBodySendMode.NONE,
                response_header_mode=ProcessingModeHeaderSendMode.SEND,
                response_body_mode=ProcessingModeBodySendMode.NONE,
                request_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
                response_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
            ),
            response_attributes=list(WATCH_ATTRIBUTES),
        ),
    )


def _external(workers: int, mode: ProcessingMode, **more: Any) -> ExternalProcessor:
    """Of several `workers` any will do, because neither needs a memory of the call."""
    return ExternalProcessor(
        grpc_service=GrpcService(
            envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=PROCESSOR),
            retry_policy=reconnect(REQUEST_RETRIES, workers),
        ),
        failure_mode_allow=False,  # half an answer, or one in another dialect, is no answer
        processing_mode=mode,
        allow_mode_override=True,
        message_timeout=seconds(MESSAGE_TIMEOUT_S),
        mutation_rules=HeaderMutationRules(allow_all_routing=False),
        allow_content_length_header=True,
        **more,
    )
