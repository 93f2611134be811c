"""The admin API of keys: create, list, get, rotate, revoke.

Knows: FastAPI, the key store's protocol and what a key may be asked to be. Must not know: which
store it is, or who is let in here. A key is in one answer, that to its creation or rotation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

from extproc.admin.report import ErrorReport, report
from extproc.domain import KeyRecord
from extproc.policies.auth import KEY_TOKEN_BYTES
from extproc.policies.keys import DeadKeyError, KeyRequest, State, UnknownKeyError, describe
from extproc.schema_fields import parse_duration
from extproc.stores.keys import KeyStore, KeyStoreError

log: Final = logging.getLogger(__name__)

DEFAULT_GRACE_S: Final = 86_400.0  # the command's own default: a day to bring the new key out


def _seconds(value: object) -> float:
    if not isinstance(value, str):
        raise ValueError("write a duration such as 90d")  # noqa: TRY004 (pydantic's protocol)
    return parse_duration(value)


Duration = Annotated[
    float,
    BeforeValidator(_seconds),
    WithJsonSchema({"type": "string", "examples": ["24h", "90d"]}),
]


class UnusableError(Exception):
    """An attribute that a key cannot have; the text is `attribute: what it may be`."""


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewKey(_Asked):
    """What a new key shall be. Without a tenant it gets one of its own, without lists all."""

    name: str
    tier: str
    tenant: str | None = None
    models: list[str] | None = None
    endpoints: list[str] | None = None
    tags: list[str] = []
    expires: Duration | None = None


class Rotation(_Asked):
    """How long the old key still works, and how long the new one does; default: the old end."""

    grace: Duration = DEFAULT_GRACE_S
    expires: Duration | None = None


class Key(BaseModel):
    """A key without the key; times are unix seconds, null lists mean all."""

    key_id: str
    name: str
    tenant: str
    tier: str
    state: State
    models: list[str] | None
    endpoints: list[str] | None
    tags: list[str]
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None


class KeyOnce(Key):
    """A new key with the key itself, which is not stored and not shown again."""

    key: str


class KeyList(BaseModel):
    """Every key, dead ones too, oldest first."""

    keys: list[Key]


@dataclass(frozen=True, slots=True)
class KeyAdmin:
    """What the API needs; `clock` is unix seconds, `token` gives that many random bytes.

    `failed` is called with the operation when the store could not be had.
    """

    store: KeyStore
    tiers: Collection[str]
    clock: Callable[[], float]
    token: Callable[[int], bytes]
    failed: Callable[[str], None]


def install(app: FastAPI, admin: KeyAdmin) -> None:
    """Add the API under `/admin/keys`, and its errors."""
    app.include_router(_router(admin))

    def down(_request: Request, error: Exception) -> Response:
        admin.failed("admin")
        log.warning("key store failed", extra={"op": "admin", "reason": str(error)})
        message = "The key store cannot be reached now; see the log."
        answer = report(503, "store_unavailable", message, kind="server_error")
        answer.headers["retry-after"] = "1"
        return answer

    app.add_exception_handler(KeyStoreError, down)
    app.add_exception_handler(UnknownKeyError, _unknown)
    app.add_exception_handler(DeadKeyError, _dead)
    app.add_exception_handler(UnusableError, _unusable)
    app.add_exception_handler(RequestValidationError, _malformed)


def _router(admin: KeyAdmin) -> APIRouter:
    # The dependency documents what the guard in front asks for.
    router = APIRouter(
        prefix="/admin/keys",
        tags=["keys"],
        dependencies=[Depends(HTTPBearer(auto_error=False, description="`admin.token`"))],
        # 4XX, because FastAPI would document a 422 of its own that nobody ever gets.
        responses={s: {"model": ErrorReport} for s in (400, 401, 403, 413, "4XX", 503)},
    )
    missing: dict[int | str, dict[str, Any]] = {404: {"model": ErrorReport}}
    dead: dict[int | str, dict[str, Any]] = missing | {409: {"model": ErrorReport}}

    @router.post("", status_code=201)
    def create(asked: NewKey) -> KeyOnce:
        """Create a key and show it, this once."""
        if asked.tier not in admin.tiers:
            raise UnusableError(f"tier: not configured; legal: {', '.join(sorted(admin.tiers))}")
        now = admin.clock()
        request = KeyRequest(
            name=asked.name,
            tier=asked.tier,
            tenant=asked.tenant,
            models=None if asked.models is None else frozenset(asked.models),
            endpoints=None if asked.endpoints is None else frozenset(asked.endpoints),
            tags=frozenset(asked.tags),
            expires_at=None if asked.expires is None else now + asked.expires,
        )
        with _attributes():
            made = admin.store.create(request, now=now, token=admin.token(KEY_TOKEN_BYTES))
        return _shown_once("create", made, now)

    @router.get("")
    def list_keys() -> KeyList:
        """List every key, dead ones too, oldest first."""
        now = admin.clock()
        return KeyList(keys=[_shown(record, now) for record in admin.store.list()])

    @router.get("/{key_id}", responses=missing)
    def get(key_id: str) -> Key:
        """Return one key."""
        return _shown(admin.store.get(key_id), admin.clock())

    @router.post("/{key_id}/rotate", status_code=201, responses=dead)
    def rotate(key_id: str, asked: Rotation | None = None) -> KeyOnce:
        """Create a key with the attributes of this one, which ends after the grace period."""
        asked = asked or Rotation()
        now = admin.clock()
        with _attributes():
            made = admin.store.rotate(
                key_id,
                grace_s=asked.grace,
                now=now,
                token=admin.token(KEY_TOKEN_BYTES),
                expires_at=None if asked.expires is None else now + asked.expires,
            )
        return _shown_once("rotate", made, now)

    @router.post("/{key_id}/revoke", responses=missing)
    def revoke(key_id: str) -> Key:
        """End a key at once; every worker and replica follows within a second."""
        now = admin.clock()
        record = admin.store.revoke(key_id, now=now)
        _log("revoke", record)
        return _shown(record, now)

    return router


def _shown(record: KeyRecord, now: float) -> Key:
    return Key.model_validate(describe(record, now))


def _shown_once(done: str, made: tuple[KeyRecord, str], now: float) -> KeyOnce:
    record, plaintext = made
    _log(done, record)
    return KeyOnce.model_validate({**describe(record, now), "key": plaintext})


def _log(op: str, record: KeyRecord) -> None:
    log.info("key changed", extra={"op": op, "key_id": record.key_id, "tenant": record.tenant})


@contextmanager
def _attributes() -> Iterator[None]:
    """Turn the ValueError of an attribute that cannot be into its answer, and no other one."""
    try:
        yield
    except ValueError as error:
        raise UnusableError(str(error)) from None


def _unknown(_request: Request, _error: Exception) -> Response:
    return report(404, "not_found", "There is no such key; keys are named by their id, key_....")


def _dead(_request: Request, _error: Exception) -> Response:
    return report(409, "conflict", "The key is expired or revoked: create a new one.")


def _unusable(_request: Request, error: Exception) -> Response:
    param, _, message = str(error).partition(": ")  # as the policies write them
    return report(400, "invalid_request_error", message, param=param)


def _malformed(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":  # its place is a name that the caller chose
        return report(400, "invalid_request_error", "Unknown field; see /docs.")
    if first["loc"] == ("body",) and first["type"] != "missing":
        message = "Send a JSON object, as content-type: application/json."
        return report(400, "invalid_request_error", message)
    where = ".".join(str(part) for part in first["loc"][1:] if first["type"] != "json_invalid")
    message = str(first["msg"]).removeprefix("Value error, ")
    return report(400, "invalid_request_error", message, param=where or None)
