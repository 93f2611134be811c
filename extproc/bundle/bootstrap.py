"""bootstrap.yaml: who this Envoy is, where its files are, and the limits of the whole process.

Knows: node, admin, runtime and overload settings. Must not know: listeners, routes or providers.
"""

from __future__ import annotations

from typing import Final

from envoy_data_plane.envoy.config.bootstrap.v3 import (
    Admin,
    Bootstrap,
    BootstrapDynamicResources,
    LayeredRuntime,
    RuntimeLayer,
)
from envoy_data_plane.envoy.config.core.v3 import Address, Node, Pipe
from envoy_data_plane.envoy.config.overload.v3 import OverloadManager, ResourceMonitor
from envoy_data_plane.envoy.extensions.resource_monitors.downstream_connections.v3 import (
    DownstreamConnectionsConfig,
)
from envoy_data_plane.google.protobuf import Any, Struct

from extproc.bundle.messages import from_file, seconds
from extproc.schema import Config

ADMIN_SOCKET: Final = "envoy-admin.sock"  # a file, because who may open it is then who may open it
ADMIN_SOCKET_MODE: Final = 0o600
STATS_FLUSH_S: Final = 5.0  # no sink is configured; histograms are merged this often
CONNECTIONS_MONITOR: Final = "envoy.resource_monitors.global_downstream_max_connections"

RUNTIME: Final = {
    # Otherwise Envoy resets the processor's stream after its last message, which Python sees as a
    # cancellation and grpcio leaks (grpc#43360).
    "envoy.reloadable_features.ext_proc_graceful_grpc_close": True,
    # The expression for client headers to drop (edge.py) has 193 steps; Envoy's default is 100.
    "re2.max_program_size.error_level": 256,
}


def bootstrap(config: Config) -> Bootstrap:
    """Build the process configuration."""
    return Bootstrap(
        node=Node(id="llm-edge", cluster="llm-edge"),
        admin=Admin(
            address=Address(pipe=Pipe(path=ADMIN_SOCKET, mode=ADMIN_SOCKET_MODE)),
            ignore_global_conn_limit=True,  # because a full gateway is when one must look inside
        ),
        dynamic_resources=BootstrapDynamicResources(
            lds_config=from_file("lds.yaml"), cds_config=from_file("cds.yaml")
        ),
        layered_runtime=LayeredRuntime(
            layers=[RuntimeLayer(name="llm-edge", static_layer=Struct.from_dict(RUNTIME))]
        ),
        overload_manager=OverloadManager(
            resource_monitors=[
                ResourceMonitor(
                    name=CONNECTIONS_MONITOR,
                    typed_config=Any.pack(
                        DownstreamConnectionsConfig(
                            max_active_downstream_connections=config.server.max_connections
                        )
                    ),
                )
            ]
        ),
        stats_flush_interval=seconds(STATS_FLUSH_S),
    )
