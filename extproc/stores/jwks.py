"""Keep the public keys of one identity provider: fetched, refreshed, served stale for a while.

Knows: JWK Sets (RFC 7517), URLs and files, one fetch at a time. Must not know: tokens, callers or
tenants. Failure mode: stale for known keys, closed for what cannot be decided; every failed fetch
is reported to `on_error`.
"""

from __future__ import annotations

import asyncio
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit

import jwt
import msgspec

from extproc.errors import Denied
from extproc.policies.auth import incorrect_credential

MAX_AGE_S: Final = 600.0  # how long a key that was withdrawn may still be believed
COOLDOWN_S: Final = 30.0  # invented key ids must not become load on the identity provider
STALE_MAX_S: Final = 86_400.0  # a day of outage; longer, nobody knows what was withdrawn
RETRY_S: Final = 1.0  # between attempts while there is no key at all: what Retry-After says
FETCH_TIMEOUT_S: Final = 5.0  # callers wait for it
MAX_DOCUMENT_BYTES: Final = 1024 * 1024  # a set of 4096-bit keys is about 1 KiB per key
MIN_RSA_BITS: Final = 2048  # RFC 7518, 3.3
_READ_BYTES: Final = 64 * 1024

Fetch = Callable[[str], Awaitable[bytes]]
Keys = Mapping[tuple[str | None, str], jwt.PyJWK]


class JwksCache:
    """The verification keys of one source, single-flight. For one event loop.

    `clock` is monotonic seconds. `fetch` returns the document or raises OSError or ValueError.
    `on_error` is called with "fetch" for each attempt that brought no usable key.
    """

    def __init__(
        self,
        source: str,
        *,
        fetch: Fetch,
        clock: Callable[[], float],
        on_error: Callable[[str], None] = lambda _: None,
        max_age_s: float = MAX_AGE_S,
        cooldown_s: float = COOLDOWN_S,
        stale_max_s: float = STALE_MAX_S,
    ) -> None:
        self._source = source
        self._fetch = fetch
        self._clock = clock
        self._on_error = on_error
        self._max_age_s = max_age_s
        self._cooldown_s = cooldown_s
        self._stale_max_s = stale_max_s
        self._keys: Keys = {}
        self._fetched_at: float | None = None
        self._attempted_at: float | None = None
        self._failing = False
        self._flight: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        age = "never" if self._fetched_at is None else f"{self._clock() - self._fetched_at:.0f}s"
        state = "failing" if self._failing else "ok"
        return f"JwksCache({self._source!r}, keys={len(self._keys)}, age={age}, {state})"

    async def key(self, kid: str | None, algorithm: str) -> jwt.PyJWK:
        """Return the key to verify with; does not suspend while a fresh set holds it.

        Without `kid` the set must hold exactly one key of the algorithm.
        Raises Denied: invalid_api_key for a key the set does not hold, store_unavailable where
        that cannot be told because the source is down.
        """
        if self._age() >= self._max_age_s:
            # Because a known outage must not cost every caller the fetch timeout, only the first
            # refresh is waited for; while it keeps failing, retries run behind stale answers.
            await self._refresh(wait=not (self._failing and self._usable()))
        found = self._lookup(kid, algorithm)
        if found is None:
            await self._refresh(wait=True)
            found = self._lookup(kid, algorithm)
        if found is not None:
            return found
        if self._failing or not self._usable():
            raise Denied(
                "store_unavailable", "The identity provider is unreachable.", retry_after_s=1
            )
        raise incorrect_credential()

    def _age(self) -> float:
        return float("inf") if self._fetched_at is None else self._clock() - self._fetched_at

    def _usable(self) -> bool:
        return self._age() < self._stale_max_s

    def _lookup(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        if not self._usable():
            return None
        if kid is not None:
            return self._keys.get((kid, algorithm))
        fitting = [key for (_, alg), key in self._keys.items() if alg == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    async def _refresh(self, *, wait: bool) -> None:
        """Join the fetch under way, or start one where the cooldown allows."""
        if self._flight is None or self._flight.done():
            pause_s = self._cooldown_s if self._usable() else min(RETRY_S, self._cooldown_s)
            if self._attempted_at is not None and self._clock() - self._attempted_at < pause_s:
                return
            self._attempted_at = self._clock()
            self._flight = asyncio.get_running_loop().create_task(self._fly())
        if wait:
            # Shielded: the fetch belongs to everybody who waits, not to the one that began it.
            await asyncio.shield(self._flight)

    async def _fly(self) -> None:
        try:
            self._keys = parse_jwks(await self._fetch(self._source))
            self._fetched_at = self._clock()
            self._failing = False
        except (OSError, ValueError):
            self._failing = True
            self._on_error("fetch")


def parse_jwks(document: bytes) -> Keys:
    """Return the usable verification keys of a JWK Set by key id and algorithm.

    Keys for encryption, of unsupported types, weak, symmetric or private are skipped: the last
    two have no business in a published set. Raises ValueError where nothing usable is left.
    """
    try:
        decoded = msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise ValueError("not JSON") from None
    entries = decoded.get("keys") if isinstance(decoded, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not a JWK Set: no list of keys")  # noqa: TRY004 (the document's fault)
    keys: dict[tuple[str | None, str], jwt.PyJWK] = {}
    for entry in entries:
        key = _verification_key(entry) if isinstance(entry, dict) else None
        if key is not None:
            keys.setdefault((key.key_id, key.algorithm_name), key)
    if not keys:
        raise ValueError("no usable key in the JWK Set")
    return keys


def _verification_key(entry: dict[str, Any]) -> jwt.PyJWK | None:
    operations = entry.get("key_ops", ["verify"])
    if "d" in entry or entry.get("use", "sig") != "sig":
        return None
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    if not isinstance(entry.get("kid"), str | None):
        return None
    # The key's own form decides what it verifies; what it says may only agree.
    if entry.get("kty") == "RSA":
        algorithm = "RS256"
    elif entry.get("kty") == "EC" and entry.get("crv") == "P-256":
        algorithm = "ES256"
    else:
        return None
    if entry.get("alg", algorithm) != algorithm:
        return None
    try:
        key = jwt.PyJWK(entry, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
        return None  # PyJWT raises whatever a member's type led it to
    weak = algorithm == "RS256" and key.key.key_size < MIN_RSA_BITS
    return None if weak else key


async def fetch_source(source: str) -> bytes:
    """Fetch a JWK Set from an http(s) URL or a file path, in a thread.

    At most MAX_DOCUMENT_BYTES within FETCH_TIMEOUT_S. Raises OSError or ValueError.
    """
    async with asyncio.timeout(FETCH_TIMEOUT_S):  # bounds what urllib does not: name resolution
        return await asyncio.to_thread(read_source, source, time.monotonic)


def read_source(source: str, clock: Callable[[], float]) -> bytes:
    """Read a JWK Set from an http(s) URL or a file path; blocks. See `fetch_source`."""
    if "://" not in source:
        with Path(source).open("rb") as file:
            return _limited(file.read(MAX_DOCUMENT_BYTES + 1))
    if urlsplit(source).scheme not in {"http", "https"}:
        raise ValueError("a JWK Set comes from http, https or a file path")
    deadline = clock() + FETCH_TIMEOUT_S
    request = urllib.request.Request(source, headers={"Accept": "application/json"})  # noqa: S310
    try:
        with _opener().open(request, timeout=FETCH_TIMEOUT_S) as response:
            body = bytearray()
            # The timeout of urllib is per read: without a deadline a drip would hold the thread.
            while chunk := response.read1(_READ_BYTES):
                body += chunk
                _limited(body)
                if clock() >= deadline:
                    raise TimeoutError("the JWK Set came too slowly")
            return bytes(body)
    except http.client.HTTPException as error:
        raise OSError(f"broken HTTP answer: {type(error).__name__}") from None


def _limited(body: bytes | bytearray) -> bytes:
    if len(body) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"a JWK Set of more than {MAX_DOCUMENT_BYTES} bytes")
    return bytes(body)


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from https to http: keys must not arrive in the clear."""

    def redirect_request(  # noqa: PLR0917 (urllib's signature)
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise urllib.error.HTTPError(req.full_url, code, "leaves https", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Build an opener for http and https only: urllib's own also opens files and FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _NoDowngrade(),
    ):
        opener.add_handler(handler)
    return opener
