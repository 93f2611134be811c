"""Let nobody past `/admin` without the token of the configuration, before a byte of body is read.

Knows: ASGI and where the token is. Must not know: what is behind it. Failure mode: closed; without
a token in the configuration the admin API is off.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from hashlib import blake2b
from typing import Any, Final

from extproc.admin.report import report
from extproc.schema_fields import SecretRef

PREFIX: Final = "/admin"
MAX_BODY_BYTES: Final = 65_536  # a key with a thousand models
_OFF: Final = "The admin API is off: set admin.token, for example {env: LLM_EDGE_ADMIN_TOKEN}."

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class Guard:
    """ASGI middleware; the token is read for each request, so that a new one counts at once."""

    def __init__(self, app: App, *, token: SecretRef | None, env: Mapping[str, str]) -> None:
        self._app = app
        self._token = token
        self._env = env

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer 403 without a token to compare with, 401 for another one, 413 for a huge body."""
        path = scope.get("path", "")
        if path != PREFIX and not path.startswith(PREFIX + "/"):
            await self._app(scope, receive, send)
            return
        sender = _never_stored(send)
        refusal = await self._refusal(scope)
        body = b"" if refusal is not None else await read_body(receive)
        if body is None:
            refusal = report(413, "request_too_large", f"The body is over {MAX_BODY_BYTES} bytes.")
        if refusal is not None:
            await refusal(scope, receive, sender)
        else:
            await self._app(scope, _replayed(body or b"", receive), sender)

    async def _refusal(self, scope: MutableMapping[str, Any]) -> Any:
        """Return the answer to a caller without the token, None for one who has it."""
        if self._token is None:
            return report(403, "permission_denied", _OFF, kind="permission_error")
        token = await asyncio.to_thread(self._token.read, self._env)
        if token is None:
            message = "The admin API is off: the secret that admin.token names is not there."
            return report(403, "permission_denied", message, kind="permission_error")
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, credential = (given[0] if len(given) == 1 else b"").partition(b" ")
        if scheme.lower() == b"bearer" and _same(credential.strip(), token.encode()):
            return None
        message = "Send the admin token: Authorization: Bearer."
        answer = report(401, "invalid_api_key", message, kind="authentication_error")
        answer.headers["www-authenticate"] = "Bearer"
        return answer


def _same(given: bytes, token: bytes) -> bool:
    """Compare in a time that depends on neither value, lengths included."""
    return hmac.compare_digest(blake2b(given).digest(), blake2b(token).digest())


async def read_body(receive: Receive) -> bytes | None:
    """Return the body, None where it is too large."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return the body as one message, then what the server says."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


def _never_stored(send: Send) -> Send:
    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"cache-control", b"no-store")]
        await send(message)

    return marked
