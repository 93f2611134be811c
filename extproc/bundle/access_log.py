"""The access log: one gRPC entry per planned call, which is what the call is billed from.

Knows: the log's filter, batching and transport. Must not know: what the entries are used for.
"""

from __future__ import annotations

from typing import Final

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog, AccessLogFilter, MetadataFilter
from envoy_data_plane.envoy.config.core.v3 import ApiVersion, GrpcService, GrpcServiceEnvoyGrpc
from envoy_data_plane.envoy.extensions.access_loggers.grpc.v3 import (
    CommonGrpcAccessLogConfig,
    HttpGrpcAccessLogConfig,
)
from envoy_data_plane.envoy.type.matcher.v3 import (
    MetadataMatcher,
    MetadataMatcherPathSegment,
    ValueMatcher,
)
from envoy_data_plane.google.protobuf import Any

from extproc.bundle.messages import seconds
from extproc.bundle.places import CALL, PROCESSOR, RECORD_KEY
from extproc.bundle.processor import LOG_RETRIES, reconnect

FLUSH_S: Final = 0.05  # a slot is released by the log: this is how long it looks taken too long
BATCH_BYTES: Final = 65_536  # about 50 entries: one message a flush, settled in a few milliseconds


def access_log() -> AccessLog:
    """Log the calls that were planned; a denied call has no bill."""
    planned = MetadataMatcher(
        filter=CALL,
        path=[MetadataMatcherPathSegment(key=RECORD_KEY)],
        value=ValueMatcher(present_match=True),
    )
    return AccessLog(
        name="envoy.access_loggers.http_grpc",
        filter=AccessLogFilter(
            metadata_filter=MetadataFilter(matcher=planned, match_if_key_not_found=False)
        ),
        typed_config=Any.pack(
            HttpGrpcAccessLogConfig(
                common_config=CommonGrpcAccessLogConfig(
                    log_name="llm",
                    transport_api_version=ApiVersion.V3,
                    grpc_service=GrpcService(
                        envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=PROCESSOR)
                    ),
                    grpc_stream_retry_policy=reconnect(LOG_RETRIES),
                    buffer_flush_interval=seconds(FLUSH_S),
                    buffer_size_bytes=BATCH_BYTES,
                )
            )
        ),
    )
