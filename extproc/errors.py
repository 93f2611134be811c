"""The one expected error and its rendering in each dialect.

Knows: statuses, codes and the callers' error shapes. Must not know: who raised it or the wire.
Shapes: OpenAI error object; Anthropic error object (their API references).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from extproc.domain import Dialect, Reply
from extproc.redact import redact


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the error table."""

    status: int
    openai_type: str
    anthropic_type: str


KINDS: Final[dict[str, Kind]] = {
    "invalid_request_error": Kind(400, "invalid_request_error", "invalid_request_error"),
    "invalid_api_key": Kind(401, "authentication_error", "authentication_error"),
    "permission_denied": Kind(403, "permission_error", "permission_error"),
    "model_not_found": Kind(404, "invalid_request_error", "not_found_error"),
    "not_found": Kind(404, "invalid_request_error", "not_found_error"),
    "request_timeout": Kind(408, "invalid_request_error", "invalid_request_error"),
    "request_too_large": Kind(413, "invalid_request_error", "request_too_large"),
    "lossy_translation": Kind(422, "invalid_request_error", "invalid_request_error"),
    "rate_limit_exceeded": Kind(429, "rate_limit_error", "rate_limit_error"),
    "concurrency_limit_exceeded": Kind(429, "rate_limit_error", "rate_limit_error"),
    "insufficient_quota": Kind(429, "insufficient_quota", "rate_limit_error"),
    "internal_error": Kind(500, "server_error", "api_error"),
    "upstream_error": Kind(502, "server_error", "api_error"),
    "no_healthy_provider": Kind(503, "server_error", "overloaded_error"),
    "store_unavailable": Kind(503, "server_error", "api_error"),
    "gateway_unavailable": Kind(503, "server_error", "api_error"),
    "not_cached": Kind(504, "invalid_request_error", "invalid_request_error"),
    "upstream_timeout": Kind(504, "server_error", "api_error"),
}


class Denied(Exception):
    """Refuse a call. `code` is a key of `KINDS`; `retry_after_s` becomes `Retry-After`.

    `headers` go on the answer beside those every refusal has.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        headers: tuple[tuple[str, bytes], ...] = (),
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = headers

    @property
    def status(self) -> int:
        """Return the HTTP status of this refusal."""
        return KINDS[self.code].status


def openai_body(code: str, message: str, param: str | None) -> bytes:
    """Encode the OpenAI error object."""
    error = {
        "message": message,
        "type": KINDS[code].openai_type,
        "param": param,
        "code": code,
    }
    return msgspec.json.encode({"error": error})


def anthropic_body(code: str, message: str, request_id: str) -> bytes:
    """Encode the Anthropic error object."""
    error = {"type": KINDS[code].anthropic_type, "message": message}
    return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})


def render(denied: Denied, dialect: Dialect, request_id: str) -> Reply:
    """Turn a refusal into the answer the caller's client library expects."""
    # Because a message may repeat what a caller named, and some put their key where a name goes.
    message = redact(denied.message)
    if dialect == "anthropic":
        body = anthropic_body(denied.code, message, request_id)
    else:
        body = openai_body(denied.code, message, denied.param)
    headers: tuple[tuple[str, bytes], ...] = (("content-type", b"application/json"),)
    headers += denied.headers
    if dialect == "anthropic":
        headers += (("request-id", request_id.encode()),)  # what its clients call the id
    if denied.retry_after_s is not None:
        headers += (("retry-after", str(denied.retry_after_s).encode()),)
    if denied.status == KINDS["invalid_api_key"].status:
        headers += (("www-authenticate", b"Bearer"),)
    return Reply(denied.status, body, headers)
