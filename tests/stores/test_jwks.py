"""Key sets: who waits for a fetch, how often there is one, and what an outage does."""

from __future__ import annotations

import asyncio

import jwt
import pytest

from extproc.errors import Denied
from extproc.stores.jwks import JwksCache
from tests.tokens import document


class Source:
    """A key source and a clock, both by hand: `answer` is a document or what to raise."""

    def __init__(self, answer: bytes | Exception) -> None:
        self.answer = answer
        self.now = 1000.0
        self.fetches = 0
        self.errors: list[str] = []
        self.open = asyncio.Event()
        self.open.set()

    async def fetch(self, source: str) -> bytes:
        assert source == "https://idp.example/jwks"
        self.fetches += 1
        await self.open.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def cache(self) -> JwksCache:
        return JwksCache(
            "https://idp.example/jwks",
            fetch=self.fetch,
            clock=lambda: self.now,
            on_error=self.errors.append,
        )


async def turns(count: int = 10) -> None:
    """Let every ready task run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def refusal(cache: JwksCache, kid: str | None, algorithm: str = "RS256") -> Denied:
    """Return how a key is refused."""
    with pytest.raises(Denied) as caught:
        await cache.key(kid, algorithm)
    return caught.value


async def test_invented_key_ids_cost_one_fetch_per_cooldown() -> None:
    """Fetch again for unknown ids at most once in 30 seconds, then refuse with 401."""
    source = Source(document("k1"))
    cache = source.cache()
    await cache.key("k1", "RS256")
    for i in range(100):
        source.now += 0.25  # 25 s in all: within the cooldown of the first fetch
        assert (await refusal(cache, f"invented-{i}")).status == 401
    assert source.fetches == 1
    source.now += 5
    for i in range(100):
        assert (await refusal(cache, f"invented-{i}")).status == 401
    assert source.fetches == 2
    assert source.errors == []


async def test_concurrent_unknown_ids_share_one_fetch() -> None:
    """Let everybody who asks during a fetch wait for that one."""
    source = Source(document("k1"))
    cache = source.cache()
    await cache.key("k1", "RS256")
    source.now += 30
    source.answer = document("k1", "k2")
    source.open.clear()
    asked = [asyncio.ensure_future(cache.key("k2", "RS256")) for _ in range(50)]
    asked += [asyncio.ensure_future(cache.key(f"x{i}", "RS256")) for i in range(50)]
    await turns()
    assert source.fetches == 2
    source.open.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(a, jwt.PyJWK) and a.key_id == "k2" for a in answers[:50])
    assert all(isinstance(a, Denied) and a.status == 401 for a in answers[50:])
    assert source.fetches == 2


async def test_a_cancelled_caller_does_not_take_the_fetch_along() -> None:
    """Keep the fetch of a caller that went away for the others that wait for it."""
    source = Source(document("k1"))
    cache = source.cache()
    source.open.clear()
    first, second = (asyncio.ensure_future(cache.key("k1", "RS256")) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    source.open.set()
    assert (await second).key_id == "k1"
    assert first.cancelled()
    assert source.fetches == 1


async def test_rotation_at_the_provider_is_seen() -> None:
    """Find a new key by its unknown id; forget a withdrawn one when the set is refreshed."""
    source = Source(document("old"))
    cache = source.cache()
    await cache.key("old", "RS256")
    source.answer = document("new")
    source.now += 30
    assert (await cache.key("new", "RS256")).key_id == "new"
    assert (await refusal(cache, "old")).status == 401


async def test_a_fresh_set_answers_without_suspending() -> None:
    """Step the coroutine once, as a transport does, and have the answer."""
    source = Source(document("k1"))
    cache = source.cache()
    await cache.key("k1", "RS256")
    source.now += 599.9
    with pytest.raises(StopIteration):
        cache.key("k1", "RS256").send(None)
    assert source.fetches == 1


async def test_an_old_set_is_refreshed_before_it_answers() -> None:
    """Never believe a withdrawn key beyond the maximum age while the source is up."""
    source = Source(document("k1"))
    cache = source.cache()
    await cache.key("k1", "RS256")
    source.answer = document("k2")
    source.now += 600
    assert (await refusal(cache, "k1")).status == 401
    assert source.fetches == 2


OUTAGES: dict[str, bytes | Exception] = {
    "the source is down": OSError("no route"),
    "the source is slow": TimeoutError(),
    "the answer is too large": ValueError("too large"),
    "the answer is no JSON": b"<html>",
    "the answer is no key set": b"[]",
    "the set is empty": b'{"keys": []}',
    "no key of the set is usable": b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}',
    "the answer is nested without end": b"[" * 100_000,
    "the answer is no text": b"\xff\xfe",
}


@pytest.mark.parametrize("outage", OUTAGES.values(), ids=OUTAGES.keys())
async def test_outage_serves_stale_then_closes(outage: bytes | Exception) -> None:
    """Answer from the last good set for a day, count each failure, then refuse with 503."""
    source = Source(document("k1"))
    cache = source.cache()
    await cache.key("k1", "RS256")
    source.answer = outage
    source.now += 600
    assert (await cache.key("k1", "RS256")).key_id == "k1"
    assert source.errors == ["fetch"]
    source.now += 86_400 - 600 - 0.5
    assert (await cache.key("k1", "RS256")).key_id == "k1"
    await turns()
    source.now += 0.5
    denied = await refusal(cache, "k1")
    assert (denied.status, denied.code) == (503, "store_unavailable")
    assert denied.retry_after_s == 1


async def test_known_outage_keeps_nobody_waiting() -> None:
    """Wait for the first failing refresh only; later ones run behind stale answers."""
    source = Source(document("k1"))
    cache = source.cache()
    await cache.key("k1", "RS256")
    source.answer = OSError()
    source.now += 600
    await cache.key("k1", "RS256")
    source.open.clear()  # from now on the source hangs
    source.now += 30
    with pytest.raises(StopIteration):
        cache.key("k1", "RS256").send(None)
    await turns()
    assert source.fetches == 3
    source.answer = document("k1")
    source.open.set()
    await turns()
    assert "failing" not in repr(cache)


async def test_outage_is_not_hammered() -> None:
    """Try a source that is down once per cooldown, not once per caller."""
    source = Source(document("k1"))
    cache = source.cache()
    await cache.key("k1", "RS256")
    source.answer = OSError()
    source.now += 600
    for _ in range(100):
        await cache.key("k1", "RS256")
    assert source.fetches == 2


async def test_unknown_id_in_an_outage_is_undecided() -> None:
    """Say 503, not 401, of a key that may exist where the source cannot be asked."""
    source = Source(document("k1"))
    cache = source.cache()
    await cache.key("k1", "RS256")
    source.answer = OSError()
    source.now += 30
    assert (await refusal(cache, "k2")).status == 503


async def test_never_fetched_and_down_is_503_until_it_is_up() -> None:
    """Close without any set, and try again as soon as callers were told to."""
    source = Source(OSError())
    cache = source.cache()
    for _ in range(10):
        denied = await refusal(cache, "k1")
        assert (denied.status, denied.retry_after_s) == (503, 1)
    assert source.fetches == 1
    source.answer = document("k1")
    source.now += 1
    assert (await cache.key("k1", "RS256")).key_id == "k1"
    assert source.errors == ["fetch"]


async def test_a_bug_in_fetch_is_not_taken_for_an_outage() -> None:
    """Let an unexpected error through, and fetch again later."""
    source = Source(RuntimeError("bug"))
    cache = source.cache()
    with pytest.raises(RuntimeError):
        await cache.key("k1", "RS256")
    source.answer = document("k1")
    source.now += 1
    assert (await cache.key("k1", "RS256")).key_id == "k1"


async def test_a_token_without_kid_needs_a_set_of_one() -> None:
    """Choose without an id only where there is nothing to choose."""
    one, two = Source(document("k1")).cache(), Source(document("k1", "k2")).cache()
    assert (await one.key(None, "RS256")).key_id == "k1"
    assert (await refusal(one, None, "ES256")).status == 401
    assert (await refusal(two, None)).status == 401


async def test_an_id_is_good_for_its_own_algorithm_only() -> None:
    """Never hand an RSA key to an ES256 token."""
    cache = Source(document("k1")).cache()
    assert (await refusal(cache, "k1", "ES256")).status == 401
    assert (await refusal(cache, "k1", "HS256")).status == 401
