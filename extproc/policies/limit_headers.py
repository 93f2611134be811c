"""What an answer says about the caller's limits, in the header names of its dialect.

Knows: the accounts of one call as they stand, OpenAI's and Anthropic's rate limit headers and the
IETF draft's. Must not know: who adds the headers. The whole gateway's own limits are not told.
Source: draft-ietf-httpapi-ratelimit-headers-10; the rate limit pages of both API references.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, TypeAlias

from extproc.limits import (
    DAY_US,
    MAX_LIMIT,
    MINUTE_US,
    US_PER_MS,
    US_PER_S,
    Rules,
    Scope,
    Unit,
    Window,
)
from extproc.policies.quota import Held, Windows, arrival_us, of_three, window_end_us

Headers: TypeAlias = tuple[tuple[str, bytes], ...]
_Told: TypeAlias = tuple[int, bytes, int]  # what is left, of how much, until when

POLICY: Final = "ratelimit-policy"
STATE: Final = "ratelimit"
# Per dialect: limit, remaining and reset of requests, then of tokens.
NAMES: Final[dict[str, tuple[str, ...]]] = {
    "openai": tuple(
        f"x-ratelimit-{what}-{unit}"
        for unit in ("requests", "tokens")
        for what in ("limit", "remaining", "reset")
    ),
    "anthropic": tuple(
        f"anthropic-ratelimit-{unit}-{what}"
        for unit in ("requests", "tokens")
        for what in ("limit", "remaining", "reset")
    ),
}
_SECONDS: Final = {Window.MINUTE: MINUTE_US // US_PER_S, Window.DAY: DAY_US // US_PER_S}


def header_names(dialect: str) -> tuple[str, ...]:
    """Return every header a call of this dialect may get."""
    return (POLICY, STATE, *NAMES[dialect])


def policy_of(scopes: Sequence[Rules]) -> bytes:
    """Return the RateLimit-Policy of a tier: constant, so made once."""
    items = []
    for rules in scopes:
        if rules.scope is Scope.GLOBAL:
            continue
        if rules.interval_us:
            seconds = max(1, -(-rules.tolerance_us // US_PER_S))
            items.append(f'"{rules.rate_label}";q={rules.burst};w={seconds}')
        for meter in rules.meters:
            if meter.unit is not Unit.PICO_USD:
                unit = ';qu="tokens"' if meter.unit is Unit.TOKENS else ""
                window = _SECONDS[meter.window]
                items.append(f'"{meter.label}";q={meter.limit}{unit};w={window}')
    return ", ".join(items).encode()


def limit_headers(
    dialect: str, policy: bytes, held: Sequence[Held], now_us: int, windows: Windows
) -> Headers:
    """Return the headers of one answer: what is left once this call is charged.

    Requests and tokens are each told by the limit that has the least left.
    """
    ends = _ends(windows)
    states: list[bytes] = []
    requests: _Told | None = None
    tokens: _Told | None = None
    fewest_requests = fewest_tokens = MAX_LIMIT + 1
    for account, rules in held:
        if rules.rate_shown and rules.interval_us:
            tat = arrival_us(account, rules, now_us)
            left = (now_us + rules.tolerance_us - tat) // rules.interval_us
            states.append(b"%b%d;t=%d" % (rules.rate_shown, left, -((now_us - tat) // US_PER_S)))
            if left < fewest_requests:
                fewest_requests = left
                requests = left, b"%d" % rules.burst, tat
        ids, used = account.ids, account.used
        for text, slot, window, limit, told, of_tokens in rules.shown:
            left = limit - used[slot] if ids[slot] == of_three(windows, window) else limit
            left = max(left, 0)
            end = of_three(ends, window)
            states.append(b"%b%d;t=%d" % (text, left, -((now_us - end) // US_PER_S)))
            if of_tokens:
                if left < fewest_tokens:
                    fewest_tokens = left
                    tokens = left, told, end
            elif left < fewest_requests:
                fewest_requests = left
                requests = left, told, end
    if not states:
        return ()
    found: list[tuple[str, bytes]] = [(POLICY, policy), (STATE, b", ".join(states))]
    names = NAMES[dialect]
    if requests is not None:
        left, told, end = requests
        reset = _span(end - now_us) if dialect == "openai" else _moment(end)
        found += ((names[0], told), (names[1], b"%d" % left), (names[2], reset))
    if tokens is not None:
        left, told, end = tokens
        reset = _span(end - now_us) if dialect == "openai" else _moment(end)
        found += ((names[3], told), (names[4], b"%d" % left), (names[5], reset))
    return tuple(found)


@lru_cache(maxsize=8)
def _ends(windows: Windows) -> tuple[int, int, int]:
    """Return when the minute, the day and the month end."""
    minute, day, month = (window_end_us(window, windows[window]) for window in Window)
    return minute, day, month


def _span(us: int) -> bytes:
    """Return a duration as OpenAI writes it: 17ms, 8s, 6m0s, 1h2m3s; never too short."""
    if us < US_PER_S:
        return b"%dms" % -(-us // US_PER_MS)
    minutes, seconds = divmod(-(-us // US_PER_S), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return b"%dh%dm%ds" % (hours, minutes, seconds)
    return b"%dm%ds" % (minutes, seconds) if minutes else b"%ds" % seconds


def _moment(us: int) -> bytes:
    """Return a time as Anthropic writes it: RFC 3339 in whole seconds, never too early."""
    moment = datetime.fromtimestamp(-(-us // US_PER_S), UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
