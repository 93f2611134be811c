"""The access log: one gRPC entry per planned call, which is what the call is billed from, and one
per attempt that a provider failed, which is what its breaker is fed from.

Knows: the log's filter, batching and transport. Must not know: what the entries are used for.
"""

from __future__ import annotations

from typing import Final

from envoy_data_plane.envoy.config.accesslog.v3 import (
    AccessLog,
    AccessLogFilter,
    AndFilter,
    ComparisonFilter,
    ComparisonFilterOp,
    HeaderFilter,
    MetadataFilter,
    OrFilter,
    ResponseFlagFilter,
    StatusCodeFilter,
)
from envoy_data_plane.envoy.config.core.v3 import (
    ApiVersion,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    RuntimeUInt32,
)
from envoy_data_plane.envoy.config.route.v3 import HeaderMatcher
from envoy_data_plane.envoy.extensions.access_loggers.grpc.v3 import (
    CommonGrpcAccessLogConfig,
    HttpGrpcAccessLogConfig,
)
from envoy_data_plane.envoy.type.matcher.v3 import (
    MetadataMatcher,
    MetadataMatcherPathSegment,
    StringMatcher,
    ValueMatcher,
)
from envoy_data_plane.google.protobuf import Any

from extproc.bundle.messages import seconds
from extproc.bundle.places import (
    CALL,
    MODEL_HEADER,
    PROCESSOR,
    RECORD_KEY,
    RESETS_HEADER,
    WORKER_HEADER,
    log_cluster,
)
from extproc.bundle.processor import LOG_RETRIES, reconnect
from extproc.record import beginning

FLUSH_S: Final = 0.05  # a slot is released by the log: this is how long it looks taken too long
OURS: Final = (408, 429)  # of the client errors, those that say something about the provider
# Connection failure, termination, remote reset, per-try timeout, protocol error, no host, no DNS.
FLAGS: Final = ("UF", "UC", "UR", "UT", "UPE", "UH", "DF")
BATCH_BYTES: Final = 65_536  # about 50 entries: one message a flush, settled in a few milliseconds


def access_logs(workers: int) -> list[AccessLog]:
    """Log the calls that were planned, each to the worker that planned it; a denied call has no
    bill.
    """
    if workers == 1:
        return [_calls(PROCESSOR, ValueMatcher(present_match=True))]
    return [
        _calls(
            log_cluster(worker),
            ValueMatcher(string_match=StringMatcher(prefix=beginning(worker))),
        )
        for worker in range(workers)
    ]


def attempt_logs(workers: int) -> list[AccessLog]:
    """Log the attempts a provider failed, each at once: the next call is planned by it."""
    ways = [_status(ComparisonFilterOp.GE, 500), *(_status(ComparisonFilterOp.EQ, n) for n in OURS)]
    ways.append(AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=list(FLAGS))))
    failed = AccessLogFilter(or_filter=OrFilter(filters=ways))
    if workers == 1:
        return [_attempts(PROCESSOR, failed)]
    return [
        _attempts(
            log_cluster(worker),
            AccessLogFilter(and_filter=AndFilter(filters=[_planned_by(worker), failed])),
        )
        for worker in range(workers)
    ]


def _calls(cluster: str, record: ValueMatcher) -> AccessLog:
    chosen = MetadataMatcher(
        filter=CALL, path=[MetadataMatcherPathSegment(key=RECORD_KEY)], value=record
    )
    return _log(
        AccessLogFilter(
            metadata_filter=MetadataFilter(matcher=chosen, match_if_key_not_found=False)
        ),
        HttpGrpcAccessLogConfig(common_config=_common("llm", cluster, BATCH_BYTES)),
    )


def _attempts(cluster: str, chosen: AccessLogFilter) -> AccessLog:
    return _log(
        chosen,
        HttpGrpcAccessLogConfig(
            common_config=_common("llm.attempts", cluster, 1),
            additional_request_headers_to_log=[MODEL_HEADER],
            additional_response_headers_to_log=["retry-after", RESETS_HEADER],
        ),
    )


def _planned_by(worker: int) -> AccessLogFilter:
    # By a header, because this log does not see the call's metadata.
    matcher = HeaderMatcher(name=WORKER_HEADER, string_match=StringMatcher(exact=beginning(worker)))
    return AccessLogFilter(header_filter=HeaderFilter(header=matcher))


def _status(op: ComparisonFilterOp, status: int) -> AccessLogFilter:
    # The runtime key is Envoy's to ask for; nobody sets it.
    value = RuntimeUInt32(default_value=status, runtime_key="llm-edge.attempt_status")
    return AccessLogFilter(
        status_code_filter=StatusCodeFilter(comparison=ComparisonFilter(op=op, value=value))
    )


def _log(chosen: AccessLogFilter, config: HttpGrpcAccessLogConfig) -> AccessLog:
    return AccessLog(
        name="envoy.access_loggers.http_grpc", filter=chosen, typed_config=Any.pack(config)
    )


def _common(name: str, cluster: str, buffer_bytes: int) -> CommonGrpcAccessLogConfig:
    return CommonGrpcAccessLogConfig(
        log_name=name,
        transport_api_version=ApiVersion.V3,
        grpc_service=GrpcService(envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=cluster)),
        grpc_stream_retry_policy=reconnect(LOG_RETRIES),
        buffer_flush_interval=seconds(FLUSH_S),
        buffer_size_bytes=buffer_bytes,
    )
