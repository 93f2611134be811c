"""How long a provider asks to be left alone: read from the headers of its refusal.

Knows: Retry-After (RFC 9110, 10.2.3) and the reset headers of OpenAI (`1s`, `6m0s`, `120ms`) and of
Anthropic (moments by RFC 3339). Must not know: who refused, what follows, or clocks. What cannot be
read asks for nothing.
"""

from __future__ import annotations

import re
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

MAX_COOL_S: Final = 300.0  # a provider that asks for an hour is asked again sooner
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", re.ASCII)
_MOMENT: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}(?:\.[0-9]{1,9})?(?:Z|[+-][0-9]{2}:[0-9]{2})", re.ASCII
)
_PART: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)", re.ASCII)


def cool_s(retry_after: str, resets: str, unix_now: float) -> float:
    """Return for how many seconds a target should get nothing, 0 where it does not say.

    `retry_after` is that header's value, a number of seconds or an HTTP date. `resets` is
    `remaining;reset` of one limit after the other, empty where absent, and asked only without a
    Retry-After: the longest reset of a limit that is used up counts, else the shortest there is.
    """
    told = _retry_after_s(retry_after, unix_now)
    if told is None:
        told = _reset_s(resets, unix_now)
    return min(told, MAX_COOL_S)


def _retry_after_s(value: str, unix_now: float) -> float | None:
    text = value.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - unix_now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _reset_s(resets: str, unix_now: float) -> float:
    words = resets.split(";")
    spent: list[float] = []
    others: list[float] = []
    for remaining, reset in zip(words[::2], words[1::2], strict=False):
        seconds = duration_s(reset)
        if seconds is None:
            seconds = _until_s(reset.strip(), unix_now)
        if seconds is not None:
            (spent if remaining.strip() == "0" else others).append(seconds)
    if spent:
        return max(spent)
    return min(others, default=0.0)


def _until_s(text: str, unix_now: float) -> float | None:
    """Return the seconds until `2025-08-21T12:40:59Z`, 0 of the past; None for anything else."""
    if not _MOMENT.fullmatch(text):
        return None
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp() - unix_now)
    except (ValueError, OverflowError):
        return None


def duration_s(text: str) -> float | None:
    """Return the seconds of `6m0s`, `120ms`, `1.5s` or a plain number; None for anything else."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    total, at = 0.0, 0
    while at < len(text):
        part = _PART.match(text, at)
        if part is None:
            return None
        total += float(part[1]) * _UNITS_S[part[2]]
        at = part.end()
    return total if at else None
