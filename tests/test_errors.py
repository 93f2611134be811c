"""The error table and its rendering in both dialects."""

from __future__ import annotations

import json
from typing import Literal, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.errors import KINDS, Denied, anthropic_body, openai_body, render

STATUS = {
    "invalid_request_error": 400,
    "invalid_api_key": 401,
    "permission_denied": 403,
    "model_not_found": 404,
    "not_found": 404,
    "request_timeout": 408,
    "request_too_large": 413,
    "lossy_translation": 422,
    "rate_limit_exceeded": 429,
    "concurrency_limit_exceeded": 429,
    "insufficient_quota": 429,
    "internal_error": 500,
    "upstream_error": 502,
    "no_healthy_provider": 503,
    "store_unavailable": 503,
    "gateway_unavailable": 503,
    "not_cached": 504,
    "upstream_timeout": 504,
}
OPENAI_TYPES = {
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "rate_limit_error",
    "insufficient_quota",
    "server_error",
}
ANTHROPIC_TYPES = {  # Anthropic API reference, Errors
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "api_error",
    "overloaded_error",
}
JSON = ("content-type", b"application/json")


def test_the_statuses_are_those_of_the_contract() -> None:
    assert {code: kind.status for code, kind in KINDS.items()} == STATUS


@pytest.mark.parametrize("code", sorted(KINDS))
def test_every_code_has_types_both_apis_know(code: str) -> None:
    assert KINDS[code].openai_type in OPENAI_TYPES
    assert KINDS[code].anthropic_type in ANTHROPIC_TYPES
    assert Denied(code, "m").status == STATUS[code]


def test_an_openai_error_has_all_four_members() -> None:
    reply = render(Denied("model_not_found", "No such model.", param="model"), "openai", "r")
    assert (reply.status, reply.headers) == (404, (JSON,))
    assert json.loads(reply.body) == {
        "error": {
            "message": "No such model.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


def test_an_anthropic_error_names_the_request() -> None:
    reply = render(Denied("model_not_found", "No such model.", param="model"), "anthropic", "r-1")
    assert json.loads(reply.body) == {
        "type": "error",
        "error": {"type": "not_found_error", "message": "No such model."},
        "request_id": "r-1",
    }


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_a_key_in_the_place_of_a_name_is_not_repeated(dialect: str) -> None:
    denied = Denied("model_not_found", f"The model `sk_{'a' * 43}` does not exist.")
    body = render(denied, cast("Literal['openai']", dialect), "r").body
    assert b"The model `[redacted]` does not exist." in body


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("denied", "headers"),
    [
        pytest.param(
            Denied("rate_limit_exceeded", "m", retry_after_s=7),
            (JSON, ("retry-after", b"7")),
            id="when to come back",
        ),
        pytest.param(
            Denied("store_unavailable", "m", retry_after_s=0),
            (JSON, ("retry-after", b"0")),
            id="at once is a time too",
        ),
        pytest.param(
            Denied("invalid_api_key", "m"),
            (JSON, ("www-authenticate", b"Bearer")),
            id="how to authenticate",
        ),
        pytest.param(Denied("permission_denied", "m"), (JSON,), id="nothing more"),
    ],
)
def test_the_headers_of_a_refusal(
    denied: Denied, headers: tuple[tuple[str, bytes], ...], dialect: str
) -> None:
    own = (("request-id", b"r"),) if dialect == "anthropic" else ()
    expected = (headers[0], *own, *headers[1:])
    assert render(denied, cast("Literal['openai']", dialect), "r").headers == expected


@given(st.text(), st.text())
def test_no_message_breaks_the_encoding(message: str, other: str) -> None:
    error = json.loads(openai_body("not_found", message, other))["error"]
    assert (error["message"], error["param"]) == (message, other)
    document = json.loads(anthropic_body("not_found", message, other))
    assert (document["error"]["message"], document["request_id"]) == (message, other)


def test_a_refusal_says_what_it_is() -> None:
    assert repr(Denied("not_found", "Gone.")) == "Denied('not_found', 'Gone.')"
