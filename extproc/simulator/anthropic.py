"""The Anthropic dialect: which request is which, what is wrong with it, and errors in its words.

Knows paths, validation and error bodies (https://docs.anthropic.com/en/api/errors). Knows no
sockets, no pacing and not how answers are written: that is in `anthropic_messages`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from extproc.simulator import anthropic_messages
from extproc.simulator.behaviour import UNREADABLE, Behaviour
from extproc.simulator.dialect import Call, Fault, Stamp, Whole

INVALID = "invalid_request_error"
MODELS_PATH = "/v1/models"
MODEL_PREFIX = "/v1/models/"
MODELS_CREATED = "2025-02-19T00:00:00Z"  # any fixed day in the past
VERSION_HEADER = "anthropic-version"

# By status: type and message.
_FAULTS = {
    400: (INVALID, "Simulated: the request is invalid."),
    401: ("authentication_error", "invalid x-api-key"),
    402: ("billing_error", "Simulated: a payment problem."),
    403: ("permission_error", "Simulated: no permission to use the resource."),
    404: ("not_found_error", "Simulated: not found."),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "Simulated: this request would exceed the rate limit."),
    500: ("api_error", "Internal server error"),
    504: ("timeout_error", "Simulated: the request timed out."),
    529: ("overloaded_error", "Overloaded"),
}
_OTHER_FAULT = {4: (INVALID, "Simulated: refused."), 5: ("api_error", "Simulated.")}
_NOT_JSON = Fault(400, "The request body is not valid JSON", INVALID)


class _Endpoint(NamedTuple):
    decode: Callable[[bytes], Any]
    required: tuple[str, ...]
    call: Callable[[Any], Call]


_ENDPOINTS = {
    "/v1/messages": _Endpoint(
        msgspec.json.Decoder(anthropic_messages.MessagesRequest).decode,
        ("model", "max_tokens", "messages"),
        anthropic_messages.messages,
    ),
    "/v1/messages/count_tokens": _Endpoint(
        msgspec.json.Decoder(anthropic_messages.CountRequest).decode,
        ("model", "messages"),
        anthropic_messages.count_tokens,
    ),
}


class Anthropic:
    """The Anthropic wire format, answering for any model and listing `models`."""

    def __init__(self, models: Sequence[str]) -> None:
        self._models = {
            name: {
                "type": "model",
                "id": name,
                "display_name": name,
                "created_at": MODELS_CREATED,
            }
            for name in models
        }

    def credential(self, headers: Mapping[str, str]) -> str | None:
        """Return the API key, if any."""
        return headers.get("x-api-key")

    def check(self, headers: Mapping[str, str]) -> Fault | None:
        """Refuse what has no version, as Anthropic does."""
        if VERSION_HEADER in headers:
            return None
        return Fault(400, f"{VERSION_HEADER}: header is required", INVALID)

    def read(self, method: str, path: str, body: bytes) -> Call | Fault:
        """Understand a request, or refuse it as Anthropic does."""
        endpoint = _ENDPOINTS.get(path)
        if endpoint is not None:
            return _post(endpoint, body) if method == "POST" else _wrong_method()
        if path == MODELS_PATH or path.startswith(MODEL_PREFIX):
            return self._read_models(path) if method == "GET" else _wrong_method()
        return Fault(404, "Not Found", "not_found_error")

    def fault(self, status: int) -> Fault:
        """Return the error Anthropic sends with `status`."""
        kind, message = _FAULTS.get(status) or _OTHER_FAULT[status // 100]
        return Fault(status, message, kind)

    def bad_request(self, message: str) -> Fault:
        """Return a 400 that says `message`."""
        return Fault(400, message, INVALID)

    def encode(self, fault: Fault, token: str) -> bytes:
        """Return the JSON body of an error."""
        error = {"type": fault.type, "message": fault.message}
        return msgspec.json.encode(
            {"type": "error", "error": error, "request_id": f"req_{token}" if token else None}
        )

    def identify(self, token: str, elapsed_ms: int) -> bytes:
        """Return the headers of every answer."""
        del elapsed_ms  # Anthropic does not say
        return f"request-id: req_{token}\r\nanthropic-organization-id: org_sim\r\n".encode()

    def _read_models(self, path: str) -> Call | Fault:
        if path == MODELS_PATH:
            names = list(self._models)
            page = {
                "data": list(self._models.values()),
                "has_more": False,
                "first_id": names[0] if names else None,
                "last_id": names[-1] if names else None,
            }
            return _constant(page)
        name = unquote(path.removeprefix(MODEL_PREFIX))
        model = self._models.get(name)
        if model is None:
            return Fault(404, f"model: {name}", "not_found_error")
        return _constant(model, name)


def _post(endpoint: _Endpoint, body: bytes) -> Call | Fault:
    try:
        return endpoint.call(endpoint.decode(body))
    except msgspec.ValidationError as error:
        return _invalid(str(error), body, endpoint.required)
    except UNREADABLE:
        return _NOT_JSON


def _invalid(message: str, body: bytes, required: tuple[str, ...]) -> Fault:
    """Find the missing field first: decoding stops at the first wrong one, in the body's order."""
    try:
        fields = msgspec.json.decode(body)
    except UNREADABLE:
        return _NOT_JSON
    if isinstance(fields, dict):
        for name in required:
            if name not in fields:
                return Fault(400, f"{name}: Field required", INVALID)
    reason, _, path = message.partition(" - at `$")
    place = path.rstrip("`").removeprefix(".").replace("[", ".").replace("]", "")
    return Fault(400, f"{place}: {reason}" if place else reason, INVALID)


def _wrong_method() -> Fault:
    return Fault(405, "Method Not Allowed", INVALID)


def _constant(value: object, model: str | None = None) -> Call:
    return Call(partial(_whole, msgspec.json.encode(value)), model)


def _whole(body: bytes, behaviour: Behaviour, stamp: Stamp) -> Whole:
    del behaviour, stamp  # a list of models has no tokens to misreport and no id
    return Whole(body)
