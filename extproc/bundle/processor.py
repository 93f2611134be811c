"""How Envoy reaches the processor: its clusters, and what happens while it restarts.

Knows: addresses, pools and reconnecting. Must not know: what is said to the processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    CircuitBreakersThresholdsRetryBudget,
    Cluster,
    ClusterDiscoveryType,
    ClusterLbPolicy,
)
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    BackoffStrategy,
    Http2ProtocolOptions,
    KeepaliveSettings,
    RetryPolicy,
    RetryPolicyRetryHostPredicate,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts.v3 import PreviousHostsPredicate
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.google.protobuf import Any

from extproc.bundle.limits import buffer_bytes
from extproc.bundle.messages import seconds
from extproc.bundle.places import PROCESSOR, PROCESSOR_SOCKET, is_ip, log_cluster, pipe, tcp
from extproc.places import log_socket, worker_socket
from extproc.schema import Config

HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
PROCESSOR_CONNECT_S: Final = 2.0  # a Unix socket answers at once; another pod soon
PROCESSOR_CALLS: Final = 100_000  # the processor itself refuses; the default, 1,024, would first
PROCESSOR_STREAMS: Final = 2_147_483_647  # on one connection: never a second one for load
PROCESSOR_PING_S: Final = 10.0  # finds a processor that vanished without closing
# What the log has no room for while the processor is busy are bills that are lost: enough for
# 10,000 calls that end together with 25 KB to keep each. Nothing is used unless something waits.
LOG_BUFFER_BYTES: Final = 268_435_456
RETRY_BASE_S: Final = 0.05
RETRY_MAX_S: Final = 0.25  # so a new processor is found within this
REQUEST_RETRIES: Final = 16  # about 2 s: a restart is a slow request, an outage a 503
LOG_RETRIES: Final = 2400  # about 5 minutes: longer than any restart; costs a connect each
OTHER_HOST_DRAWS: Final = 8  # of two hosts, one dead, all but one retry in 256 finds the other


def reconnect(times: int, workers: int = 1) -> RetryPolicy:
    """Try again where nobody listened, so no message is ever handled twice; of several at another.

    Envoy keeps the first 4 KB or so of a stream for this: a request's headers, five log entries.
    """
    elsewhere = RetryPolicyRetryHostPredicate(
        name="envoy.retry_host_predicates.previous_hosts",
        typed_config=Any.pack(PreviousHostsPredicate()),
    )
    return RetryPolicy(
        retry_on="connect-failure",
        num_retries=times,
        retry_back_off=BackoffStrategy(
            base_interval=seconds(RETRY_BASE_S), max_interval=seconds(RETRY_MAX_S)
        ),
        retry_host_predicate=[elsewhere] if workers > 1 else [],
        host_selection_retry_max_attempts=OTHER_HOST_DRAWS if workers > 1 else 0,
    )


def processor_clusters(config: Config) -> list[Cluster]:
    """Build the cluster of ext_proc and the access log: the socket beside Envoy, or an address.

    Of several workers any may decide about a call, and the one that did is told how it ended: they
    share a cluster for the first, and each has one of its own for the second.
    """
    workers = config.server.workers
    if workers > 1:
        sockets = [pipe(worker_socket(worker)) for worker in range(workers)]
        static = ClusterDiscoveryType.STATIC
        logs = [(log_cluster(worker), pipe(log_socket(worker))) for worker in range(workers)]
        return [
            _cluster(PROCESSOR, sockets, static, config),
            *(_cluster(name, [address], static, config) for name, address in logs),
        ]
    written = config.server.processor_address
    kind, address = ClusterDiscoveryType.STATIC, pipe(PROCESSOR_SOCKET)
    if written is not None:
        host, _, port = written.rpartition(":")
        host = host.strip("[]")
        address = tcp(host, int(port))
        kind = ClusterDiscoveryType.STATIC if is_ip(host) else ClusterDiscoveryType.STRICT_DNS
    return [_cluster(PROCESSOR, [address], kind, config)]


def _cluster(
    name: str, addresses: Sequence[Address], kind: ClusterDiscoveryType, config: Config
) -> Cluster:
    http2 = Http2ProtocolOptions(
        max_concurrent_streams=PROCESSOR_STREAMS,
        initial_stream_window_size=LOG_BUFFER_BYTES,  # bounds what waits on our side as well
        connection_keepalive=KeepaliveSettings(
            interval=seconds(PROCESSOR_PING_S), timeout=seconds(PROCESSOR_PING_S)
        ),
    )
    options = HttpProtocolOptions(
        explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=http2)
    )
    return Cluster(
        name=name,
        type=kind,
        connect_timeout=seconds(PROCESSOR_CONNECT_S),
        lb_policy=ClusterLbPolicy.LEAST_REQUEST,
        circuit_breakers=breakers(PROCESSOR_CALLS),
        # Because a whole request body is one gRPC message, and the log has all answers to keep.
        per_connection_buffer_limit_bytes=max(buffer_bytes(config), LOG_BUFFER_BYTES),
        load_assignment=endpoint(name, *addresses),
        typed_extension_protocol_options={HTTP_OPTIONS: Any.pack(options)},
    )


def breakers(
    most: int, budget: CircuitBreakersThresholdsRetryBudget | None = None
) -> CircuitBreakers:
    """Allow so many of everything, and of retries what a budget allows where there is one."""
    return CircuitBreakers(
        thresholds=[
            CircuitBreakersThresholds(
                max_connections=most,
                max_pending_requests=most,
                max_requests=most,
                max_retries=None if budget else most,
                retry_budget=budget,
            )
        ]
    )


def endpoint(name: str, *addresses: Address) -> ClusterLoadAssignment:
    """Return addresses as all there is of a cluster."""
    return ClusterLoadAssignment(cluster_name=name, endpoints=[hosts(*addresses)])


def hosts(*addresses: Address, priority: int = 0) -> LocalityLbEndpoints:
    """Return addresses at a priority; the next is used where no host of this one is left."""
    return LocalityLbEndpoints(
        priority=priority,
        lb_endpoints=[LbEndpoint(endpoint=Endpoint(address=address)) for address in addresses],
    )
