"""How much of one request is kept: the number the route, the retries and the pools must agree on.

Knows: the configured body limit. Must not know: who keeps what.
"""

from __future__ import annotations

from typing import Final

from extproc.schema import Config

BODY_SLACK_BYTES: Final = 65_536  # the processor adds a few members, and says the exact limit


def buffer_bytes(config: Config) -> int:
    """Bound what is kept of one request, for the processor and again for retries."""
    return config.server.max_request_bytes + BODY_SLACK_BYTES
