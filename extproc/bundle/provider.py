"""The filters of one provider's cluster: what turns a call into that provider's request.

Knows: the provider's address and where its credential is. Must not know: other providers, routes.
They run once per attempt on the same header map, so every value is set absolutely.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutation
from envoy_data_plane.envoy.extensions.filters.http.credential_injector.v3 import (
    CredentialInjector,
)
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import (
    HeaderMutation as HeaderMutationFilter,
)
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import Mutations
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua
from envoy_data_plane.envoy.extensions.filters.http.upstream_codec.v3 import UpstreamCodec
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.extensions.http.injected_credentials.generic.v3 import Generic
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import SdsSecretConfig

from extproc.bundle import hold
from extproc.bundle.edge import OWN, remove_prefix
from extproc.bundle.filters import lua
from extproc.bundle.messages import default_header, extension, from_file, header, http_filter
from extproc.bundle.places import (
    CALL,
    MODEL_HEADER,
    RECORD_KEY,
    RESETS_HEADER,
    SERVED,
    WORKER_HEADER,
    Upstream,
    secret_file,
)
from extproc.bundle.translate import translate, watch
from extproc.domain import Dialect, cluster_of
from extproc.record import beginning
from extproc.schema import Provider

# The caller's, or about the caller: a provider learns neither. `openai-*` would choose the
# operator's organisation, and with it who pays.
NOT_SENT: Final = (
    "authorization",
    "proxy-authorization",
    "x-api-key",
    "api-key",
    "cookie",
    "forwarded",
    "via",
    "x-real-ip",
    "true-client-ip",
    "origin",
    "referer",
    "openai-organization",
    "openai-project",
    "accept-encoding",  # because usage is read from the answer as it passes
)
NOT_SENT_PREFIXES: Final = ("x-llm-", "x-envoy-", "x-forwarded-")
# The operator's account, or the provider's plumbing: callers have limits of their own.
NOT_RETURNED: Final = (
    "set-cookie",
    "server",
    "via",
    "alt-svc",
    "openai-organization",
    "openai-project",
    "anthropic-organization-id",
    "cache-status",  # of a cache at the provider; ours says what became of the call here
    "age",
    "cf-ray",
    "cf-cache-status",
    "strict-transport-security",
    "x-request-id",
    "request-id",
)
CREDENTIALS: Final[Mapping[Dialect, tuple[str, str]]] = {  # header, and what precedes the key
    "anthropic": ("x-api-key", ""),
    "openai": ("authorization", "Bearer "),
}
# Where a provider takes what is translated for it.
TRANSLATED_SUFFIX: Final[Mapping[Dialect, str]] = {
    "anthropic": "/messages",
    "openai": "/chat/completions",
}
ANTHROPIC_VERSION: Final = "2023-06-01"  # whose shapes `dialects` translates to
NOT_RETURNED_PREFIXES: Final = (
    *("x-ratelimit-", "anthropic-ratelimit-", "x-envoy-"),
    "access-control-",  # which pages may read our answers is the operator's to say
)
# Remaining and reset of each limit, as policies/cooling.py reads them.
_RESETS: Final[Mapping[Dialect, str]] = {
    "openai": ";".join(
        f"%RESP(x-ratelimit-{what}-{limit})%"
        for limit in ("requests", "tokens")
        for what in ("remaining", "reset")
    ),
    "anthropic": ";".join(
        f"%RESP(anthropic-ratelimit-{limit}-{what})%"
        for limit in ("requests", "tokens", "input-tokens", "output-tokens")
        for what in ("remaining", "reset")
    ),
}


def provider_filters(
    name: str,
    provider: Provider,
    to: Upstream,
    caller: Dialect,
    *,
    held: bool,
    workers: int = 1,
) -> list[HttpFilter]:
    """List the filters of the provider's cluster for callers of one dialect, in order.

    `held`: where another target could answer. `workers`: how many processes share the planning.
    """
    filters = [
        # First, because answers pass it last: it holds what the others have made of one.
        *([http_filter(hold.NAME, hold.hold())] if held else ()),
        # Before the headers, because it reads the attempt's number, which they take off. It sets
        # path and host too, because a header mutation may not touch those.
        http_filter("llm-edge.address", _address(provider, to, caller)),
        # Before the headers, because on the way back it adds one of ours to what those leave.
        *_processed(provider, caller, workers),
        http_filter(
            "llm-edge.headers",
            HeaderMutationFilter(mutations=_mutations(name, provider, workers)),
        ),
    ]
    if provider.api_key is not None:
        # After the headers, because those take the caller's credential off.
        filters.append(
            http_filter(
                "llm-edge.credential",
                _credential(cluster_of(name, provider.dialect, caller), provider.dialect),
            )
        )
    filters.append(http_filter("envoy.filters.http.upstream_codec", UpstreamCodec()))  # it sends
    return filters


def _processed(provider: Provider, caller: Dialect, workers: int) -> tuple[HttpFilter, ...]:
    if caller != provider.dialect:
        return (translate(workers),)
    return (watch(workers),) if provider.stall_events else ()


def _address(provider: Provider, to: Upstream, caller: Dialect) -> Lua:
    if caller == provider.dialect:
        constants = {"BASE_PATH": to.base_path, "AUTHORITY": to.authority}
        return lua("provider.lua", constants=constants)
    path = to.base_path + TRANSLATED_SUFFIX[provider.dialect]
    return lua("translated.lua", constants={"PATH": path, "AUTHORITY": to.authority})


# Milliseconds (W3C Server Timing): here until the last attempt was sent, and its provider until its
# first byte.
SERVER_TIMING: Final = (
    "gateway;dur=%COMMON_DURATION(DS_RX_BEG:US_TX_BEG:ms)%, "
    "provider;dur=%COMMON_DURATION(US_TX_BEG:US_RX_BEG:ms)%"
)


def _mutations(name: str, provider: Provider, workers: int) -> Mutations:
    # Because Anthropic refuses a request without one; callers of its API name their own.
    version = HeaderMutation(append=default_header("anthropic-version", ANTHROPIC_VERSION))
    planned_by = f"%DYNAMIC_METADATA({CALL}:{RECORD_KEY}):{len(beginning(0))}%"
    return Mutations(
        request_mutations=[
            *map(remove_prefix, NOT_SENT_PREFIXES),
            *(HeaderMutation(remove=key) for key in NOT_SENT),
            # For the log of failed attempts, which sees an attempt's headers but not the plan.
            _set(MODEL_HEADER, f"%DYNAMIC_METADATA({SERVED}:model)%"),
            *([_set(WORKER_HEADER, planned_by)] if workers > 1 else ()),
            *([version] if provider.dialect == "anthropic" else ()),
        ],
        response_mutations=[
            remove_prefix(OWN),
            _set(RESETS_HEADER, _RESETS[provider.dialect]),  # before they are gone
            *map(remove_prefix, NOT_RETURNED_PREFIXES),
            *(HeaderMutation(remove=key) for key in NOT_RETURNED),
            # Here and not on the route, because only answers of a provider pass here.
            _set("x-llm-provider", name),
            _set("x-llm-model", f"%DYNAMIC_METADATA({SERVED}:model)%"),
            _set("x-llm-attempts", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
            _set("server-timing", SERVER_TIMING),
        ],
    )


def _set(key: str, value: str) -> HeaderMutation:
    return HeaderMutation(append=header(key, value))


def _credential(cluster: str, dialect: Dialect) -> CredentialInjector:
    key, prefix = CREDENTIALS[dialect]
    secret = SdsSecretConfig(name=cluster, sds_config=from_file(secret_file(cluster)))
    return CredentialInjector(
        overwrite=True,
        credential=extension(
            "envoy.http.injected_credentials.generic",
            Generic(credential=secret, header=key, header_value_prefix=prefix),
        ),
    )
