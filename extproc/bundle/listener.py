"""lds.yaml: the public listener and how HTTP is read on it.

Knows: sockets, HTTP limits and TLS. Must not know: providers, routes, what filters do.
"""

from __future__ import annotations

from typing import Final

from envoy_data_plane.envoy.config.core.v3 import (
    CidrRange,
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    HttpProtocolOptionsHeadersWithUnderscoresAction,
    SchemeHeaderTransformation,
    TcpKeepalive,
    TransportSocket,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerInternalAddressConfig,
    HttpConnectionManagerPathWithEscapedSlashesAction,
    HttpConnectionManagerServerHeaderTransformation,
    Rds,
    RequestIdExtension,
)
from envoy_data_plane.envoy.extensions.request_id.uuid.v3 import UuidRequestIdConfig
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CommonTlsContext,
    DownstreamTlsContext,
    SdsSecretConfig,
    TlsParameters,
    TlsParametersTlsProtocol,
)
from envoy_data_plane.google.protobuf import Any

from extproc.bundle.access_log import access_logs
from extproc.bundle.edge import early_mutations
from extproc.bundle.filters import http_filters
from extproc.bundle.messages import from_file, seconds
from extproc.bundle.places import ROUTES, TLS_FILE, TLS_SECRET, tcp
from extproc.bundle.replies import local_replies
from extproc.schema import Config, Server

READ_BUFFER_BYTES: Final = 1_048_576  # per connection and direction; request bodies have their own
MAX_HEADERS_KB: Final = 60  # Envoy's default, stated; above it is a 431
MAX_HEADERS: Final = 100
REQUEST_HEADERS_S: Final = 10.0  # a slow-loris is cut here
REQUEST_S: Final = 60.0  # the whole body: 10 MiB at 1.4 Mbit/s
STREAM_IDLE_S: Final = (
    300.0  # nothing at all for so long is a dead stream, thinking models included
)
CONNECTION_IDLE_S: Final = 600.0  # longer than usual clients keep theirs, so that they close first
CONNECTION_AGE_S: Final = 3600.0  # so that load spreads again after a gateway was added
STREAMS_PER_CONNECTION: Final = 100  # RFC 9113 asks for at least so many
STREAM_WINDOW_BYTES: Final = 262_144  # an upload of 2 Mbit/s at a second's distance
CONNECTION_WINDOW_BYTES: Final = 1_048_576
# A peer that makes Envoy queue more than this is not reading (CVE-2019-9512 to 9518).
MAX_OUTBOUND_FRAMES: Final = 10_000
MAX_OUTBOUND_CONTROL_FRAMES: Final = 1_000
MAX_EMPTY_FRAMES: Final = 1
MAX_PRIORITY_FRAMES: Final = 100
MAX_WINDOW_UPDATES: Final = 10
KEEPALIVE_IDLE_S: Final = 60


def listener(config: Config) -> Listener:
    """Build the one public listener: HTTP/1.1 and HTTP/2, over TLS where it is configured."""
    server = config.server
    chain = FilterChain(
        filters=[
            Filter(
                name="envoy.filters.network.http_connection_manager",
                typed_config=Any.pack(_manager(server)),
            )
        ],
        transport_socket=_tls() if server.tls else None,
    )
    return Listener(
        name="gateway",
        address=tcp(server.host, server.port),
        filter_chains=[chain],
        per_connection_buffer_limit_bytes=READ_BUFFER_BYTES,
        tcp_keepalive=TcpKeepalive(keepalive_time=KEEPALIVE_IDLE_S),
    )


def _manager(server: Server) -> HttpConnectionManager:
    return HttpConnectionManager(
        stat_prefix="gateway",
        rds=Rds(config_source=from_file("rds.yaml"), route_config_name=ROUTES),
        http_filters=http_filters(server),
        access_log=access_logs(server.workers),
        local_reply_config=local_replies(),
        early_header_mutation_extensions=early_mutations(),
        # Who calls is the address of the connection: X-Forwarded-For is anybody's to write.
        use_remote_address=True,
        xff_num_trusted_hops=server.trusted_hops,
        # Nobody is internal, because 127.0.0.1 and 10.0.0.0/8 are where callers come from. An empty
        # list means the private networks; the broadcast address can be nobody's.
        internal_address_config=HttpConnectionManagerInternalAddressConfig(
            cidr_ranges=[CidrRange(address_prefix="255.255.255.255", prefix_len=32)]
        ),
        normalize_path=True,
        merge_slashes=True,
        # A model id may hold a slash, which SDKs write %2F, so refusing it would hide such models;
        # a redirect makes every later reader see one spelling.
        path_with_escaped_slashes_action=(
            HttpConnectionManagerPathWithEscapedSlashesAction.UNESCAPE_AND_REDIRECT
        ),
        # A caller's id is kept where it is one, so that both logs can be put side by side.
        generate_request_id=True,
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        # Or Envoy would write its tracing's decision into every id of 36 characters, UUIDs or not.
        request_id_extension=RequestIdExtension(
            typed_config=Any.pack(
                UuidRequestIdConfig(
                    pack_trace_reason=False, use_request_id_for_trace_sampling=False
                )
            )
        ),
        strip_any_host_port=True,
        scheme_header_transformation=SchemeHeaderTransformation(match_upstream=True),
        server_name="llm-edge",
        server_header_transformation=HttpConnectionManagerServerHeaderTransformation.OVERWRITE,
        max_request_headers_kb=MAX_HEADERS_KB,
        request_headers_timeout=seconds(REQUEST_HEADERS_S),
        request_timeout=seconds(REQUEST_S),
        stream_idle_timeout=seconds(STREAM_IDLE_S),
        common_http_protocol_options=HttpProtocolOptions(
            idle_timeout=seconds(CONNECTION_IDLE_S),
            max_connection_duration=seconds(CONNECTION_AGE_S),
            max_headers_count=MAX_HEADERS,
            # x_llm_tier and x-llm-tier are one header to some upstreams (CGI's rule).
            headers_with_underscores_action=(
                HttpProtocolOptionsHeadersWithUnderscoresAction.REJECT_REQUEST
            ),
        ),
        http1_safe_max_connection_duration=True,  # no reset between two requests
        http_protocol_options=Http1ProtocolOptions(allow_chunked_length=False),
        http2_protocol_options=Http2ProtocolOptions(
            max_concurrent_streams=STREAMS_PER_CONNECTION,
            initial_stream_window_size=STREAM_WINDOW_BYTES,
            initial_connection_window_size=CONNECTION_WINDOW_BYTES,
            allow_connect=False,
            max_outbound_frames=MAX_OUTBOUND_FRAMES,
            max_outbound_control_frames=MAX_OUTBOUND_CONTROL_FRAMES,
            max_consecutive_inbound_frames_with_empty_payload=MAX_EMPTY_FRAMES,
            max_inbound_priority_frames_per_stream=MAX_PRIORITY_FRAMES,
            max_inbound_window_update_frames_per_data_frame_sent=MAX_WINDOW_UPDATES,
        ),
    )


def _tls() -> TransportSocket:
    secret = SdsSecretConfig(name=TLS_SECRET, sds_config=from_file(TLS_FILE))
    context = DownstreamTlsContext(
        common_tls_context=CommonTlsContext(
            tls_params=TlsParameters(
                tls_minimum_protocol_version=TlsParametersTlsProtocol.TLSv1_2,
            ),
            tls_certificate_sds_secret_configs=[secret],
            alpn_protocols=["h2", "http/1.1"],
        )
    )
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))
