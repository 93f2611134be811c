"""Keep API keys in Redis, for several workers and replicas: digests and attributes, never a key.

Knows: Redis and the names it owns there. Must not know: configuration, tiers' meaning, clocks and
randomness (both are arguments), the event loop (every call blocks; call it through a thread).
Failure mode: KeyStoreError. The server goes on with the directory it has, up to the age that
`keyring` states; commands fail. How long keys outlive Redis itself is for its persistence to say.

All names share one hash tag, so that they live in one slot of a Redis Cluster:
  {llm-edge:keys}:meta          hash: incarnation (random, one for the life of the data), epoch
  {llm-edge:keys}:index         sorted set: key id -> the epoch of its last change
  {llm-edge:keys}:tenants       set: every tenant a key ever had
  {llm-edge:keys}:used          sorted set: key id -> when it was last used
  {llm-edge:keys}:record:<id>   hash: one key
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from extproc.domain import KeyRecord
from extproc.policies import keys
from extproc.policies.auth import KeyDirectory
from extproc.policies.keys import KeyRequest, UnknownKeyError
from extproc.stores.keys import KeyStoreError

_T = TypeVar("_T")

PREFIX: Final = "{llm-edge:keys}"
TIMEOUT_S: Final = 1.0  # off the request path: patient with a slow Redis, not with a hung one
MAX_TRIES: Final = 100  # of a write that others get ahead of: each time one of them succeeded
BATCH: Final = 500  # records in one round trip, about 250 KB
_COMMIT: Final = Path(__file__).with_name("lua").joinpath("keys_commit.lua").read_text()


class RedisKeys:
    """The keys of every gateway that shares one Redis. Safe to share between threads.

    A `stores.keys.KeyStore`; what its methods promise is said there.
    """

    def __init__(self, url: str, *, cluster: bool = False) -> None:
        """Take a `redis://`, `rediss://` or `unix://` URL, of a `cluster` that of any node.

        Connects when first used.
        """
        self._url = url
        self._cluster = cluster
        self._made: Any = None
        self._making = threading.Lock()
        self._lock = threading.Lock()  # guards what was seen
        self._incarnation = ""
        self._epoch: int | None = None  # None: read everything next time
        self._records: dict[str, KeyRecord] = {}

    def __repr__(self) -> str:
        return f"RedisKeys({self._where()!r})"

    @property
    def _redis(self) -> Any:
        """Return the client. Raises RedisClusterException where no node of the cluster answers."""
        with self._making:
            if self._made is None:
                kind: Any = redis.RedisCluster if self._cluster else redis.Redis
                # No retry: one that follows an unseen success would find the key it wrote itself.
                self._made = kind.from_url(
                    self._url,
                    decode_responses=True,
                    socket_timeout=TIMEOUT_S,
                    socket_connect_timeout=TIMEOUT_S,
                    retry=Retry(NoBackoff(), 0),
                )
            return self._made

    def close(self) -> None:
        """Close the connections."""
        if self._made is not None:
            self._made.close()

    def create(self, request: KeyRequest, *, now: float, token: bytes) -> tuple[KeyRecord, str]:
        """Store a new key."""

        def decide() -> tuple[list[KeyRecord], tuple[KeyRecord, str]]:
            tenant = request.tenant
            if tenant is None:
                tenant = keys.own_tenant(request.name, self._redis.smembers(f"{PREFIX}:tenants"))
            made = keys.make(request, tenant, now=now, token=token)
            self._refuse_known(made[0])
            return [made[0]], made

        return self._write(decide)

    def get(self, key_id: str) -> KeyRecord:
        """Return one key."""
        with self._reported():
            return self._one(key_id)

    def list(self) -> tuple[KeyRecord, ...]:
        """Return every key."""
        with self._reported():
            ids = self._redis.zrange(f"{PREFIX}:index", 0, -1)
            used = dict(self._redis.zrange(f"{PREFIX}:used", 0, -1, withscores=True))
            records = self._fetch(ids, used)
        return tuple(sorted(records.values(), key=lambda r: (r.created_at, r.key_id)))

    def rotate(
        self,
        key_id: str,
        *,
        grace_s: float,
        now: float,
        token: bytes,
        expires_at: float | None = None,
    ) -> tuple[KeyRecord, str]:
        """Replace a live key by a new one."""
        keys.check_grace(grace_s)

        def decide() -> tuple[list[KeyRecord], tuple[KeyRecord, str]]:
            old, new, plaintext = keys.rotate(
                self._one(key_id), grace_s=grace_s, now=now, token=token, expires_at=expires_at
            )
            self._refuse_known(new)
            return [old, new], (new, plaintext)

        return self._write(decide)

    def revoke(self, key_id: str, *, now: float) -> KeyRecord:
        """End a key."""

        def decide() -> tuple[list[KeyRecord], KeyRecord]:
            ended = keys.end(self._one(key_id), now)
            return [ended], ended

        return self._write(decide)

    def directory(self) -> KeyDirectory:
        """Return every key by digest, having fetched those that changed since the last time."""
        with self._lock, self._reported():
            incarnation, epoch = self._meta_of_the_same_data()
            if incarnation != self._incarnation or self._epoch is None or epoch < self._epoch:
                known, since = {}, 0
            else:
                known, since = self._records, self._epoch + 1
            # What is written meanwhile is read now or seen as a change again, never neither.
            ids = self._redis.zrange(f"{PREFIX}:index", since, "+inf", byscore=True)
            records = known | self._fetch(ids)
            directory = KeyDirectory.of(records.values(), epoch)
            self._incarnation, self._epoch, self._records = incarnation, epoch, records
            return directory

    def changed(self) -> bool:
        """Ask with one round trip."""
        with self._lock, self._reported():
            return self._meta_of_the_same_data() != (self._incarnation, self._epoch)

    def write_used(self, used: Mapping[str, float]) -> None:
        """Note when keys were last used."""
        with self._reported():
            self._redis.zadd(f"{PREFIX}:used", dict(used), gt=True)

    def _meta(self) -> tuple[str, int]:
        """Return the incarnation and epoch, ("", 0) of a store nobody ever wrote to."""
        incarnation, epoch = self._redis.hmget(f"{PREFIX}:meta", "incarnation", "epoch")
        return incarnation or "", int(epoch or 0)

    def _meta_of_the_same_data(self) -> tuple[str, int]:
        """Return the incarnation and epoch; to have lost the keys is an outage, not their end."""
        incarnation, epoch = self._meta()
        if self._incarnation and not incarnation:  # flushed, or started again without its data
            raise KeyStoreError(f"redis {self._where()}: the keys are gone")
        return incarnation, epoch

    def _one(self, key_id: str) -> KeyRecord:
        if self._redis.zscore(f"{PREFIX}:index", key_id) is None:
            raise UnknownKeyError(key_id)
        used = self._redis.zscore(f"{PREFIX}:used", key_id)
        return self._fetch([key_id], {key_id: used})[key_id]

    def _refuse_known(self, record: KeyRecord) -> None:
        """Never write one key over another: the same randomness came twice."""
        if self._redis.zscore(f"{PREFIX}:index", record.key_id) is not None:
            raise KeyStoreError(f"redis {self._where()}: {record.key_id} is there already")

    def _fetch(
        self, ids: Sequence[str], used: Mapping[str, float | None] | None = None
    ) -> dict[str, KeyRecord]:
        records = {}
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            with self._redis.pipeline(transaction=False) as pipeline:
                for key_id in batch:
                    pipeline.hgetall(_name(key_id))
                for key_id, fields in zip(batch, pipeline.execute(), strict=True):
                    records[key_id] = self._read(key_id, fields, (used or {}).get(key_id))
        return records

    def _read(self, key_id: str, fields: Mapping[str, str], used: float | None) -> KeyRecord:
        try:
            return _record(key_id, fields, used)
        except (LookupError, ValueError, msgspec.MsgspecError) as error:
            # Evicted or overwritten: to go on without it would be to say that there is no such key.
            raise KeyStoreError(f"redis {self._where()}: {key_id} is not readable") from error

    def _write(self, decide: Callable[[], tuple[Sequence[KeyRecord], _T]]) -> _T:
        """Write the records that `decide` returns unless somebody wrote after it had read."""
        with self._reported():
            for _ in range(MAX_TRIES):
                incarnation, epoch = self._meta()
                records, answer = decide()
                if self._commit(incarnation, epoch, records):
                    return answer
        raise KeyStoreError(f"redis {self._where()}: others keep writing, try again")

    def _commit(self, incarnation: str, epoch: int, records: Sequence[KeyRecord]) -> bool:
        names = [f"{PREFIX}:meta", f"{PREFIX}:index", f"{PREFIX}:tenants"]
        words = [incarnation, str(epoch), records[0].key_id]
        for record in records:
            names.append(_name(record.key_id))
            words += [record.key_id, record.tenant, _fields(record)]
        return bool(self._redis.eval(_COMMIT, len(names), *names, *words))

    def _where(self) -> str:
        at: Any = parse_url(self._url)  # type: ignore[no-untyped-call]
        # Never the URL: it may hold a password.
        if at.get("path"):
            return str(at["path"])
        return f"{at.get('host', 'localhost')}:{at.get('port', 6379)}/{at.get('db') or 0}"

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turn what redis raises into KeyStoreError, after which everything is read anew.

        Because a failover may have lost the last writes, and their epochs may be given out again.
        """
        try:
            yield
        except (redis.RedisError, RedisClusterException, KeyStoreError) as error:
            self._epoch = None
            if isinstance(error, KeyStoreError):
                raise
            raise KeyStoreError(f"redis {self._where()}: {error}") from error


def _name(key_id: str) -> str:
    return f"{PREFIX}:record:{key_id}"


def _fields(record: KeyRecord) -> str:
    """Encode a record as a JSON array of fields and values; what is None has no field."""
    values = {
        "digest": record.digest.hex(),
        "name": record.name,
        "tenant": record.tenant,
        "tier": record.tier,
        "models": _names(record.models),
        "endpoints": _names(record.endpoints),
        "tags": _names(record.tags or None),
        "created_at": repr(record.created_at),
        "expires_at": None if record.expires_at is None else repr(record.expires_at),
        "revoked_at": None if record.revoked_at is None else repr(record.revoked_at),
    }
    given = [word for pair in values.items() if pair[1] is not None for word in pair]
    return msgspec.json.encode(given).decode()


def _names(names: frozenset[str] | None) -> str | None:
    return None if names is None else msgspec.json.encode(sorted(names)).decode()


def _record(key_id: str, fields: Mapping[str, str], used: float | None) -> KeyRecord:
    def names(field: str) -> frozenset[str] | None:
        text = fields.get(field)
        return None if text is None else msgspec.json.decode(text, type=frozenset[str])

    def time_s(field: str) -> float | None:
        text = fields.get(field)
        return None if text is None else float(text)

    return KeyRecord(
        key_id=key_id,
        digest=bytes.fromhex(fields["digest"]),
        name=fields["name"],
        tenant=fields["tenant"],
        tier=fields["tier"],
        models=names("models"),
        endpoints=names("endpoints"),
        created_at=float(fields["created_at"]),
        expires_at=time_s("expires_at"),
        revoked_at=time_s("revoked_at"),
        tags=names("tags") or frozenset(),
        last_used_at=used,
    )
