"""The body of every error of the admin port, in the shape of the gateway's own.

Knows: that shape. Must not know: what failed. No message repeats what a caller sent, because what
is sent to the wrong place is sometimes a key.
"""

from __future__ import annotations

from pydantic import BaseModel
from starlette.responses import JSONResponse


class Error(BaseModel):
    """What went wrong, in the shape of the gateway's own errors."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorReport(BaseModel):
    """The body of every error."""

    error: Error


def report(
    status: int,
    code: str,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
) -> JSONResponse:
    """Return the answer; `kind` is the error's `type`."""
    body = ErrorReport(error=Error(message=message, type=kind, param=param, code=code))
    return JSONResponse(body.model_dump(), status_code=status)
