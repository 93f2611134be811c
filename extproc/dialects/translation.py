"""What every translation shares: the result, what got lost on the way, and the pieces of both APIs.

Knows: the fields the two dialects have in common. Must not know: directions, Envoy, providers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

DEFAULT_MAX_TOKENS: Final = 4096  # Anthropic demands a bound; every current model allows this one
MAX_NAMED: Final = 16  # names of lost fields in a header
_NAME: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")  # others are the caller's own text

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Translated:
    """A request in the other dialect; `lossy` names what could not be carried over, sorted."""

    body: bytes
    lossy: tuple[str, ...]


class Losses:
    """Collects the names of what could not be carried over."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: set[str] = set()

    def add(self, name: str) -> None:
        """Note one field, in the caller's notation without indices."""
        self._names.add(name if _NAME.fullmatch(name) else "other")

    def rest(self, fields: Mapping[str, Any], known: Iterable[str], prefix: str = "") -> None:
        """Note every field that is set and not known."""
        for name in fields.keys() - set(known):
            if fields[name] is not None:
                self.add(prefix + name)

    def names(self) -> tuple[str, ...]:
        """Return them sorted, at most `MAX_NAMED` and `more`."""
        found = sorted(self._names)
        return (*found[:MAX_NAMED], "more") if len(found) > MAX_NAMED else tuple(found)


def objects(value: Any) -> list[Json]:
    """Return the objects of a list; anything else in it, or instead of it, is nothing."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def object_of(value: Any) -> Json:
    """Return an object, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def text_of(value: Any) -> str:
    """Return a string, or nothing for anything else."""
    return value if isinstance(value, str) else ""


def count_of(value: Any) -> int:
    """Return a count of tokens, 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def arguments_of(text: Any) -> Json | None:
    """Return the arguments of a tool call as an object, None where they are none."""
    if not isinstance(text, str):
        return None
    if not text.strip():
        return {}
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
