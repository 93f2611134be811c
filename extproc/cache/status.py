"""How an answer says what the cache had to do with it: `Cache-Status` (RFC 9211) and `Age`.

Knows: the syntax of both. Must not know: how it was decided.
The header is a list: an upstream cache's own member stays before ours.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from extproc.cache.reasons import Reason

CACHE: Final = b"llm-edge"

# Why a call went to a provider (section 2.2). `miss` and not `uri-miss`, because the whole body is
# part of the key; `request`: the caller's Cache-Control did not allow an answer from the cache;
# `partial`: some of a batch's inputs were known, the others are asked for.
Fwd: TypeAlias = Literal["bypass", "miss", "partial", "request", "stale"]
_FORWARDED: Final[dict[Fwd, bytes]] = {
    "bypass": CACHE + b"; fwd=bypass",
    "miss": CACHE + b"; fwd=miss",
    "partial": CACHE + b"; fwd=partial",
    "request": CACHE + b"; fwd=request",
    "stale": CACHE + b"; fwd=stale",
}


def hit(*, ttl_ms: int, key: bytes | None = None) -> bytes:
    """Write the status of an answer from the cache that is fresh for `ttl_ms` more.

    `key` is the whole digest, given only where `debug_key` is on.
    """
    return b"%b; hit; ttl=%d%b" % (CACHE, ttl_ms // 1000, _key(key))


def forwarded(
    fwd: Fwd,
    *,
    stored: bool = False,
    collapsed: bool | None = None,
    ttl_ms: int | None = None,
    detail: Reason | None = None,
    key: bytes | None = None,
) -> bytes:
    """Write the status of an answer that a provider gave.

    `stored` where it is being kept, for `ttl_ms`. `collapsed` True: the call waited for another's
    answer and has it; False: it waited and had to call on its own; None: it did not wait.
    `detail` is why the cache took no part, or what kept the answer out of it.
    """
    told = _FORWARDED[fwd]
    if stored:
        told += b"; stored"
    if collapsed is not None:
        told += b"; collapsed" if collapsed else b"; collapsed=?0"
    if ttl_ms is not None:
        told += b"; ttl=%d" % (ttl_ms // 1000)
    if key is not None:
        told += _key(key)
    if detail is not None:
        told += b"; detail=" + detail.value.encode()
    return told


def age(stored_ms: int, now_ms: int) -> bytes:
    """Write `Age`: whole seconds since the answer was stored, 0 where clocks disagree."""
    return b"%d" % (max(0, now_ms - stored_ms) // 1000)


def _key(key: bytes | None) -> bytes:
    return b"" if key is None else b'; key="%b"' % key.hex().encode()
