"""rds.yaml: which requests are the gateway's, and what becomes of each.

Knows: the public routes, retries and buffers. Must not know: providers, filters' insides.
"""

from __future__ import annotations

from typing import Final

from envoy_data_plane.envoy.config.core.v3 import (
    DataSource,
    HeaderValueOption,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.route.v3 import (
    ClusterSpecifierPlugin,
    DirectResponseAction,
    HeaderMatcher,
    RetryPolicy,
    RetryPolicyRetryBackOff,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import ExtProcPerRoute
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import LuaPerRoute
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.google.protobuf import Any

from extproc.answers import STATUS_HEADER
from extproc.bundle.cors import cors_policy
from extproc.bundle.filters import DECIDE, PROBE
from extproc.bundle.limits import buffer_bytes
from extproc.bundle.messages import (
    ClusterWeight,
    PriorityGroup,
    PriorityGroupClusterSpecifier,
    extension,
    header,
    seconds,
)
from extproc.bundle.places import LIMITS, NO_PLAN, PLAN, RESETS_HEADER, ROUTES
from extproc.domain import ENDPOINTS, MODELS_PATH, Dialect
from extproc.errors import KINDS, anthropic_body, openai_body
from extproc.policies.limit_headers import header_names
from extproc.schema import Config

ANTHROPIC_PATH: Final = "/v1/messages"
HEALTHY: Final = b'{"status":"ok"}'
JSON: Final = header("content-type", "application/json")
NOT_FOUND: Final = "There is no such endpoint."
BACKOFF_BASE_S: Final = 0.025  # the next attempt is another provider: waiting longer helps nobody
BACKOFF_MAX_S: Final = 0.25
HOST_ATTEMPTS: Final = 3  # hosts of one cluster looked at for a retry


def routes(config: Config) -> RouteConfiguration:
    """Build the one virtual host. Any Host is served, because nothing is decided by it."""
    idle_s = config.timeouts.silence_s
    planned = [
        _planned(_exact(method, path), path, idle_s, endpoint.dialect)
        for (method, path), endpoint in ENDPOINTS.items()
    ]
    table = [
        *([_preflights(idle_s)] if config.server.cors.allow_origins else []),
        *planned,
        _planned(_exact("GET", MODELS_PATH), MODELS_PATH, idle_s),
        _planned(_under("GET", MODELS_PATH + "/"), MODELS_PATH + "/{id}", idle_s),
        _direct(_exact("GET", "/healthz"), "healthz", 200, HEALTHY),
        # Because a prefix would also take /v1/messagesX, the path and what is under it are two.
        _missing(RouteMatch(path=ANTHROPIC_PATH), "anthropic"),
        _missing(RouteMatch(prefix=ANTHROPIC_PATH + "/"), "anthropic"),
        _missing(RouteMatch(prefix="/"), "openai"),
    ]
    return RouteConfiguration(
        name=ROUTES,
        virtual_hosts=[
            VirtualHost(
                name="gateway",
                domains=["*"],
                routes=table,
                include_request_attempt_count=True,  # the provider filter reads it
                response_headers_to_remove=[RESETS_HEADER],
                request_body_buffer_limit=buffer_bytes(config),
                typed_per_filter_config=cors_policy(config.server.cors),
            )
        ],
    )


def _method(method: str) -> list[HeaderMatcher]:
    return [HeaderMatcher(name=":method", string_match=StringMatcher(exact=method))]


def _exact(method: str, path: str) -> RouteMatch:
    return RouteMatch(path=path, headers=_method(method))


def _under(method: str, prefix: str) -> RouteMatch:
    return RouteMatch(prefix=prefix, headers=_method(method))


def _preflights(idle_s: float) -> Route:
    """Give the CORS filter a route to answer for: it says nothing on direct responses.

    It answers every preflight, of the other origins too, so nothing is ever sent from here.
    """
    asked = [
        HeaderMatcher(name=name, present_match=True)
        for name in ("origin", "access-control-request-method")
    ]
    match = RouteMatch(prefix="/", headers=[*_method("OPTIONS"), *asked])
    route = _planned(match, "preflight", idle_s)
    route.typed_per_filter_config = _untouched()
    return route


def _planned(match: RouteMatch, name: str, idle_s: float, dialect: Dialect | None = None) -> Route:
    return Route(
        name=name,
        match=match,
        response_headers_to_add=_response_headers(dialect) if dialect else [],
        route=RouteAction(
            inline_cluster_specifier_plugin=ClusterSpecifierPlugin(extension=_plan()),
            timeout=seconds(0),  # the processor's header bounds all attempts together
            idle_timeout=seconds(idle_s),
            retry_policy=_retries(),
        ),
    )


def _response_headers(dialect: Dialect) -> list[HeaderValueOption]:
    told = [_told(key) for key in (*header_names(dialect), STATUS_HEADER)]
    if dialect == "anthropic":
        # What Anthropic's clients call the id of a request.
        return [header("request-id", "%REQ(X-REQUEST-ID)%"), *told]
    return told


def _told(key: str) -> HeaderValueOption:
    """Add a header where the processor left its value with the plan."""
    return header(key, f"%DYNAMIC_METADATA({LIMITS}:{key})%")


def _plan() -> TypedExtensionConfig:
    return extension(
        "envoy.router.cluster_specifier_plugin.priority_group",
        PriorityGroupClusterSpecifier(
            priority_groups=[
                PriorityGroup(
                    name="no-plan", clusters=[ClusterWeight(cluster_name=NO_PLAN, weight=1)]
                )
            ],
            override_metadata_namespace=PLAN,
        ),
    )


def _retries() -> RetryPolicy:
    return RetryPolicy(
        # `reset` is a break before any response header; after one nothing is ever tried again.
        retry_on="5xx,reset,connect-failure,retriable-status-codes",
        retriable_status_codes=[429],
        num_retries=0,  # the processor's header gives the number of planned attempts
        refresh_cluster_on_retry=True,  # attempt n goes to group n
        host_selection_retry_max_attempts=HOST_ATTEMPTS,
        retry_back_off=RetryPolicyRetryBackOff(
            base_interval=seconds(BACKOFF_BASE_S), max_interval=seconds(BACKOFF_MAX_S)
        ),
    )


def _direct(match: RouteMatch, name: str, status: int, body: bytes) -> Route:
    return Route(
        name=name,
        match=match,
        direct_response=DirectResponseAction(
            status=status, body=DataSource(inline_string=body.decode())
        ),
        response_headers_to_add=[JSON],
        typed_per_filter_config=_untouched(),
    )


def _untouched() -> dict[str, Any]:
    """Keep a request from the processor and its answer from the probe."""
    return {
        DECIDE: Any.pack(ExtProcPerRoute(disabled=True)),
        PROBE: Any.pack(LuaPerRoute(disabled=True)),
    }


def _missing(match: RouteMatch, dialect: str) -> Route:
    code = "not_found"
    if dialect == "anthropic":
        body = anthropic_body(code, NOT_FOUND, "")
    else:
        body = openai_body(code, NOT_FOUND, None)
    return _direct(match, f"not-found-{dialect}", KINDS[code].status, body)
