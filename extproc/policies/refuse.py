"""How a refusal by a limit is said to the caller.

Knows: the error table's codes and what OpenAI's clients do with 429. Must not know: accounts.
"""

from __future__ import annotations

from typing import Final

from extproc.domain import PICO_USD_PER_USD
from extproc.errors import Denied
from extproc.limits import US_PER_MS, US_PER_S, Rules, Scope, Unit, Window
from extproc.policies.limit_headers import Headers
from extproc.policies.quota import Refusal

SLOT_RETRY_S: Final = 1  # nobody knows when a call of one's own ends
SDK_PATIENCE_US: Final = 60 * US_PER_S  # above it OpenAI's clients would guess a wait of their own
_WHOSE: Final = {
    Scope.GLOBAL: "this gateway",
    Scope.IP: "this address",
    Scope.TENANT: "this tenant",
    Scope.KEY: "this key",
}
_PER: Final = {Window.MINUTE: "minute", Window.DAY: "day", Window.MONTH: "month"}
_NO_RETRY: Final = (("x-should-retry", b"false"),)


def label_of(refusal: Refusal) -> str:
    """Return the name of the limit that was hit."""
    return refusal.meter.label if refusal.meter else refusal.rules.rate_label


def concurrency_label(scope: Scope) -> str:
    """Return the name of the limit of calls under way."""
    return f"{scope.name.lower()}/concurrent_requests"


def refuse(refusal: Refusal, headers: Headers) -> Denied:
    """Build the 429 of a refusal; `headers` are those of the limits, as on every answer.

    Retry-After is in whole seconds, rounded up, `retry-after-ms` in milliseconds.
    """
    meter, wait_us = refusal.meter, refusal.wait_us
    whose = _WHOSE[refusal.rules.scope]
    code = "rate_limit_exceeded"
    if meter is None:
        rate = US_PER_S / refusal.rules.interval_us
        what = f"{rate:g} requests per second with a burst of {refusal.rules.burst}"
    elif meter.unit is Unit.PICO_USD:
        code = "insufficient_quota"
        what = f"{meter.limit / PICO_USD_PER_USD:g} USD per {_PER[meter.window]}"
    else:
        unit = "tokens" if meter.unit is Unit.TOKENS else "requests"
        what = f"{meter.limit} {unit} per {_PER[meter.window]}"
    message = f"Limit reached for {whose}: {what} ({label_of(refusal)})."
    if wait_us is None:
        message = f"This request alone is over the limit of {whose}: {what} ({label_of(refusal)})."
        return Denied(code, message, headers=headers + _NO_RETRY)
    if wait_us > SDK_PATIENCE_US:
        headers += _NO_RETRY
    wait_ms = -(-wait_us // US_PER_MS)
    return Denied(
        code,
        f"{message} Try again in {_shown(wait_ms)}.",
        retry_after_s=-(-wait_us // US_PER_S),
        headers=(*headers, ("retry-after-ms", b"%d" % wait_ms)),
    )


def refuse_concurrency(rules: Rules, headers: Headers) -> Denied:
    """Build the 429 of a caller whose slots are all taken."""
    return Denied(
        "concurrency_limit_exceeded",
        f"Limit reached for {_WHOSE[rules.scope]}: {rules.concurrent} concurrent requests"
        f" ({concurrency_label(rules.scope)}).",
        retry_after_s=SLOT_RETRY_S,
        headers=headers,
    )


def _shown(wait_ms: int) -> str:
    return f"{wait_ms} ms" if wait_ms < 1000 else f"{-(-wait_ms // 1000)} s"  # noqa: PLR2004
