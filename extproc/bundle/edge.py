"""What is thrown away or insisted on before anything reads a request's headers.

Knows: which client headers mean something. Must not know: routes, the processor or providers.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import (
    HeaderMutation,
    HeaderMutationRemoveOnMatch,
)
from envoy_data_plane.envoy.config.core.v3 import TypedExtensionConfig
from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
    HeaderMutation as EarlyHeaderMutation,
)
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher, StringMatcher

from extproc.bundle.messages import extension
from extproc.bundle.places import MODEL_HEADER

OWN: Final = "x-llm-"
CALLERS: Final = ("provider", "strategy", "timeout-ms")  # of x-llm-*, what a caller may say


def early_mutations() -> list[TypedExtensionConfig]:
    """Drop control headers a client must not set, before Envoy itself reads one.

    Envoy has a rule of its own for x-envoy-*, but it trusts private addresses.
    """
    return [
        extension(
            "envoy.http.early_header_mutation.header_mutation",
            EarlyHeaderMutation(
                mutations=[
                    remove_prefix("x-envoy-"),
                    # Where no attempt is made nobody overwrites it, and it would be logged.
                    HeaderMutation(remove=MODEL_HEADER),
                    _remove(StringMatcher(safe_regex=RegexMatcher(regex=all_but(OWN, CALLERS)))),
                ]
            ),
        )
    ]


def remove_prefix(prefix: str) -> HeaderMutation:
    """Drop every header whose name starts so."""
    return _remove(StringMatcher(prefix=prefix))


def _remove(matcher: StringMatcher) -> HeaderMutation:
    return HeaderMutation(remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=matcher))


def all_but(prefix: str, kept: Collection[str]) -> str:
    """Return a regular expression for `prefix` followed by anything not in `kept`.

    RE2 has no look-ahead, so the words are excluded letter by letter.
    """
    return re.escape(prefix) + _other(frozenset(kept))


def _other(kept: frozenset[str]) -> str:
    """Match every string but those in `kept`."""
    first = sorted({word[0] for word in kept if word})
    if not first:
        return ".+" if "" in kept else ".*"
    letters = "".join(re.escape(letter) for letter in first)
    ways = [f"[^{letters}].*"]
    for letter in first:
        rest = frozenset(word[1:] for word in kept if word.startswith(letter))
        ways.append(re.escape(letter) + _other(rest))
    if "" not in kept:
        ways.append("")
    return f"(?:{'|'.join(ways)})"
