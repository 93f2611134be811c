"""`POST /admin/explain` and `GET /admin/breakers`: what would become of a call, and who is well.

Knows: FastAPI and the callables it is given. Must not know: how calls are planned, or who may ask:
everything under /admin is guarded by the admin token in one place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from extproc.domain import Head
from extproc.policies.breaker import State

CHAT: Final = "/v1/chat/completions"
Explain: TypeAlias = Callable[[str | None, Head, bytes], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Explaining:
    """What the routes ask.

    `explain` returns the explanation for a key's id, headers and body, and raises LookupError for a
    key that is not there; `breakers` returns the states by `provider/model`.
    """

    explain: Explain
    breakers: Callable[[], Mapping[str, State]]


class Question(BaseModel):
    """A call that is not made: who would make it, where, with which headers and body."""

    model_config = ConfigDict(extra="forbid")

    key_id: Annotated[str | None, Field(description="None: a caller without a key.")] = None
    path: str = CHAT
    headers: dict[str, str] = {}
    body: dict[str, Any]


def install(app: FastAPI, asked: Explaining) -> None:
    """Add both routes."""

    @app.post("/admin/explain")
    async def explained(question: Question) -> dict[str, Any]:
        """Say what would become of a call now, and why; nothing is called, counted or charged."""
        headers = {name.lower(): value for name, value in question.headers.items()}
        head = Head("POST", question.path, "", headers, ends=False)
        try:
            return await asked.explain(question.key_id, head, msgspec.json.encode(question.body))
        except LookupError:
            raise HTTPException(404, "there is no such key") from None

    @app.get("/admin/breakers")
    async def states() -> dict[str, State]:
        """Return the circuit breaker of every target that was planned since the start."""
        return dict(asked.breakers())
