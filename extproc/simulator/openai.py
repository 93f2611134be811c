"""The OpenAI dialect: which request is which, what is wrong with it, and errors in OpenAI's words.

Knows paths, validation and error bodies (https://platform.openai.com/docs/api-reference). Knows no
sockets, no pacing and not how answers are written: that is in `openai_chat`, `openai_responses` and
`openai_embeddings`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from extproc.simulator import openai_chat, openai_embeddings, openai_responses
from extproc.simulator.behaviour import UNREADABLE, Behaviour
from extproc.simulator.dialect import Call, Fault, Stamp, Whole

INVALID = "invalid_request_error"
MODELS_PATH = "/v1/models"
MODEL_PREFIX = "/v1/models/"
MODELS_CREATED = 1_700_000_000  # any fixed day in the past

# By status: type, code and message.
_FAULTS = {
    400: (INVALID, None, "Simulated: the request is invalid."),
    401: (INVALID, "invalid_api_key", "Incorrect API key provided."),
    403: (INVALID, "permission_denied", "Simulated: no access to this model."),
    404: (INVALID, "model_not_found", "Simulated: the model does not exist."),
    413: (INVALID, "request_too_large", "Simulated: the request is too large."),
    429: ("requests", "rate_limit_exceeded", "Simulated: rate limit reached for requests."),
    500: ("server_error", None, "Simulated: the server had an error."),
    502: ("server_error", None, "Simulated: bad gateway."),
    503: ("server_error", "service_unavailable", "Simulated: the engine is overloaded."),
    504: ("server_error", "timeout", "Simulated: the server did not answer in time."),
}
_NOT_JSON = Fault(400, "We could not parse the JSON body of your request.", INVALID)
_OTHER_FAULT = {4: (INVALID, None, "Simulated: refused."), 5: ("server_error", None, "Simulated.")}


class _Endpoint(NamedTuple):
    decode: Callable[[bytes], Any]
    required: tuple[str, ...]
    call: Callable[[Any], Call | Fault]


def _endpoint(kind: type, required: tuple[str, ...], call: Callable[[Any], Call]) -> _Endpoint:
    return _Endpoint(msgspec.json.Decoder(kind).decode, required, call)


_ENDPOINTS = {
    "/v1/chat/completions": _endpoint(
        openai_chat.ChatRequest, ("model", "messages"), openai_chat.chat
    ),
    "/v1/completions": _endpoint(
        openai_chat.CompletionRequest, ("model", "prompt"), openai_chat.completion
    ),
    "/v1/embeddings": _endpoint(
        openai_embeddings.EmbeddingsRequest, ("model", "input"), openai_embeddings.embeddings
    ),
    "/v1/responses": _endpoint(
        openai_responses.ResponsesRequest, ("model", "input"), openai_responses.respond
    ),
}


class OpenAI:
    """The OpenAI wire format, answering for any model and listing `models`."""

    def __init__(self, models: Sequence[str]) -> None:
        self._models = {
            name: {"id": name, "object": "model", "created": MODELS_CREATED, "owned_by": "sim"}
            for name in models
        }

    def credential(self, headers: Mapping[str, str]) -> str | None:
        """Return the bearer token, if any."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None

    def check(self, headers: Mapping[str, str]) -> Fault | None:
        """Find nothing wrong: OpenAI needs no header but the key."""
        del headers
        return None

    def read(self, method: str, path: str, body: bytes) -> Call | Fault:
        """Understand a request, or refuse it as OpenAI does."""
        endpoint = _ENDPOINTS.get(path)
        if endpoint is not None:
            return _post(endpoint, body) if method == "POST" else _wrong_method(method, path)
        if path == MODELS_PATH or path.startswith(MODEL_PREFIX):
            return self._read_models(path) if method == "GET" else _wrong_method(method, path)
        return Fault(404, f"Invalid URL ({method} {path})", INVALID, "not_found")

    def fault(self, status: int) -> Fault:
        """Return the error OpenAI sends with `status`."""
        kind, code, message = _FAULTS.get(status) or _OTHER_FAULT[status // 100]
        return Fault(status, message, kind, code)

    def bad_request(self, message: str) -> Fault:
        """Return a 400 that says `message`."""
        return Fault(400, message, INVALID)

    def encode(self, fault: Fault, token: str) -> bytes:
        """Return the JSON body of an error."""
        del token  # only other dialects repeat the request id in the body
        error = {
            "message": fault.message,
            "type": fault.type,
            "param": fault.param,
            "code": fault.code,
        }
        return msgspec.json.encode({"error": error})

    def identify(self, token: str, elapsed_ms: int) -> bytes:
        """Return the headers of every answer."""
        return (
            f"x-request-id: req_{token}\r\nopenai-processing-ms: {elapsed_ms}\r\n"
            "openai-version: 2020-10-01\r\n"
        ).encode()

    def _read_models(self, path: str) -> Call | Fault:
        if path == MODELS_PATH:
            return _constant({"object": "list", "data": list(self._models.values())})
        name = unquote(path.removeprefix(MODEL_PREFIX))
        model = self._models.get(name)
        if model is None:
            message = f"The model '{name}' does not exist"
            return Fault(404, message, INVALID, "model_not_found", "model")
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
            if fields.get(name) is None:
                text = f"Missing required parameter: '{name}'."
                return Fault(400, text, INVALID, "missing_required_parameter", name)
    reason, _, path = message.partition(" - at `$")
    param = path.rstrip("`").removeprefix(".")
    text = f"Invalid '{param}': {reason}." if param else f"Invalid request: {reason}."
    return Fault(400, text, INVALID, "invalid_value", param or None)


def _wrong_method(method: str, path: str) -> Fault:
    message = (
        f"Not allowed to {method} on {path}. "
        "(HINT: Perhaps you meant to use a different HTTP method?)"
    )
    return Fault(405, message, INVALID, "method_not_supported")


def _constant(value: object, model: str | None = None) -> Call:
    return Call(partial(_whole, msgspec.json.encode(value)), model)


def _whole(body: bytes, behaviour: Behaviour, stamp: Stamp) -> Whole:
    del behaviour, stamp  # a list of models has no tokens to misreport and no id
    return Whole(body)
