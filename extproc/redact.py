"""Take what looks like a credential out of a text: the second line of defence, never the first.

Knows: what keys look like. Must not know: whose text it is.
"""

from __future__ import annotations

import re
from typing import Final

REDACTED: Final = "[redacted]"
# What is kept, then the secret. No class holds a quote or a backslash, so a line of JSON stays one.
# Most rules ask for no word boundary, because an escaped line break ends in a letter: `\nsk_...`.
_SECRETS: Final = re.compile(
    r"(?P<keep>bearer\s+|authorization\W+basic\s+|api[-_]?key[\"'\\]*\s*[:=]\s*[\"'\\]*)"
    r"[^\s\"'\\,;\[]+"
    r"|sk[-_][a-z0-9_-]{20,}|(?<![a-z0-9])sk[-_][a-z0-9_-]{8,}"
    r"|eyJ[a-z0-9_-]{8,}\.[a-z0-9_-]{8,}(?:\.[a-z0-9_-]*)?",
    re.IGNORECASE | re.ASCII,
)


def redact(text: str) -> str:
    """Replace what looks like a key: `sk_...`, `sk-...`, bearer tokens, `api-key: ...`, JWTs."""
    return _SECRETS.sub(lambda found: (found["keep"] or "") + REDACTED, text)
