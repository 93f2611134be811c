"""Envoy's own errors, said in the caller's error shape.

Knows: which of Envoy's reasons is which row of the error table. Must not know: routes, filters.
The processor's answers and direct responses pass the same place: every rule names a reason only
Envoy gives (response code details), so theirs match none and leave as they came.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
from envoy_data_plane.envoy.config.accesslog.v3 import (
    AccessLogFilter,
    AndFilter,
    ExtensionFilter,
    HeaderFilter,
    MetadataFilter,
    OrFilter,
)
from envoy_data_plane.envoy.config.core.v3 import SubstitutionFormatString
from envoy_data_plane.envoy.config.route.v3 import HeaderMatcher
from envoy_data_plane.envoy.extensions.access_loggers.filters.cel.v3 import ExpressionFilter
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    LocalReplyConfig,
    ResponseMapper,
)
from envoy_data_plane.envoy.type.matcher.v3 import (
    MetadataMatcher,
    MetadataMatcherPathSegment,
    StringMatcher,
    ValueMatcher,
)
from envoy_data_plane.google.protobuf import Any, Struct

from extproc.bundle.messages import header, inline
from extproc.bundle.places import CALL
from extproc.domain import Dialect
from extproc.errors import KINDS, anthropic_body, openai_body

RETRY_AFTER_S: Final = 1  # a restart of the processor or a full pool is over in about that
_DETAILS: Final = "response.code_details"
_ANTHROPIC: Final = "/v1/messages"
_MODELS: Final = "/v1/models"
_MESSAGES: Final = "/messages"


@dataclass(frozen=True, slots=True)
class Rule:
    """A CEL expression over Envoy's reason, and the row of the error table it stands for."""

    when: str
    code: str
    message: str
    again: bool = False  # worth trying again at once
    keeps_status: bool = False  # because Envoy's status says more than the table's


def _starts(*prefixes: str) -> str:
    return " || ".join(f'{_DETAILS}.startsWith("{prefix}")' for prefix in prefixes)


# `llm_edge` is what the processor calls its answers, `direct_response` the route table's.
_ENVOYS: Final = f'{_DETAILS} != "" && !({_starts("llm_edge", "direct_response")})'
_OVERFLOW: Final = (
    f'{_starts("upstream_reset_before_response_started")} && {_DETAILS}.contains("overflow")'
)

RULES: Final = (  # the first that matches speaks
    Rule(
        _starts("ext_proc"),
        "gateway_unavailable",
        "The gateway cannot decide on this request.",
        again=True,
    ),
    Rule(
        _starts("request_payload_too_large"),
        "request_too_large",
        "The request body is too large.",
    ),
    Rule(
        _starts("request_overall_timeout", "request_header_timeout"),
        "request_timeout",
        "The request did not arrive in time.",
    ),
    Rule(
        _starts("upstream_response_timeout", "response_timeout", "upstream_max_stream_duration"),
        "upstream_timeout",
        "The provider did not answer in time.",
    ),
    Rule(
        # The credential is the operator's: Envoy's 401 would tell callers theirs was bad.
        f"{_starts('no_healthy_upstream', 'cluster_not_found', 'maintenance_mode')}"
        f" || {_starts('failed_to_inject_credential')} || ({_OVERFLOW})",
        "no_healthy_provider",
        "No provider can take this request now.",
        again=True,
    ),
    # After the two above, which begin alike: what is left is a provider that broke off.
    Rule(_starts("upstream"), "upstream_error", "The provider failed to answer."),
    Rule(_starts("route_not_found"), "not_found", "There is no such endpoint."),
    # Unreadable requests, too many or too long headers (431), HTTP/1.0 (426), upgrades (403).
    Rule(
        f"response.code >= 400 && response.code < 500 && {_ENVOYS}",
        "invalid_request_error",
        "This is not a request the gateway can read.",
        keeps_status=True,
    ),
    Rule(
        f"response.code >= 500 && {_ENVOYS}",
        "gateway_unavailable",
        "The gateway cannot take this request now.",
        again=True,
        keeps_status=True,
    ),
)


def local_replies() -> LocalReplyConfig:
    """Build the table: each rule once for callers of the Anthropic API, once for the others."""
    dialects: tuple[Dialect, ...] = ("anthropic", "openai")
    return LocalReplyConfig(mappers=[_mapper(rule, one) for rule in RULES for one in dialects])


def _mapper(rule: Rule, dialect: Dialect) -> ResponseMapper:
    return ResponseMapper(
        filter=_when(rule.when, dialect),
        status_code=None if rule.keeps_status else KINDS[rule.code].status,
        headers_to_add=[header("retry-after", str(RETRY_AFTER_S))] if rule.again else [],
        body_format_override=_body(rule.code, rule.message, dialect),
    )


def _body(code: str, message: str, dialect: Dialect) -> SubstitutionFormatString:
    if dialect == "openai":
        text = openai_body(code, message, None).decode()
        return SubstitutionFormatString(
            text_format_source=inline(text), content_type="application/json"
        )
    # As a structure, because the request id is the client's text and must be escaped.
    shape = msgspec.json.decode(anthropic_body(code, message, "%REQ(X-REQUEST-ID)%"))
    return SubstitutionFormatString(
        json_format=Struct.from_dict(shape), content_type="application/json"
    )


def _when(expression: str, dialect: Dialect) -> AccessLogFilter:
    reason = AccessLogFilter(
        extension_filter=ExtensionFilter(
            name="envoy.access_loggers.extension_filters.cel",
            typed_config=Any.pack(ExpressionFilter(expression=expression)),
        )
    )
    if dialect == "openai":
        return reason
    unplanned = _all(_any(_path(_ANTHROPIC), _all(_path(_MODELS), _VERSION)), _unplanned())
    return _all(_any(_planned(), unplanned), reason)


# Of a planned call the path is the provider's by now, and may be of the other dialect.
def _planned() -> AccessLogFilter:
    return _suffix(StringMatcher(prefix=_MESSAGES), absent=False)


def _unplanned() -> AccessLogFilter:
    return _suffix(StringMatcher(exact="none"), absent=True)


def _suffix(matcher: StringMatcher, *, absent: bool) -> AccessLogFilter:
    """Match the suffix of the endpoint that was called; `absent` says what no plan means."""
    value = MetadataMatcher(
        filter=CALL,
        path=[MetadataMatcherPathSegment(key="suffix")],
        value=ValueMatcher(string_match=matcher),
    )
    return AccessLogFilter(
        metadata_filter=MetadataFilter(matcher=value, match_if_key_not_found=absent)
    )


def _path(prefix: str) -> AccessLogFilter:
    return _header(HeaderMatcher(name=":path", string_match=StringMatcher(prefix=prefix)))


def _header(matcher: HeaderMatcher) -> AccessLogFilter:
    return AccessLogFilter(header_filter=HeaderFilter(header=matcher))


def _all(*filters: AccessLogFilter) -> AccessLogFilter:
    return AccessLogFilter(and_filter=AndFilter(filters=list(filters)))


def _any(*filters: AccessLogFilter) -> AccessLogFilter:
    return AccessLogFilter(or_filter=OrFilter(filters=list(filters)))


# Both APIs list models at one path: Anthropic's callers name a version of it.
_VERSION: Final = _header(HeaderMatcher(name="anthropic-version", present_match=True))
