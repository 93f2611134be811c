"""Find the caller's credential and resolve API keys.

Knows: credential headers, what an API key looks like, an immutable directory of digests. Must not
know: JWT, files, clocks (time is an argument) or the event loop. Nothing here puts a credential
into a message, a repr or an exception.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from types import MappingProxyType
from typing import Final

from extproc.domain import KeyRecord, Principal
from extproc.errors import Denied
from extproc.headers import CREDENTIALS

KEY_TOKEN_BYTES: Final = 32  # 256 bits: out of reach of guessing for as long as BLAKE2 stands
MAX_CREDENTIAL_BYTES: Final = 16_384  # IdPs put group lists into tokens; beyond this it is abuse

API_KEY_PATTERN: Final = re.compile(r"sk_[A-Za-z0-9_-]{43}", re.ASCII)
JWT_PATTERN: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
# token68 of RFC 9110 section 11.2: no blank, no comma, so a repeated header can never be one value.
_TOKEN68: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)

# A tenant of an API key. No ":": that is the mark of a tenant that an identity provider named.
TENANT_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
ANONYMOUS: Final = "anonymous"  # tenant and key id of callers without a credential: reserved

_INCORRECT: Final = "Incorrect API key provided."  # one message: unknown, expired, revoked, garbage
_MALFORMED: Final = "Malformed credential. Send one of: Authorization: Bearer, x-api-key, api-key."


def incorrect_credential() -> Denied:
    """Build the refusal of a credential that says nothing about why."""
    return Denied("invalid_api_key", _INCORRECT)


def find_credential(headers: Mapping[str, str]) -> str | None:
    """Return the one credential of a request, None where no credential header is present at all.

    Names are lower-case, repeats joined by ", ". Equal credentials in several headers are one.
    Raises Denied(invalid_api_key): empty, malformed, another scheme than Bearer, or two that
    differ (RFC 6750, 2.1; the `x-api-key` of Anthropic, the `api-key` of Azure OpenAI).
    """
    found: str | None = None
    for name in CREDENTIALS:
        value = headers.get(name)
        if value is None:
            continue
        credential = value.strip(" \t")
        if name == "authorization":
            scheme, _, credential = credential.partition(" ")
            if scheme.lower() != "bearer":
                raise Denied("invalid_api_key", "Unsupported Authorization scheme; use Bearer.")
            credential = credential.lstrip(" ")
        if len(credential) > MAX_CREDENTIAL_BYTES or _TOKEN68.fullmatch(credential) is None:
            raise Denied("invalid_api_key", _MALFORMED)
        if found is not None and credential != found:
            raise Denied("invalid_api_key", "Conflicting credentials: send one, or equal ones.")
        found = credential
    return found


def looks_like_api_key(credential: str) -> bool:
    """Say whether a credential has the form of our API keys."""
    return API_KEY_PATTERN.fullmatch(credential) is not None


def looks_like_jwt(credential: str) -> bool:
    """Say whether a credential has the form of a signed compact JWS (RFC 7515, 3.1)."""
    return JWT_PATTERN.fullmatch(credential) is not None


def new_api_key(token: bytes) -> tuple[str, str]:
    """Return the public key id and the key for `KEY_TOKEN_BYTES` bytes of fresh randomness.

    The id is derived under its own personalisation, so it tells nothing about the stored digest.
    """
    if len(token) != KEY_TOKEN_BYTES:
        raise ValueError(f"a key takes {KEY_TOKEN_BYTES} random bytes, not {len(token)}")
    plaintext = "sk_" + base64.urlsafe_b64encode(token).rstrip(b"=").decode("ascii")
    return f"key_{blake2b(token, digest_size=8, person=b'llm-edge key id').hexdigest()}", plaintext


def digest_of(key: str) -> bytes:
    """Return the 32 bytes under which a key is stored and looked up.

    A fast hash on purpose: argon2 protects guessable secrets, these carry 256 random bits, and a
    slow one on the request path would be a gift to whoever floods it with garbage.
    """
    return blake2b(key.encode("ascii"), digest_size=32, person=b"llm-edge api key").digest()


@dataclass(frozen=True, slots=True)
class KeyDirectory:
    """Every known key by digest, as of one `epoch`; a later state has a higher one."""

    keys: Mapping[bytes, KeyRecord] = field(repr=False)
    epoch: int

    @classmethod
    def of(cls, records: Iterable[KeyRecord], epoch: int) -> KeyDirectory:
        """Build a directory; two records of one digest are a ValueError."""
        keys: dict[bytes, KeyRecord] = {}
        for record in records:
            if record.digest in keys:
                raise ValueError(f"{record.key_id} and {keys[record.digest].key_id} are one key")
            keys[record.digest] = record
        return cls(MappingProxyType(keys), epoch)

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"KeyDirectory(epoch={self.epoch}, keys={len(self.keys)})"


NO_KEYS: Final = KeyDirectory.of((), 0)


def is_live(record: KeyRecord, now: float) -> bool:
    """Say whether a key is good at `now` (unix seconds): both its ends are exclusive."""
    expired = record.expires_at is not None and now >= record.expires_at
    revoked = record.revoked_at is not None and now >= record.revoked_at
    return not (expired or revoked)


def authenticate_key(credential: str, directory: KeyDirectory, now: float) -> Principal:
    """Return whose key it is at `now` (unix seconds).

    Raises Denied(invalid_api_key), with one message for unknown, expired, revoked and malformed.
    """
    if not looks_like_api_key(credential):
        raise incorrect_credential()
    digest = digest_of(credential)
    record = directory.keys.get(digest)
    # The dictionary compares digests early-out, which tells a caller who cannot choose them
    # nothing; compare_digest settles it without having to argue.
    if record is None or not hmac.compare_digest(record.digest, digest):
        raise incorrect_credential()
    if not is_live(record, now):
        raise incorrect_credential()
    return Principal(record.tenant, record.key_id, record.tier, record.models, record.endpoints)
