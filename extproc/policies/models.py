"""The model list as a caller sees it: only what the key may use.

Knows: the snapshot, the principal and both shapes of a model. Must not know: the wire.
Source: OpenAI API and Anthropic API, Models.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from extproc.domain import MODELS_PATH, Dialect, Model, Principal, Reply
from extproc.errors import Denied
from extproc.snapshot import Snapshot

_NO_ENDS: Final[dict[str, str | None]] = {"first_id": None, "last_id": None}


def listing(snapshot: Snapshot, principal: Principal, path: str, dialect: Dialect) -> Reply:
    """Answer `GET /v1/models` and `GET /v1/models/{id}`. Raises Denied for an unknown id."""
    shown = _anthropic if dialect == "anthropic" else _openai
    if path == MODELS_PATH:
        data = [
            shown(snapshot, model)
            for name, model in snapshot.models.items()
            if principal.may_use_model(name)
        ]
        if dialect == "anthropic":
            ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else _NO_ENDS
            return _json({"data": data, "has_more": False, **ends})
        return _json({"object": "list", "data": data})
    name = unquote(path.removeprefix(MODELS_PATH + "/"))
    model = snapshot.models.get(name)
    if model is None or not principal.may_use_model(name):
        # Because a model the key may not use is not its business to discover.
        raise Denied("model_not_found", "The model does not exist.", param="model")
    return _json(shown(snapshot, model))


def _openai(snapshot: Snapshot, model: Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": snapshot.started_at,
        "owned_by": model.targets[0].provider,
    }


def _anthropic(snapshot: Snapshot, model: Model) -> dict[str, Any]:
    started = datetime.fromtimestamp(snapshot.started_at, UTC)
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
    }


def _json(value: Any) -> Reply:
    headers = (("content-type", b"application/json"),)
    return Reply(200, msgspec.json.encode(value), headers)
