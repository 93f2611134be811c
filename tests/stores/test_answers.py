"""What every store of answers promises, on memory, on a real Redis, and on one before the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from extproc.answers import Entry
from tests.kept import TTL_MS, Bench, MemoryBench, RedisBench, TieredBench, entry, key
from tests.redis_server import RedisServer

RANDOM = bytes((n * 7919 + n * n) % 256 for n in range(3_000))


@pytest.fixture(params=["memory", "redis", "tiered"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """Give each store in turn."""
    made: Bench
    if request.param == "memory":
        made = MemoryBench()
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        made = (RedisBench if request.param == "redis" else TieredBench)(server.url)
    await made.start()
    yield made
    await made.stop()
    assert made.errors.failures == []


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="a JSON document"),
        pytest.param({"form": "sse", "body": b"data: {}\n\ndata: [DONE]\n\n"}, id="a stream"),
        pytest.param({"body": b""}, id="nothing"),
        pytest.param({"body": b'{"a": "' + b"word " * 400 + b'"}'}, id="what zlib makes smaller"),
        pytest.param({"body": RANDOM}, id="what zlib does not make smaller"),
        pytest.param({"body": b"x" * 500_000}, id="what is packed and unpacked in threads"),
        pytest.param({"tenant": "", "model": "a\x00b", "provider": "ü\U0001f600"}, id="odd names"),
        pytest.param({"usage": (2**40, 0, 2**33)}, id="huge usage"),
    ],
)
async def test_an_answer_comes_back_as_it_was(bench: Bench, more: dict[str, Any]) -> None:
    """Every field, every byte."""
    made = bench.put("a", **more)
    await bench.quiet()
    assert await bench.get("a") == made
    assert await bench.get("b") is None


async def test_a_later_answer_takes_the_place(bench: Bench) -> None:
    """The last one put is the one that comes."""
    bench.put("a", body=b"1")
    bench.clock.now += 1
    last = bench.put("a", body=b"2" * 2_000)
    await bench.quiet()
    assert await bench.get("a") == last


async def test_an_answer_ends_with_its_time(bench: Bench) -> None:
    """To the millisecond, however often it was asked for."""
    made = bench.put("a")
    await bench.quiet()
    last = made.expires_ms - 1
    for _ in range(3):
        assert await bench.store.get(key("a"), last) == made
    assert await bench.store.get(key("a"), last + 1) is None


async def test_what_is_over_already_is_not_kept(bench: Bench) -> None:
    """A slow settlement brings it after its end."""
    bench.store.put(key("a"), entry(bench.now_ms - TTL_MS))
    await bench.quiet()
    assert await bench.get("a") is None


HELD = {
    "acme small": ("acme", "small"),
    "acme large": ("acme", "large"),
    "beta small": ("beta", "small"),
    "beta large": ("beta", "large"),
    "nobody small": ("", "small"),
    "looks like a list": ('acme",null', "small"),
}


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        pytest.param({}, set(), id="everything"),
        pytest.param({"tenant": "acme"}, {k for k in HELD if "acme" not in k}, id="a tenant"),
        pytest.param({"model": "small"}, {"acme large", "beta large"}, id="a model"),
        pytest.param(
            {"tenant": "acme", "model": "small"}, {*HELD} - {"acme small"}, id="one in the other"
        ),
        pytest.param({"tenant": ""}, {*HELD} - {"nobody small"}, id="the tenant without a name"),
        pytest.param({"tenant": "acme", "model": "none"}, {*HELD}, id="a model it never used"),
        pytest.param({"tenant": "gone"}, {*HELD}, id="an unknown tenant"),
    ],
)
async def test_a_purge_takes_what_it_names(
    bench: Bench, asked: dict[str, str], left: set[str]
) -> None:
    """No more and no less, and what is put later stays."""
    for name, (tenant, model) in HELD.items():
        bench.put(name, tenant=tenant, model=model)
    await bench.quiet()
    assert {name for name in HELD if await bench.get(name)} == set(HELD)
    await bench.store.purge(**asked)
    assert {name for name in HELD if await bench.get(name)} == left
    bench.clock.now += 0.001
    for name, (tenant, model) in HELD.items():
        bench.put(name, tenant=tenant, model=model)
    await bench.quiet()
    assert {name for name in HELD if await bench.get(name)} == set(HELD)


async def test_many_purges_are_bounded_and_forget_no_less(bench: Bench) -> None:
    """After a thousand marks the next one is of everything."""
    kept = bench.put("a", tenant="other")
    await bench.quiet()
    for n in range(1_024):
        await bench.store.purge(tenant=f"t{n}")
    assert await bench.get("a") == kept
    await bench.store.purge(tenant="one more")
    assert await bench.get("a") is None
    bench.clock.now += 0.001
    bench.put("a", tenant="t1")
    await bench.quiet()
    assert isinstance(await bench.get("a"), Entry)


async def test_a_store_says_what_it_is(bench: Bench) -> None:
    """No key, no body, no password of a URL."""
    bench.put("a", body=b"a secret")
    await bench.quiet()
    assert bench.kind in repr(bench.store).lower()
    assert "secret" not in repr(bench.store)


async def test_many_are_looked_up_at_once(bench: Bench) -> None:
    """Each in its place, whichever are there, and as often as it is asked for."""
    names = ["a", "b", "c"]
    made = {name: bench.put(name, body=name.encode() * 200_000) for name in names}
    await bench.quiet()
    asked = ["b", "none", "a", "b", "gone", "c"]
    found = await bench.store.get_many([key(name) for name in asked], bench.now_ms)
    assert found == [made.get(name) for name in asked]
    assert await bench.store.get_many([key("none"), key("gone")], bench.now_ms) == [None, None]
