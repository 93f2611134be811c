"""What an answer says about the caller's limits, in the header names of its dialect.

Knows: the accounts of one call as they stand, OpenAI's and Anthropic's rate limit headers and the
IETF draft's. Must not know: who adds the headers. The whole gateway's own limits are not told.
Source: draft-ietf-httpapi-ratelimit-headers-10; the rate limit pages of both API references.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, TypeAlias

from extproc.limits import (
    DAY_US,
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
_SEPARATOR: Final = b", "  # which each state begins with
_TOKENS: Final = int(Unit.TOKENS)
_SECONDS: Final = {Window.MINUTE: MINUTE_US // US_PER_S, Window.DAY: DAY_US // US_PER_S}


def _whole(seconds: int) -> bytes:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return b"%dh%dm%ds" % (hours, minutes, seconds)
    return b"%dm%ds" % (minutes, seconds) if minutes else b"%ds" % seconds


# Texts of small numbers and short spans, because writing one costs six times a look here.
MADE: Final = 1024
MINUTES_A_DAY: Final = DAY_US // MINUTE_US
_NUMBERS: Final = [b"%d" % number for number in range(MADE)]
_UNTIL: Final = [b";t=%d" % seconds for seconds in range(MADE)]
_SPANS: Final = [_whole(seconds) for seconds in range(MADE)]


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
    dialect: str, policy: bytes, held: list[Held], now_us: int, windows: Windows
) -> Headers:
    """Return the headers of one answer: what is left once this call is charged.

    Requests and tokens are each told by the limit that has the least left.
    """
    states: list[bytes] = []  # pieces of text, because joining many at once costs least
    requests_told: bytes | None = None
    tokens_told: bytes | None = None
    requests_text = tokens_text = b""
    requests_left = tokens_left = 0
    requests_end = tokens_end = 0
    for account, rules in held:
        if rules.rate_shown and rules.interval_us:
            end = arrival_us(account, rules, now_us)
            left = (now_us + rules.tolerance_us - end) // rules.interval_us
            text = _number(left)
            states.append(rules.rate_shown)
            states.append(text)
            states.append(_until((end - now_us + US_PER_S - 1) // US_PER_S))
            if requests_told is None or left < requests_left:
                requests_left, requests_end = left, end
                requests_told, requests_text = rules.rate_told, text
        ids, used = account.ids, account.used
        for meter in rules.shown:
            slot, over, left = meter.slot, meter.over, meter.limit
            if ids[slot] == of_three(windows, over):
                left = max(left - used[slot], 0)
            end = _end_us(over, windows)
            text = _number(left)
            states.append(meter.text)
            states.append(text)
            states.append(_until((end - now_us + US_PER_S - 1) // US_PER_S))
            if meter.counts == _TOKENS:
                if tokens_told is None or left < tokens_left:
                    tokens_left, tokens_end = left, end
                    tokens_told, tokens_text = meter.told, text
            elif requests_told is None or left < requests_left:
                requests_left, requests_end = left, end
                requests_told, requests_text = meter.told, text
    if not states:
        return ()
    state = b"".join(states)[len(_SEPARATOR) :]
    found: list[tuple[str, bytes]] = [(POLICY, policy), (STATE, state)]
    names = NAMES[dialect]
    spans = dialect == "openai"
    if requests_told is not None:
        found.append((names[0], requests_told))
        found.append((names[1], requests_text))
        found.append((names[2], _span(requests_end - now_us) if spans else _moment(requests_end)))
    if tokens_told is not None:
        found.append((names[3], tokens_told))
        found.append((names[4], tokens_text))
        found.append((names[5], _span(tokens_end - now_us) if spans else _moment(tokens_end)))
    return tuple(found)


def _end_us(over: int, windows: Windows) -> int:
    """Return when the current window of this kind ends."""
    if over == 0:
        return (windows[0] + 1) * MINUTE_US
    if over == 1:
        return (windows[1] + 1) * MINUTES_A_DAY * MINUTE_US  # so multiplied without a big number
    return window_end_us(Window.MONTH, windows[2])


def _number(number: int) -> bytes:
    return _NUMBERS[number] if 0 <= number < MADE else b"%d" % number


def _until(seconds: int) -> bytes:
    """Return what follows a number in the states: when the limit is whole again."""
    return _UNTIL[seconds] if 0 <= seconds < MADE else b";t=%d" % seconds


def _span(us: int) -> bytes:
    """Return a duration as OpenAI writes it: 17ms, 8s, 6m0s, 1h2m3s; never too short."""
    if us < US_PER_S:
        return b"%dms" % -(-us // US_PER_MS)
    seconds = (us + US_PER_S - 1) // US_PER_S
    return _SPANS[seconds] if seconds < MADE else _whole(seconds)


def _moment(us: int) -> bytes:
    """Return a time as Anthropic writes it: RFC 3339 in whole seconds, never too early."""
    moment = datetime.fromtimestamp(-(-us // US_PER_S), UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
