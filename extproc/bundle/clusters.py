"""cds.yaml: the processor and the providers as clusters.

Knows: pools, limits, name resolution and TLS towards upstreams. Must not know: routes, requests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakersThresholdsRetryBudget,
    Cluster,
    ClusterCustomClusterType,
    ClusterDiscoveryType,
    ClusterLbPolicy,
    OutlierDetection,
    UpstreamConnectionOptions,
)
from envoy_data_plane.envoy.config.core.v3 import (
    DataSource,
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    TcpKeepalive,
    TransportSocket,
)
from envoy_data_plane.envoy.config.core.v3 import HttpProtocolOptions as CommonOptions
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
)
from envoy_data_plane.envoy.extensions.clusters.common.dns.v3 import DnsLookupFamily
from envoy_data_plane.envoy.extensions.clusters.dns.v3 import DnsCluster, DnsClusterRefreshRate
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    SubjectAltNameMatcher,
    SubjectAltNameMatcherSanType,
    TlsParameters,
    TlsParametersTlsProtocol,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsAutoHttpConfig,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.envoy.type.v3 import Percent
from envoy_data_plane.google.protobuf import Any

from extproc.bundle.limits import buffer_bytes
from extproc.bundle.messages import seconds
from extproc.bundle.places import Upstream, operator_path, tcp, upstream
from extproc.bundle.processor import (
    HTTP_OPTIONS,
    breakers,
    endpoint,
    hosts,
    processor_clusters,
)
from extproc.bundle.provider import provider_filters
from extproc.domain import DIALECTS, Dialect, cluster_of
from extproc.schema import Config, Provider

SYSTEM_CA: Final = "/etc/ssl/certs/ca-certificates.crt"  # Debian's bundle, also in Envoy's images
CLOSED_PORT: Final = 1  # tcpmux, where nothing listens
MAX_EJECTED_PERCENT: Final = 34  # of three or more hosts: with fewer, the last resort would be next
POOL_IDLE_S: Final = 60.0  # providers close at 60 s and more: the gateway goes first
KEEPALIVE_IDLE_S: Final = 30  # below the 60 s at which NAT gateways forget a quiet stream
KEEPALIVE_PROBES: Final = 3
KEEPALIVE_INTERVAL_S: Final = 10
RETRY_PERCENT: Final = 100.0  # of the provider's calls in flight
MIN_RETRIES: Final = 512  # at once, however few calls are in flight: all of them have failed
POOL_MIN: Final = 1_024  # Envoy's default
CONNECTION_BUFFER_BYTES: Final = 1_048_576
DNS_REFRESH_S: Final = 30.0
DNS_MIN_S: Final = 5.0  # some names have a TTL of 0
DNS_RETRY_BASE_S: Final = 1.0
DNS_RETRY_MAX_S: Final = 10.0


def clusters(config: Config, base: Path) -> list[Cluster]:
    """Build the processor's cluster and two per provider: its own and the one that translates."""
    providers = [
        _provider(name, provider, config, base, caller)
        for name, provider in config.providers.items()
        for caller in DIALECTS
    ]
    return [*processor_clusters(config), *providers]


def _provider(
    provider_name: str, provider: Provider, config: Config, base: Path, caller: Dialect
) -> Cluster:
    name = cluster_of(provider_name, provider.dialect, caller)
    translates = caller != provider.dialect
    to = upstream(provider.endpoint)
    # The gateway's own connection limit is the bound; a lower one here would refuse failover.
    pool = max(POOL_MIN, config.server.max_connections)
    options = _http(
        provider_name,
        provider,
        to,
        caller,
        held=_has_alternatives(provider_name, config),
        workers=config.server.workers,
    )
    return Cluster(
        name=name,
        type=ClusterDiscoveryType.STATIC if to.is_address else None,
        cluster_type=None if to.is_address else _dns(),
        connect_timeout=seconds(config.timeouts.connect),
        lb_policy=ClusterLbPolicy.LEAST_REQUEST,
        circuit_breakers=breakers(pool, _budget()),
        # A document is translated whole.
        per_connection_buffer_limit_bytes=(
            buffer_bytes(config) if translates else CONNECTION_BUFFER_BYTES
        ),
        load_assignment=_provider_endpoints(name, to),
        outlier_detection=_outliers(),
        upstream_connection_options=UpstreamConnectionOptions(
            tcp_keepalive=TcpKeepalive(
                keepalive_time=KEEPALIVE_IDLE_S,
                keepalive_probes=KEEPALIVE_PROBES,
                keepalive_interval=KEEPALIVE_INTERVAL_S,
            )
        ),
        transport_socket=_tls(to, provider, base) if to.https else None,
        typed_extension_protocol_options={HTTP_OPTIONS: Any.pack(options)},
    )


def _dns() -> ClusterCustomClusterType:
    return ClusterCustomClusterType(
        name="envoy.cluster.dns",
        typed_config=Any.pack(
            DnsCluster(
                dns_refresh_rate=seconds(DNS_REFRESH_S),
                respect_dns_ttl=True,
                dns_min_refresh_rate=seconds(DNS_MIN_S),
                dns_failure_refresh_rate=DnsClusterRefreshRate(
                    base_interval=seconds(DNS_RETRY_BASE_S), max_interval=seconds(DNS_RETRY_MAX_S)
                ),
                # Because a pod without IPv6 is usual, and localhost often resolves to ::1 first.
                dns_lookup_family=DnsLookupFamily.V4_PREFERRED,
            )
        ),
    )


def _has_alternatives(name: str, config: Config) -> bool:
    """Say whether a model has this provider and another target beside it.

    Holding headers costs Envoy 8 us a call and 16 MB a worker: where nobody else could answer it
    buys nothing.
    """
    return any(
        len(model.targets) > 1 and any(target.provider == name for target in model.targets)
        for model in config.models.values()
    )


def _http(
    name: str, provider: Provider, to: Upstream, caller: Dialect, *, held: bool, workers: int
) -> HttpProtocolOptions:
    options = HttpProtocolOptions(
        common_http_protocol_options=CommonOptions(idle_timeout=seconds(POOL_IDLE_S)),
        http_filters=provider_filters(name, provider, to, caller, held=held, workers=workers),
    )
    if to.https:
        options.auto_config = HttpProtocolOptionsAutoHttpConfig(
            http_protocol_options=Http1ProtocolOptions(),
            http2_protocol_options=Http2ProtocolOptions(),
        )
    else:
        options.explicit_http_config = HttpProtocolOptionsExplicitHttpConfig(
            http_protocol_options=Http1ProtocolOptions()
        )
    return options


def _tls(to: Upstream, provider: Provider, base: Path) -> TransportSocket:
    ca = operator_path(provider.ca_file, base) if provider.ca_file else SYSTEM_CA
    kind = SubjectAltNameMatcherSanType
    san = SubjectAltNameMatcher(
        san_type=kind.IP_ADDRESS if to.is_address else kind.DNS,
        matcher=StringMatcher(exact=to.host),
    )
    context = UpstreamTlsContext(
        sni="" if to.is_address else to.host,  # RFC 6066: names only
        common_tls_context=CommonTlsContext(
            tls_params=TlsParameters(tls_minimum_protocol_version=TlsParametersTlsProtocol.TLSv1_2),
            validation_context=CertificateValidationContext(
                trusted_ca=DataSource(filename=ca), match_typed_subject_alt_names=[san]
            ),
        ),
    )
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))


def _budget() -> CircuitBreakersThresholdsRetryBudget:
    """Bound the second attempts of calls that came to this provider first.

    Generous, because they are how a call survives its outage until its breaker opens.
    """
    return CircuitBreakersThresholdsRetryBudget(
        budget_percent=Percent(value=RETRY_PERCENT), min_retry_concurrency=MIN_RETRIES
    )


def _outliers() -> OutlierDetection:
    """Avoid one bad host of several. A lone host is always used: the plan decides on providers.

    Envoy counts a resolved name's last resort as a host: two hosts and it are three.
    """
    return OutlierDetection(
        consecutive_5xx=5,
        interval=seconds(10),
        base_ejection_time=seconds(10),
        max_ejection_time=seconds(60),
        max_ejection_percent=MAX_EJECTED_PERCENT,
    )


def _provider_endpoints(name: str, to: Upstream) -> ClusterLoadAssignment:
    assignment = endpoint(name, tcp(to.host, to.port))
    if not to.is_address:
        # A cluster without a host answers at once and ends the plan; one whose last resort refuses
        # the connection lets Envoy go on to the next provider.
        assignment.endpoints.append(hosts(tcp("127.0.0.1", CLOSED_PORT), priority=1))
    return assignment
