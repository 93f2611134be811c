"""The key an answer is kept under: a keyed digest of everything that can change it.

Knows: which components there are and how they are joined. Must not know: where they come from.
Every component is a required argument, so no caller can leave one out. Each is written with its
length before it, so none can be taken for another, whatever it holds.
Specification with test vectors: docs/cache-key.md, tests/vectors/cache_key.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Final, TypeAlias

from extproc.cache_policy import Scope
from extproc.domain import EndpointName, Principal

VERSION: Final = "llm-edge-cache/1"  # raised when the same call gets another key
DIGEST_BYTES: Final = 32
# Request headers that can change an answer: the API's version and its trials, and the routing.
VARY: Final = (
    "anthropic-beta",
    "anthropic-version",
    "openai-beta",
    "x-llm-provider",
    "x-llm-strategy",
)

Shared: TypeAlias = tuple[str, ...]  # the kind of scope, then the ids within it


def scope_of(kind: Scope, principal: Principal) -> Shared:
    """Return within whom answers are shared, from what the server knows of the caller alone."""
    if kind == "shared":
        return (kind,)
    if kind == "key":
        return kind, principal.tenant, principal.key_id
    return kind, principal.tenant


def varying(headers: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of the headers named in `VARY`, empty where absent."""
    for name in VARY:
        if name in headers:
            return tuple([headers.get(name, "") for name in VARY])
    return NO_HEADERS


def digest(
    *,
    secret: bytes,
    scope: Shared,
    policy: str,
    tier: str,
    endpoint: EndpointName,
    model: str,
    query: str,
    headers: tuple[str, ...],
    form: bytes,
) -> bytes:
    """Return the key of a call: 32 bytes.

    `scope` as `scope_of`, `policy` the version of the model's policy, `model` its public name,
    `query` the part of the URL after `?`, `headers` as `varying`, `form` as `canonical.form`.
    Pure; two calls have one key if all arguments are equal, and else only with probability 2**-256.
    """
    plain = not query and (headers is NO_HEADERS or headers == NO_HEADERS)
    state = _of_caller(secret, scope, policy, tier, endpoint, model).copy()
    before = _PLAIN if plain else _joined((query, _joined(headers)))
    state.update(b"%b%d:%b," % (before, len(form), form))
    return state.digest()


# One call asks for it when it is looked up and once more when its answer is kept, at most some
# seconds later; of a prompt that is asked often it is always the same. A miss costs 3 us.
@lru_cache(maxsize=4096)
def key_of(digest: bytes, served_model: str) -> bytes:
    """Return what the answer of a call is kept under that this model gave. Pure."""
    return blake2b(served_model.encode(), key=digest, digest_size=DIGEST_BYTES).digest()


@lru_cache(maxsize=4096)  # callers by models; a miss costs 5 us. Nothing a client makes long.
def _of_caller(  # noqa: PLR0917 (the cache's key is its arguments)
    secret: bytes, scope: Shared, policy: str, tier: str, endpoint: EndpointName, model: str
) -> blake2b:
    # The secret may have any length, BLAKE2's key has at most 64 bytes.
    state = blake2b(digest_size=DIGEST_BYTES, key=blake2b(secret).digest())
    state.update(_joined((VERSION, _joined(scope), policy, tier, endpoint, model)))
    return state


def _joined(parts: tuple[str | bytes, ...]) -> bytes:
    """Write each part as a netstring: its length in bytes, a colon, itself, a comma.

    Lone surrogates, which no client can send, are written as WTF-8 does: still one text, one key.
    """
    written = [
        part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass") for part in parts
    ]
    return b"".join([b"%d:%b," % (len(one), one) for one in written])


NO_HEADERS: Final = ("",) * len(VARY)
_PLAIN: Final = _joined(("", _joined(NO_HEADERS)))
