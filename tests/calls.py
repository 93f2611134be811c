"""Calls, plans and gateways for tests, and ext_proc messages as Envoy would write them.

Knows: `envoy_data_plane`, the independent reading of Envoy's API. Must not know: `extproc.pb`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from envoy_data_plane.envoy.config.core.v3 import HeaderMap, HeaderValue
from envoy_data_plane.envoy.service.ext_proc.v3 import (
    HttpBody,
    HttpHeaders,
    ProcessingRequest,
    ProcessingResponse,
)

from extproc.cache_policy import OFF, Policy
from extproc.dialects import openai
from extproc.domain import (
    ENDPOINTS,
    Call,
    Forward,
    Head,
    Model,
    Plan,
    Price,
    Principal,
    Span,
    Target,
)
from extproc.gateway import Gateway
from extproc.limits import UNLIMITED, Tier
from extproc.policies.estimate import Estimator
from extproc.policies.health import Health
from extproc.ports import SilentObserver, Unlimited
from extproc.snapshot import Snapshot

CHAT_PATH = "/v1/chat/completions"
CHAT = ENDPOINTS["POST", CHAT_PATH]
EMBEDDINGS = ENDPOINTS["POST", "/v1/embeddings"]
PRICE = Price(150_000, 600_000, 75_000)
ALICE = Principal("acme", "key_alice", "free")
NOW = 1_700_000_000.0


def target(provider: str, model: str = "m", weight: int = 1, **more: Any) -> Target:
    """Build a target with a price unless told otherwise."""
    return Target(provider, model, weight, more.pop("price", PRICE), **more)


def snapshot(
    *models: Model,
    max_request_bytes: int = 4096,
    tier: Tier = UNLIMITED,
    cache: Policy = OFF,
    wait_ms: int = 60_000,
) -> Snapshot:
    """Build a snapshot of the models, of one called `small` where none is given."""
    models = models or (Model("small", "priority", (target("openai", "gpt-4o-mini"),)),)
    return Snapshot(
        models={model.name: model for model in models},
        max_request_bytes=max_request_bytes,
        timeout_ms={"embedding": 5_000, "completion": 30_000, "streaming": 120_000},
        started_at=int(NOW),
        tiers={"free": tier},
        trusted_hops=0,
        cache=cache,
        wait_ms=wait_ms,
    )


def head(method: str = "POST", path: str = CHAT_PATH, **headers: str) -> Head:
    """Build a head; underscores in header names become dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Head(method, path, "", named, ends=method == "GET")


def body(**fields: Any) -> bytes:
    """Encode a chat body for the model `small`."""
    base = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}
    return msgspec.json.encode({**base, **fields})


def call(model: str = "small", *, stream: bool = False) -> Call:
    """Read a chat call."""
    return openai.read(CHAT, body(model=model, stream=stream))


def forward(*attempts: Target, **more: Any) -> Forward:
    """Build an admitted chat call."""
    values: dict[str, Any] = {
        "plan": Plan(attempts or (target("openai"),), 30_000),
        "call": call(),
        "principal": ALICE,
        "id": "id-1",
        "body": None,
        "model_span": Span(9, 16),
        "strip_usage": False,
        "body_bytes": 60,
    }
    return Forward(**{**values, **more})


class Identity:
    """Knows one caller, or fails as told."""

    def __init__(self, answer: Principal | Exception = ALICE) -> None:
        self.answer = answer
        self.asked: list[Mapping[str, str]] = []

    async def authenticate(self, headers: Mapping[str, str], now: float) -> Principal:
        self.asked.append(headers)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Watcher(SilentObserver):
    """Remembers refusals, failures and outcomes."""

    def __init__(self) -> None:
        self.refused: list[tuple[str, int, str]] = []
        self.failures: list[tuple[str, str]] = []
        self.phases: list[str] = []
        self.outcomes: list[Any] = []

    def admission(self, phase: str, seconds: float) -> None:
        self.phases.append(phase)

    def denied(self, endpoint: str, status: int, code: str) -> None:
        self.refused.append((endpoint, status, code))

    def store_error(self, store: str, op: str) -> None:
        self.failures.append((store, op))

    def settled(self, outcome: Any) -> None:
        self.outcomes.append(outcome)


def gateway(identity: Any = None, observer: Any = None, **more: Any) -> Gateway:
    """Build a gateway with a standing clock and ids that count up."""
    ids = itertools.count(1)
    values: dict[str, Any] = {
        "snapshot": snapshot(),
        "identity": identity or Identity(),
        "observer": observer or SilentObserver(),
        "ledger": Unlimited(),
        "estimator": Estimator(),
        "health": Health(),
        "clock": lambda: NOW,
        "steady": lambda: NOW,
        "new_id": lambda: f"made-{next(ids)}",
        "draw": lambda: 0.0,
    }
    return Gateway(**{**values, **more})


def header_map(pairs: Sequence[tuple[str, str]]) -> HeaderMap:
    """Encode headers as Envoy does: values in `raw_value`."""
    return HeaderMap(headers=[HeaderValue(key=k, raw_value=v.encode()) for k, v in pairs])


def headers_message(
    *pairs: tuple[str, str], method: str = "POST", path: str = CHAT_PATH, ends: bool = False
) -> bytes:
    """Encode the message of request headers."""
    every = ((":method", method), (":path", path), *pairs)
    return bytes(
        ProcessingRequest(
            request_headers=HttpHeaders(headers=header_map(every), end_of_stream=ends)
        )
    )


def body_message(content: bytes) -> bytes:
    """Encode the message of a buffered request body."""
    return bytes(ProcessingRequest(request_body=HttpBody(body=content, end_of_stream=True)))


def answer(raw: bytes) -> ProcessingResponse:
    """Read a reply with the independent types."""
    return ProcessingResponse.parse(raw)


def plain(value: Any) -> Any:
    """Turn an `envoy_data_plane` Struct or Value into Python values."""
    if hasattr(value, "fields"):
        return {key: plain(item) for key, item in value.fields.items()}
    if value.struct_value is not None:
        return plain(value.struct_value)
    if value.list_value is not None:
        return [plain(item) for item in value.list_value.values]
    scalars = (value.string_value, value.number_value, value.bool_value)
    return next((scalar for scalar in scalars if scalar is not None), None)
