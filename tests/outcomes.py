"""One settled call for tests of what is kept and counted of it.

Knows: the domain. Must not know: where a call came from.
"""

from __future__ import annotations

from typing import Any

from extproc.domain import Ended, Outcome, Usage, UsageSource


def outcome(**changes: Any) -> Outcome:
    """Build a finished, billed chat call with what a test says of it."""
    values: dict[str, Any] = {
        "id": "id",
        "request_id": "r",
        "time_ms": 0,
        "tenant": "acme",
        "key_id": "key_1",
        "endpoint": "chat",
        "model": "small",
        "provider": "openai",
        "served_model": "gpt-4o-mini",
        "stream": False,
        "status": 200,
        "ended": Ended.FINISHED,
        "usage": Usage(10, 4, 2, UsageSource.PROVIDER),
        "cost_pico_usd": 100,
        "attempts": 1,
        "duration_ms": 5,
        "ttft_ms": 1,
        "request_bytes": 1,
        "response_bytes": 1,
        "flags": "",
    }
    return Outcome(**{**values, **changes})
