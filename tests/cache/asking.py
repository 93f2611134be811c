"""Calls of every endpoint, with no more fields than each must have."""

from __future__ import annotations

from typing import Any

import msgspec

from extproc.cache import canonical
from extproc.domain import ENDPOINTS, Call, EndpointName
from extproc.pipeline import DIALECTS

BY_NAME = {endpoint.name: endpoint for endpoint in ENDPOINTS.values()}
TURN = [{"role": "user", "content": "x"}]
LEAST: dict[EndpointName, dict[str, Any]] = {
    "chat": {"messages": TURN},
    "completions": {"prompt": "x"},
    "embeddings": {"input": "x"},
    "responses": {"input": "x", "store": False},
    "messages": {"messages": TURN, "max_tokens": 5},
    "count_tokens": {"messages": TURN},
}


def written(endpoint: EndpointName, fields: dict[str, Any]) -> bytes:
    """Return the body of a call for the model `m`."""
    return msgspec.json.encode({"model": "m", **LEAST[endpoint], **fields})


def read(endpoint: EndpointName, body: bytes) -> Call:
    """Read a body as its dialect does."""
    where = BY_NAME[endpoint]
    return DIALECTS[where.dialect].read(where, body)


def called(endpoint: EndpointName, **fields: Any) -> tuple[Call, canonical.Values]:
    """Return a call, and the values the rules see."""
    body = written(endpoint, fields)
    values = canonical.read(body)
    assert values is not None
    return read(endpoint, body), values
