"""Envoy configurations of the rungs that are not the product: the JSON mock, bare, and no-op.

Pure: numbers in, plain dictionaries out. Every Envoy of a run gets the same `--concurrency`, 2: one
worker a core of the measured machine, which is Envoy's own default there.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.processes import HOST

TYPE_URL = "type.googleapis.com/"
HTTP = TYPE_URL + "envoy.extensions.filters.http."
CONCURRENCY = 2
MAX_BODY_BYTES = 16 * 1024 * 1024  # above the largest prompt measured
MANY = 100_000  # circuit breakers must not be what is measured
STREAM_HEADER = "x-bench-stream"  # rungs 2 and 3 route on it; the product routes on the model

Config = dict[str, Any]

ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench0000000000000000000001",
        "object": "chat.completion",
        "created": 1_750_000_000,
        "model": "bench-model",
        "system_fingerprint": "fp_bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The answer is forty-two. " * 4},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 210, "completion_tokens": 28, "total_tokens": 238},
    }
)


def argv(config: Path) -> list[str]:
    """Return the command line of an Envoy that reads `config`."""
    return [
        str(Path(sys.executable).with_name("envoy")),
        *("-c", str(config), "--concurrency", str(CONCURRENCY)),
        *("--disable-hot-restart", "--log-level", "warning"),
    ]


def mock(port: int) -> Config:
    """Answer every request with one chat completion once its whole body has been read.

    Without the buffer filter Envoy would answer at the headers and close the connection.
    """
    wait_for_body = _named(
        "envoy.filters.http.buffer", HTTP + "buffer.v3.Buffer", max_request_bytes=MAX_BODY_BYTES
    )
    content_type = {
        "header": {"key": "content-type", "value": "application/json"},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
    route: Config = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": ANSWER}},
        "response_headers_to_add": [content_type],
    }
    return _bootstrap([_listener(port, [route], [wait_for_body])], [])


def bare(port: int, json_port: int, sse_port: int) -> Config:
    """Rung 2: a plain reverse proxy."""
    routes: list[Config] = [
        {
            "match": {"prefix": "/", "headers": [{"name": STREAM_HEADER, "present_match": True}]},
            "route": {"cluster": "sse", "timeout": "0s"},
        },
        {"match": {"prefix": "/"}, "route": {"cluster": "json", "timeout": "0s"}},
    ]
    return _bootstrap([_listener(port, routes, [])], _upstreams(json_port, sse_port))


def noop(port: int, json_port: int, sse_port: int, socket_path: str) -> Config:
    """Rung 3: the product's request path (headers, buffered body, planned cluster), no policy."""
    decide = _named(
        "envoy.filters.http.ext_proc",
        HTTP + "ext_proc.v3.ExternalProcessor",
        grpc_service={"envoy_grpc": {"cluster_name": "ext_proc"}},
        message_timeout="10s",
        processing_mode={
            "request_header_mode": "SEND",
            "request_body_mode": "BUFFERED",
            "response_header_mode": "SKIP",
            "response_body_mode": "NONE",
        },
        metadata_options={"receiving_namespaces": {"untyped": ["llm"]}},
    )
    planned = _named(
        "envoy.router.cluster_specifier_plugin.priority_group",
        TYPE_URL + "envoy.extensions.router.cluster_specifiers"
        ".priority_group.v3.PriorityGroupClusterSpecifier",
        priority_groups=[{"name": "sse", "clusters": [{"cluster_name": "sse", "weight": 1}]}],
        override_metadata_namespace="llm",
    )
    routes: list[Config] = [
        {
            "match": {"prefix": "/", "headers": [{"name": STREAM_HEADER, "present_match": True}]},
            "route": {"cluster": "sse", "timeout": "0s"},
        },
        {
            "match": {"prefix": "/"},
            "route": {"inline_cluster_specifier_plugin": {"extension": planned}, "timeout": "0s"},
        },
    ]
    processor = _cluster("ext_proc", {"pipe": {"path": socket_path}}, http2=True)
    clusters = [*_upstreams(json_port, sse_port), processor]
    return _bootstrap([_listener(port, routes, [decide])], clusters)


def _upstreams(json_port: int, sse_port: int) -> list[Config]:
    return [_cluster("json", _address(json_port)), _cluster("sse", _address(sse_port))]


def _named(name: str, url: str, **config: Any) -> Config:
    return {"name": name, "typed_config": {"@type": url, **config}}


def _address(port: int) -> Config:
    return {"socket_address": {"address": HOST, "port_value": port}}


def _cluster(name: str, address: Mapping[str, Any], *, http2: bool = False) -> Config:
    url = TYPE_URL + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    protocol: Config = {"http2_protocol_options" if http2 else "http_protocol_options": {}}
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), MANY)
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "per_connection_buffer_limit_bytes": MAX_BODY_BYTES,
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": url,
                "explicit_http_config": protocol,
            }
        },
    }


def _listener(port: int, routes: list[Config], filters: list[Config]) -> Config:
    router = _named("envoy.filters.http.router", HTTP + "router.v3.Router")
    manager = _named(
        "envoy.filters.network.http_connection_manager",
        TYPE_URL + "envoy.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        stat_prefix="bench",
        route_config={
            "name": "bench",
            "virtual_hosts": [{"name": "bench", "domains": ["*"], "routes": routes}],
        },
        http_filters=[*filters, router],
    )
    return {
        "name": "bench",
        "address": _address(port),
        "per_connection_buffer_limit_bytes": MAX_BODY_BYTES,
        "filter_chains": [{"filters": [manager]}],
    }


def _bootstrap(listeners: list[Config], clusters: list[Config]) -> Config:
    flags = {"envoy.reloadable_features.ext_proc_graceful_grpc_close": True}
    return {
        "layered_runtime": {"layers": [{"name": "static", "static_layer": flags}]},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }
