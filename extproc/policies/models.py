"""The model list as a caller sees it: only what the key may use.

Knows: the snapshot and the principal. Must not know: the wire. Source: OpenAI API, Models.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import msgspec

from extproc.domain import MODELS_PATH, Model, Principal, Reply
from extproc.errors import Denied
from extproc.snapshot import Snapshot


def listing(snapshot: Snapshot, principal: Principal, path: str) -> Reply:
    """Answer `GET /v1/models` and `GET /v1/models/{id}`. Raises Denied for an unknown id."""
    if path == MODELS_PATH:
        data = [
            _shown(snapshot, model)
            for name, model in snapshot.models.items()
            if principal.may_use_model(name)
        ]
        return _json({"object": "list", "data": data})
    name = unquote(path.removeprefix(MODELS_PATH + "/"))
    model = snapshot.models.get(name)
    if model is None or not principal.may_use_model(name):
        # Because a model the key may not use is not its business to discover.
        raise Denied("model_not_found", "The model does not exist.", param="model")
    return _json(_shown(snapshot, model))


def _shown(snapshot: Snapshot, model: Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": snapshot.started_at,
        "owned_by": model.targets[0].provider,
    }


def _json(value: Any) -> Reply:
    headers = (("content-type", b"application/json"),)
    return Reply(200, msgspec.json.encode(value), headers)
