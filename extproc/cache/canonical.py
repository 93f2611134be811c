"""One text for all spellings of one request: what a cache key is a digest of.

Knows: JSON, and of each endpoint which top-level members do not change an answer and which values
say the same as no member. Must not know: callers, keys, stores, what may be cached.
A member this file does not name is part of the text: it may matter. Every rule has its paragraph
in docs/cache-key.md; `VERSION` in key.py is raised when one changes.

The text is JSON without white space, names sorted by code point, strings with the fewest escapes,
integers in full, any other number as its digits and a power of ten: 0.70 is 7e-1. Numbers are never
rounded: two that differ anywhere differ here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias

import msgspec

from extproc.dialects.json_body import Members
from extproc.domain import EndpointName

Values: TypeAlias = dict[str, Any]
Silent: TypeAlias = Mapping[str, tuple[Any, ...]]

MAX_ZEROS: Final = 400  # a double ends at 1e308, and `dialects` refuses what is beyond
SMALL_DIGITS: Final = 18  # of an integer that is compared with defaults

_FLOAT: Final = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")
_encode: Final = msgspec.json.Encoder(order="deterministic").encode

# Who asks, and how the answer travels. Not those that the answer repeats: see "responses".
_WHO: Final = frozenset({"user", "safety_identifier", "metadata"})
_PROMPT_CACHE: Final = frozenset(
    {"prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"}
)
_FRAMING: Final = frozenset({"stream", "stream_options"})
_MODEL: Final = frozenset({"model"})  # a component of its own, by its public name
LEFT_OUT: Final[Mapping[EndpointName, frozenset[str]]] = {
    "chat": _MODEL | _FRAMING | _WHO | _PROMPT_CACHE,
    "completions": _MODEL | _FRAMING | {"user"},
    "embeddings": _MODEL | {"user"},
    # Its answers repeat user, metadata and the rest, so one caller's would be told to another.
    "responses": _MODEL | _FRAMING,
    "messages": _MODEL | {"stream", "metadata"},
}

_SAMPLING: Final[Silent] = {"temperature": (None, 1), "top_p": (None, 1)}
_GENERATED: Final[Silent] = {
    **_SAMPLING,
    "frequency_penalty": (None, 0),
    "logit_bias": (None,),
    "max_tokens": (None,),
    "n": (None, 1),
    "presence_penalty": (None, 0),
    "seed": (None,),
    "stop": (None,),
}
# Values that say what the absence of the member says, by the API's own reference.
SAYS_NOTHING: Final[Mapping[EndpointName, Silent]] = {
    "chat": {
        **_GENERATED,
        "audio": (None,),
        "logprobs": (None, False),
        "max_completion_tokens": (None,),
        "modalities": (None, ["text"]),
        "moderation": (None,),
        "parallel_tool_calls": (True,),
        "prediction": (None,),
        "reasoning_effort": (None,),
        "response_format": ({"type": "text"},),
        "service_tier": (None, "auto"),
        "store": (None, False),
        "top_logprobs": (None,),
        "verbosity": (None, "medium"),
    },
    "completions": {
        **_GENERATED,
        "best_of": (None, 1),
        "echo": (None, False),
        "logprobs": (None,),
        "suffix": (None,),
    },
    "embeddings": {"encoding_format": ("float",)},
    "responses": {
        **_SAMPLING,
        "background": (None, False),
        "context_management": (None,),
        "conversation": (None,),
        "include": (None,),
        "instructions": (None,),
        "max_output_tokens": (None,),
        "max_tool_calls": (None,),
        "metadata": (None,),
        "moderation": (None,),
        "parallel_tool_calls": (None, True),
        "previous_response_id": (None,),
        "prompt": (None,),
        "prompt_cache_key": (None,),
        "prompt_cache_retention": (None,),
        "reasoning": (None,),
        "safety_identifier": (None,),
        "service_tier": (None, "auto"),
        "store": (None, True),
        "text": ({"format": {"type": "text"}},),
        "top_logprobs": (None,),
        "truncation": (None, "disabled"),
    },
    "messages": {
        "cache_control": (None,),
        "container": (None,),
        "inference_geo": (None,),
        "service_tier": ("auto",),
        "speed": (None,),
        "temperature": (1,),
    },
}
_NULL_SAYS_NOTHING: Final[Mapping[EndpointName, Silent]] = {
    name: {member: (None,) for member, values in silent.items() if None in values}
    for name, silent in SAYS_NOTHING.items()
}
# Where one item may be written with or without a list around it.
_BATCHED: Final[Mapping[EndpointName, str]] = {"completions": "prompt", "embeddings": "input"}
_STOPPED: Final = frozenset({"chat", "completions"})


@lru_cache(maxsize=512)  # temperatures and the like, of which a call has one or two
def number(text: str) -> int | msgspec.Raw:
    """Return a JSON number that has a fraction or an exponent, exactly, in its one spelling.

    Raises ValueError for what is no such number, and for one of more than `MAX_ZEROS` zeros.
    """
    found = _FLOAT.fullmatch(text)
    if found is None:
        raise ValueError("not a number of JSON")
    sign, whole, fraction, exponent = found.groups("")
    digits = (whole + fraction).lstrip("0")
    if not digits:
        return 0
    power = int(exponent or 0) - len(fraction)
    kept = digits.rstrip("0")
    power += len(digits) - len(kept)
    if power < 0:
        return msgspec.Raw(f"{sign}{kept}e{power}")
    if power > MAX_ZEROS:
        raise ValueError("a number beyond a double")
    integer = f"{sign}{kept}{'0' * power}"
    return int(integer) if len(integer) <= SMALL_DIGITS else msgspec.Raw(integer)


_decode: Final = msgspec.json.Decoder(dict[str, Any], float_hook=number).decode


def read(body: bytes) -> Values | None:
    """Decode a body that `dialects` accepted, numbers exactly; None where that cannot be done.

    Integers are `int`; other numbers are `int` where they are small and whole, else
    `msgspec.Raw`, which encodes as it stands. Pure; 3 us per KB.
    """
    try:
        return _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def exact(members: Members, body: bytes) -> Values | None:
    """Return what `read` does for the body that `dialects` took apart into these members.

    `members` stay as they are. Pure; reads the body again only where a number with a fraction or an
    exponent stands below the top.
    """
    decoded = members.values
    values = decoded
    for name, value in decoded.items():
        kind = type(value)
        if kind is float:
            if values is decoded:
                values = decoded.copy()
            span = members.spans[name]
            try:
                values[name] = number(body[span.start : span.stop].decode())
            except ValueError:
                return None
        elif (kind is dict or kind is list) and _has_float(value):
            return read(body)
    return values


def _has_float(value: Any) -> bool:
    for one in value.values() if type(value) is dict else value:
        kind = type(one)
        if kind is float or ((kind is dict or kind is list) and _has_float(one)):
            return True
    return False


def form(endpoint: EndpointName, values: Values, *, api_defaults: bool = True) -> bytes | None:
    """Return the canonical text of a decoded body; None where there is none.

    `values` is what `read` returned and stays as it is. `api_defaults` False: only null is taken
    for an absent member, for providers whose defaults are not the ones of the API. Pure.
    """
    try:
        return _encode(_kept(endpoint, values, api_defaults=api_defaults))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def around_input(values: Values, *, api_defaults: bool = True) -> tuple[bytes, bytes] | None:
    """Return the canonical text of an embeddings call before and after its input.

    With one input's canonical JSON between them they are the `form` of a call for it alone.
    """
    kept = _kept("embeddings", values, api_defaults=api_defaults)
    try:
        before = _encode({name: kept[name] for name in kept if name < "input"})
        after = _encode({name: kept[name] for name in kept if name > "input"})
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    head, tail = before[:-1], after[1:]
    return (
        head + (b',"input":' if head != b"{" else b'"input":'),
        b"," + tail if tail != b"}" else tail,
    )


def _kept(endpoint: EndpointName, values: Values, *, api_defaults: bool) -> Values:
    left_out = LEFT_OUT[endpoint]
    silent = (SAYS_NOTHING if api_defaults else _NULL_SAYS_NOTHING)[endpoint]
    kept = {}
    for name, value in values.items():
        if name in left_out or (name in silent and _among(value, silent[name])):
            continue
        kept[name] = value
    if endpoint in _STOPPED and type(kept.get("stop")) is str:
        kept["stop"] = [kept["stop"]]
    batched = _BATCHED.get(endpoint)
    if batched is not None:
        items = kept.get(batched)
        if type(items) is list and len(items) == 1 and type(items[0]) in {str, list}:
            kept[batched] = items[0]
    if endpoint == "chat" and api_defaults and "tool_choice" in kept:
        usual = "auto" if kept.get("tools") else "none"
        if kept["tool_choice"] == usual:
            del kept["tool_choice"]
    return kept


def _among(value: Any, silent: tuple[Any, ...]) -> bool:
    # By type as well, because True is 1 in Python and not in JSON.
    return any(value == one and type(value) is type(one) for one in silent)
