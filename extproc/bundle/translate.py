"""The filter that has the processor translate one attempt.

Knows: the processor's contract with Envoy for translations. Must not know: dialects, routes.
It is in the cluster of a provider whose dialect is not the caller's, so it runs when that cluster
is tried and only then.
"""

from __future__ import annotations

from typing import Final

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


def translate(workers: int = 1) -> HttpFilter:
    """Send the processor both headers, the whole request and the answer.

    Of several `workers` any will do, because a translation needs no memory of the call.
    A document is buffered; the processor asks for a stream's chunks one by one when it sees one.
    """
    return http_filter(
        TRANSLATE,
        ExternalProcessor(
            grpc_service=GrpcService(
                envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=PROCESSOR),
                retry_policy=reconnect(REQUEST_RETRIES, workers),
            ),
            failure_mode_allow=False,  # an answer in another dialect is no answer
            processing_mode=ProcessingMode(
                request_header_mode=ProcessingModeHeaderSendMode.SEND,
                request_body_mode=ProcessingModeBodySendMode.BUFFERED,
                response_header_mode=ProcessingModeHeaderSendMode.SEND,
                response_body_mode=ProcessingModeBodySendMode.BUFFERED,
                request_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
                response_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
            ),
            allow_mode_override=True,
            request_attributes=list(ATTRIBUTES),
            message_timeout=seconds(MESSAGE_TIMEOUT_S),
            mutation_rules=HeaderMutationRules(allow_all_routing=False),
            allow_content_length_header=True,
            metadata_options=MetadataOptions(
                forwarding_namespaces=MetadataOptionsMetadataNamespaces(untyped=[SERVED])
            ),
        ),
    )
