"""Which calls may be answered from the cache, and which answers may be kept.

Knows: the policy, what a call asks for and how an answer ended. Must not know: keys, stores, HTTP.
Each rule is refused by name; what no rule knows is not kept. docs/cache-key.md says why.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from extproc.answers import OVERHEAD_BYTES, Form
from extproc.cache import endings
from extproc.cache.canonical import Values
from extproc.cache.ending_shapes import How
from extproc.cache.reasons import Reason
from extproc.cache_policy import Policy
from extproc.domain import Call, EndpointName

# By names of our own: to read a member of an enum takes 700 instructions.
_FILTERED: Final = How.FILTERED
_REFUSED: Final = How.REFUSED
_LENGTH: Final = How.LENGTH
_OK: Final = 200
CACHEABLE: Final = frozenset({"chat", "completions", "embeddings", "responses", "messages"})
DEFAULT_TEMPERATURE: Final = 1.0  # of both APIs

# Members that tie an answer to something the provider keeps, where they hold anything: what it says
# may differ next time, or names what another caller must not use.
STATE: Final[dict[EndpointName, frozenset[str]]] = {
    "chat": frozenset({"audio"}),  # the answer names a recording that expires
    "responses": frozenset({"previous_response_id", "conversation", "prompt", "background"}),
    "messages": frozenset({"container"}),
}
# Members by which the provider looks outside or acts there.
HOSTED: Final[dict[EndpointName, frozenset[str]]] = {
    "chat": frozenset({"web_search_options"}),
    "messages": frozenset({"mcp_servers"}),
}
# Tools that the caller runs; Anthropic's have no type, or "custom". All others may be hosted.
CLIENT_TOOLS: Final = (None, "function", "custom")  # no set: a type that is a list is no error
_NOT_TO_BE_STORED: Final = (None, False)
_FORMS: Final[dict[str, Form]] = {"application/json": "json", "text/event-stream": "sse"}


def ttl_of(policy: Policy, model: str, tier: str, key_id: str, *, embeddings: bool) -> int | None:
    """Return for how long an answer is good for this caller; None: the cache is off for it.

    Off anywhere is off. The shortest time of model, tier and key takes the place of the cache's
    own; an answer stored on longer terms is no older than that to this caller.
    """
    models, tiers, keys = policy.models, policy.tiers, policy.keys
    if not policy.enabled or model not in models:
        return None
    every = [models[model].terms]
    if tier in tiers:
        every.append(tiers[tier])
    if key_id in keys:
        every.append(keys[key_id])
    ttl_ms: int | None = None
    for terms in every:
        if not terms.enabled:
            return None
        other_ms = terms.ttl_ms
        if other_ms is not None and (ttl_ms is None or other_ms < ttl_ms):
            ttl_ms = other_ms
    if ttl_ms is not None:
        return ttl_ms
    return policy.embeddings_ttl_ms if embeddings else policy.ttl_ms


def bypass(policy: Policy, call: Call, values: Values) -> Reason | None:
    """Return why a call has nothing to do with the cache; None where it may.

    `values` is the body as `canonical.read` gives it. Whether the cache is on for the caller is
    asked before, of `ttl_of`.
    """
    endpoint = call.endpoint.name
    if endpoint not in CACHEABLE:
        return Reason.ENDPOINT
    if endpoint == "embeddings":
        return None
    if call.choices != 1:
        return Reason.CHOICES
    bound = policy.max_temperature
    if bound is not None and _temperature(values.get("temperature")) > bound:
        return Reason.TEMPERATURE
    stored = values.get("store")
    # Responses are stored unless the caller says no; nothing else is unless it says yes, and some
    # servers take 1 or "true" for it.
    if stored is not False if endpoint == "responses" else stored not in _NOT_TO_BE_STORED:
        return Reason.STORE
    for name in STATE.get(endpoint, ()):
        if values.get(name) not in (None, False):
            return Reason.STATE
    for name in HOSTED.get(endpoint, ()):
        if values.get(name) is not None:
            return Reason.HOSTED_TOOLS
    tools = values.get("tools")
    if tools and not _are_the_callers(tools):
        return Reason.HOSTED_TOOLS
    return None


def may_record(
    policy: Policy, *, status: int, content_type: str, content_length: int | None
) -> Form | Reason:
    """Judge an answer by its headers: in which form to record it, or why not to.

    `content_length` None where the answer does not tell.
    """
    if status != _OK:
        return Reason.STATUS
    form = _FORMS.get(content_type.partition(";")[0].strip().lower())
    if form is None:
        return Reason.CONTENT_TYPE
    if content_length is not None and content_length + OVERHEAD_BYTES > policy.max_entry_bytes:
        return Reason.TOO_LARGE
    return form


def may_store(
    policy: Policy,
    *,
    endpoint: EndpointName,
    status: int,
    form: Form,
    body: bytes,
    finished: bool,
    bounded: bool,
) -> Reason | None:
    """Return why a whole recorded answer is not kept; None where it may be.

    `finished` as settlement found it. `bounded`: the gateway set the bound of output, or lowered
    the caller's. Which model gave the answer is no matter: it is kept under that model's name.
    """
    if status != _OK:
        return Reason.STATUS
    if not finished:
        return Reason.UNFINISHED
    if len(body) + OVERHEAD_BYTES > policy.max_entry_bytes:
        return Reason.TOO_LARGE
    ending = endings.read(endpoint, form, body)
    if ending is None:
        return Reason.UNREADABLE
    how = ending.how
    if how is _FILTERED:
        return Reason.CONTENT_FILTER
    if how is _REFUSED:
        return Reason.REFUSAL
    if ending.hosted:
        return Reason.HOSTED_TOOLS
    cut = how is _LENGTH
    if ending.tools and (cut or not policy.tool_calls):  # arguments that were cut are no call
        return Reason.TOOL_CALLS
    if cut and bounded:
        return Reason.OUTPUT_BOUND
    return None


def _are_the_callers(tools: Any) -> bool:
    """Say whether all tools are for the caller to run; of completions nobody has checked them."""
    if type(tools) is not list:
        return False
    return all(type(tool) is dict and tool.get("type") in CLIENT_TOOLS for tool in tools)


def _temperature(written: Any) -> float:
    if written is None:
        return DEFAULT_TEMPERATURE
    # A fraction was kept as its digits and a power of ten, which is how a float may be written.
    return float(bytes(written)) if isinstance(written, msgspec.Raw) else float(written)
