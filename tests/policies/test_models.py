"""The model list shows a key what it may use and hides that there is more."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from extproc.domain import Dialect, Model, Principal
from extproc.errors import Denied
from extproc.policies.models import listing
from tests.calls import ALICE, NOW, snapshot, target

SLASHED = "meta/llama 3.1%"
MODELS = snapshot(
    Model("small", "priority", (target("openai"), target("local"))),
    Model("large", "priority", (target("local"),)),
    Model(SLASHED, "priority", (target("hub"),)),
)
NARROW = Principal("acme", "key", "free", models=frozenset({"large", "gone"}))


def shown(name: str, owner: str) -> dict[str, Any]:
    """Write a model object as the OpenAI API does."""
    return {"id": name, "object": "model", "created": int(NOW), "owned_by": owner}


def get(path: str, principal: Principal = ALICE, dialect: Dialect = "openai") -> Any:
    """Ask for a path under /v1/models."""
    reply = listing(MODELS, principal, f"/v1/models{path}", dialect)
    assert (reply.status, reply.headers) == (200, (("content-type", b"application/json"),))
    return json.loads(reply.body)


@pytest.mark.parametrize(
    ("path", "principal"),
    [
        pytest.param("/small", NARROW, id="a model the key may not use"),
        pytest.param("/gone", NARROW, id="one the key may use and nobody serves"),
        pytest.param("/other", ALICE, id="one there never was"),
        pytest.param("/", ALICE, id="no name"),
        pytest.param("/small/", ALICE, id="a slash too many"),
        pytest.param("/%ff", ALICE, id="a name that is not UTF-8"),
        pytest.param("/Small", ALICE, id="another case"),
    ],
)
def test_a_model_that_is_not_the_callers_does_not_exist(path: str, principal: Principal) -> None:
    with pytest.raises(Denied) as caught:
        get(path, principal)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert caught.value.message == "The model does not exist."


def test_a_key_sees_its_models_alone() -> None:
    assert get("", NARROW) == {"object": "list", "data": [shown("large", "local")]}


def test_a_key_without_a_list_sees_all_in_order() -> None:
    assert get("") == {
        "object": "list",
        "data": [shown("small", "openai"), shown("large", "local"), shown(SLASHED, "hub")],
    }


def test_a_key_for_nothing_sees_an_empty_list() -> None:
    nobody = Principal("acme", "key", "free", models=frozenset())
    assert get("", nobody) == {"object": "list", "data": []}


@pytest.mark.parametrize("name", ["meta/llama%203.1%25", quote(SLASHED, safe="")])
def test_a_name_is_read_with_its_escapes(name: str) -> None:
    assert get(f"/{name}") == shown(SLASHED, "hub")


def test_anthropics_clients_see_models_in_their_shape() -> None:
    """A page with its ends, times as RFC 3339, and the same allow-list."""
    large = {
        "type": "model",
        "id": "large",
        "display_name": "large",
        "created_at": "2023-11-14T22:13:20Z",
        "lifecycle": "active",
    }
    page = get("", NARROW, "anthropic")
    ends = {"first_id": "large", "last_id": "large"}
    assert page == {"data": [large], "has_more": False, **ends}
    assert get("/large", NARROW, "anthropic") == large
    nothing = get("", Principal("acme", "key", "free", models=frozenset()), "anthropic")
    assert nothing == {"data": [], "has_more": False, "first_id": None, "last_id": None}
