"""Why a call has nothing to do with the cache, or its answer is not kept.

Knows: names. Must not know: when they apply. They are told in `Cache-Status` and counted, so each
is a token of RFC 8941, there are few, and none says anything of what was asked.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Each value is what clients and metrics see."""

    # Of the call: it is neither answered from the cache nor kept.
    OFF = "off"  # by configuration, for the model, the tier or the key
    ENDPOINT = "endpoint"
    CHOICES = "choices"  # several answers were asked for
    TEMPERATURE = "temperature"
    STORE = "store"  # the provider is to keep the answer, so it must make one
    STATE = "state"  # the answer depends on, or makes, something kept at the provider
    HOSTED_TOOLS = "hosted-tools"  # the provider looks outside, or acts there
    NOT_CANONICAL = "not-canonical"
    # Of the answer: it is not kept.
    NO_STORE = "no-store"  # the caller's wish
    STATUS = "status"
    UNFINISHED = "unfinished"
    TOO_LARGE = "too-large"
    CONTENT_TYPE = "content-type"
    OUTPUT_BOUND = "output-bound"  # cut where a limit of the gateway's said, not the caller
    CONTENT_FILTER = "content-filter"
    REFUSAL = "refusal"
    TOOL_CALLS = "tool-calls"
    PURGED = "purged"  # while it was under way
    UNREADABLE = "unreadable"  # not a complete answer of this endpoint that ended as known
