"""The store of one process: its bound, its two parts, idle time, purges that others overtake."""

from __future__ import annotations

import asyncio
import os
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from extproc.answers import OVERHEAD_BYTES, Entry
from extproc.stores.held import AnswerStats
from tests.kept import TTL_MS, MemoryBench, entry, key

INSERTS = int(os.environ.get("LLM_EDGE_CACHE_INSERTS", "60000"))  # `make crash` sets 1,000,000
BOUND = 32 * 2**20
SIZES = (100, 700, 2_000, 9_000, 40_000, 250_000, 2**20 - OVERHEAD_BYTES)
SHARES = (40, 30, 15, 8, 4, 2, 1)  # many small ones, few large ones
KIB = 1_024


def of_weight(bench: MemoryBench, weight: int, **more: object) -> Entry:
    return entry(bench.now_ms, body=bytes(weight - OVERHEAD_BYTES), **more)


async def test_a_flood_of_new_prompts_leaves_the_popular_ones() -> None:
    """Ten that were asked for twice outlive ten thousand that come once."""
    bench = MemoryBench(100 * 2 * KIB)
    for name in range(10):
        bench.put(name)
        assert await bench.get(name)
    for name in range(10_000):
        bench.put(("once", name))
    assert [name for name in range(10) if await bench.get(name)] == list(range(10))


async def test_a_full_store_still_takes_what_is_new() -> None:
    """TinyLFU alone would refuse the newest: it has been asked for no more than what is there."""
    bench = MemoryBench(100 * 2 * KIB)
    for name in range(1_000):
        bench.put(("once", name))
    bench.put("new")
    assert await bench.get("new")


async def test_what_the_popular_part_does_not_use_is_the_windows() -> None:
    """Without a hit the window has all of it."""
    bench = MemoryBench(100 * 2 * KIB)
    for name in range(100):
        bench.store.put(key(name), of_weight(bench, 2 * KIB))
    assert (len(bench.store), bench.store.stats().evicted) == (100, 0)


async def test_the_least_recently_used_leaves_first() -> None:
    """Of those that are in the window."""
    bench = MemoryBench(4 * 2 * KIB)
    for name in range(6):
        bench.store.put(key(name), of_weight(bench, 2 * KIB))
    assert [name for name in range(6) if key(name) in bench.store._window] == [2, 3, 4, 5]


async def test_a_popular_one_that_the_main_part_declines_stays_in_the_window() -> None:
    """One larger than half of everything fits nowhere else."""
    bench = MemoryBench(10 * KIB)
    bench.store.put(key("large"), of_weight(bench, 6 * KIB))
    for _ in range(5):
        assert await bench.get("large")
    stats = bench.store.stats()
    assert (stats.entries, stats.bytes, stats.evicted) == (1, 6 * KIB, 0)


async def test_what_the_main_part_pushes_out_stays_while_there_is_room() -> None:
    """And is the first to leave when there is none."""
    bench = MemoryBench(10 * 2 * KIB)
    for name in range(9):
        bench.store.put(key(name), of_weight(bench, 2 * KIB))
        for _ in range(1 + name):  # each asked for more often than those before it
            assert await bench.get(name)
    assert len(bench.store._in_main) == 5
    assert (len(bench.store), bench.store.stats().evicted) == (9, 0)
    pushed_out = next(iter(bench.store._window))
    for name in ("new", "newer"):
        bench.store.put(key(name), of_weight(bench, 2 * KIB))
    assert pushed_out not in bench.store._window
    assert await bench.get("new")


@pytest.mark.parametrize(
    ("weight", "kept"),
    [
        pytest.param(10 * KIB, True, id="as large as the store"),
        pytest.param(10 * KIB + 1, False, id="a byte larger"),
    ],
)
async def test_one_larger_than_everything_is_declined(weight: int, kept: bool) -> None:
    """And pushes nothing out."""
    bench = MemoryBench(10 * KIB)
    small = bench.put("small")
    bench.store.put(key("large"), of_weight(bench, weight))
    assert (await bench.get("large") is not None) is kept
    assert await bench.get("small") == (None if kept else small)
    assert bench.store.stats().declined == (0 if kept else 1)


@pytest.mark.parametrize(
    ("endpoint", "steps_s", "kept"),
    [
        pytest.param("chat", (59.999,), True, id="asked for in time"),
        pytest.param("chat", (60.0,), False, id="not asked for in time"),
        pytest.param("chat", (50.0, 50.0, 50.0, 50.0, 50.0, 49.0), True, id="again and again"),
        pytest.param("chat", (50.0, 50.0, 50.0, 50.0, 50.0, 50.0), False, id="its time is over"),
        pytest.param("embeddings", (299.0,), True, id="an embedding has no idle time"),
    ],
)
async def test_idle_time(endpoint: str, steps_s: tuple[float, ...], kept: bool) -> None:
    """By the times it is asked with, in both parts."""
    bench = MemoryBench(idle_s=60.0)
    bench.put("a", endpoint=endpoint)
    found = []
    for step in steps_s:
        bench.clock.now += step
        found.append(await bench.get("a") is not None)
    assert found == [True] * (len(steps_s) - 1) + [kept]


async def test_an_older_answer_does_not_replace_a_newer_one() -> None:
    """Whose settlement was slow."""
    bench = MemoryBench()
    older = entry(bench.now_ms - 1, body=b"older")
    newer = bench.put("a")
    bench.store.put(key("a"), older)
    assert await bench.get("a") == newer


@pytest.mark.parametrize("asked", [{}, {"tenant": "acme"}, {"model": "small"}])
async def test_a_purge_stops_what_is_on_its_way(asked: dict[str, str]) -> None:
    """An answer from before it that is put after it."""
    bench = MemoryBench()
    before = entry(bench.now_ms)
    await bench.store.purge(**asked)
    bench.store.put(key("a"), before)
    assert await bench.get("a") is None
    bench.clock.now += 0.001
    bench.put("a")
    assert await bench.get("a")


async def test_a_purge_of_many_lets_the_loop_go_on() -> None:
    """It is in force at once, and the memory comes back in turns."""
    bench = MemoryBench()
    for name in range(5_000):
        bench.put(name)
        if name % 2:
            await bench.get(name)
    work = asyncio.ensure_future(bench.store.purge())
    await asyncio.sleep(0)
    assert not work.done()
    assert await bench.get(4_999) is None
    assert await bench.get(4_998) is None
    await work
    stats = bench.store.stats()
    assert (stats.entries, stats.bytes, stats.purged) == (0, 0, 5_000)


async def test_statistics() -> None:
    """Each thing that happens is one number."""
    bench = MemoryBench(4 * 2 * KIB, idle_s=60.0)
    for name in range(5):
        bench.store.put(
            key(name), of_weight(bench, 2 * KIB, expires_ms=bench.now_ms + TTL_MS + name)
        )
    await bench.get(4)
    await bench.get(0)
    stats = bench.store.stats()
    assert (stats.entries, stats.bytes, stats.max_bytes) == (4, 8 * KIB, 8 * KIB)
    assert (stats.hits, stats.misses, stats.evicted, stats.expired) == (1, 1, 1, 0)
    bench.clock.now += 61
    await bench.get(4)
    stats = bench.store.stats()
    assert (stats.entries, stats.bytes, stats.expired, stats.misses) == (0, 0, 4, 2)


OPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"), st.integers(0, 12), st.sampled_from((1_030, 1_500, 3_000, 9_000))
        ),
        st.tuples(st.just("get"), st.integers(0, 12), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from((0, 1, 20_000, 70_000)), st.just(0)),
        st.tuples(st.just("purge"), st.integers(0, 3), st.just(0)),
    ),
    max_size=120,
)


@settings(suppress_health_check=list(HealthCheck))
@given(ops=OPS, max_bytes=st.sampled_from((3_000, 12_000, 40_000, 10**8)))
@example(ops=[("put", 0, 1_030), ("put", 0, 9_000), ("get", 0, 0)], max_bytes=3_000)
def test_any_order_of_calls(ops: list[tuple[str, int, int]], max_bytes: int) -> None:
    """Never over the bound, never what is over, purged or replaced; all of it where there is room."""
    asyncio.run(_any_order(ops, max_bytes))


async def _any_order(ops: list[tuple[str, int, int]], max_bytes: int) -> None:
    bench = MemoryBench(max_bytes, idle_s=60.0)
    model: dict[int, tuple[Entry, int]] = {}  # and when it was used last
    for op, at, weight in ops:
        now = bench.now_ms
        if op == "put":
            # Never in the millisecond of a purge, which takes those as well.
            bench.clock.now += 0.001
            made = of_weight(bench, weight, tenant=f"t{at % 3}", model=f"m{at % 2}")
            bench.store.put(key(at), made)
            model[at] = made, bench.now_ms
        elif op == "get":
            found = await bench.get(at)
            due, used = model.get(at, (None, 0))
            if due is not None and (now >= due.expires_ms or now - used >= 60_000):
                due = None
                del model[at]
            assert found is None or found == due
            if max_bytes == 10**8:
                assert found == due
            if found is not None:
                model[at] = found, now
        elif op == "wait":
            bench.clock.now += at / 1_000
        else:
            tenant, name = ((None, None), ("t1", None), (None, "m1"), ("t2", "m0"))[at]
            await bench.store.purge(tenant=tenant, model=name)
            model = {
                n: held
                for n, held in model.items()
                if tenant not in {None, held[0].tenant} or name not in {None, held[0].model}
            }
        assert bench.store.weight <= max_bytes
    store = bench.store
    store._main.run_pending_tasks()
    held = [*store._window.values(), *store._in_main.values()]
    assert store.weight == sum(one.entry.weight for one in held)
    assert not store._window.keys() & store._in_main.keys()


def inserted() -> tuple[int, AnswerStats, int]:
    """Return the highest sum of weights, the end, and the most memory the process took for it."""
    bench = MemoryBench(BOUND, idle_s=60.0)
    draw = random.Random(6)
    sizes = draw.choices(SIZES, SHARES, k=4_096)
    process = psutil.Process()
    before = process.memory_info().rss
    highest = highest_rss = 0
    for n in range(INSERTS):
        if n % 3 == 0:
            bench.clock.now += 0.001
        bench.store.put(key(n), entry(bench.now_ms, body=bytes(sizes[n % len(sizes)])))
        bench.store.lookup(key(n - draw.randrange(200)), bench.now_ms)
        highest = max(highest, bench.store.weight)
        if n % 1_000 == 0:
            highest_rss = max(highest_rss, process.memory_info().rss - before)
    return highest, bench.store.stats(), highest_rss


def test_inserts_of_mixed_sizes_stay_within_bounds() -> None:
    """The sum of weights at every moment, the process's memory at the end.

    In a process of its own, because what other tests left behind is neither full nor empty.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        highest, stats, highest_rss = pool.submit(inserted).result()
    print(
        f"{INSERTS:,} inserts: at most {highest:,} of {BOUND:,} bytes by weight, "
        f"{highest_rss:,} bytes of memory; {stats}"
    )
    assert highest <= BOUND
    assert stats.bytes > BOUND * 0.9
    assert highest_rss < BOUND * 1.25  # what the allocator cannot give back between sizes
