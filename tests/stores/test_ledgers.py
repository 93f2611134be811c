"""What every ledger promises, on memory and on a real Redis: rows that could cheat someone first."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from extproc.errors import Denied
from extproc.limits import Grant, Scope, Settlement
from extproc.stores.slots import MAX_WAITING, WAIT_S
from tests.ledgers import LEASE_S, Bench, rules

WIDE = {"tokens_per_day": 10**15, "usd_per_month": 9_000_000}
MONTH_END_S = 43_200  # from noon of the last day


async def test_a_refused_call_charges_nothing_anywhere(bench: Bench) -> None:
    """The second account refuses; the first one is as it was."""
    whole = ("global", rules(Scope.GLOBAL, requests_per_second=1, burst=5, **WIDE))
    key = ("key:a", rules(requests_per_day=1, tokens_per_minute=10**6))
    await bench.admit(whole, key)
    before = bench.counters("global"), bench.counters("key:a")
    for _ in range(20):
        denied = await bench.refused(whole, key)
        assert denied.code == "rate_limit_exceeded"
    assert (bench.counters("global"), bench.counters("key:a")) == before
    for _ in range(4):  # the burst is still there
        await bench.admit(whole)
    assert (await bench.refused(whole)).retry_after_s == 1


async def test_a_rate_gives_its_burst_then_one_per_interval(bench: Bench) -> None:
    key = ("key:a", rules(requests_per_second=4, burst=3))
    for _ in range(3):
        await bench.admit(key)
    denied = await bench.refused(key)
    assert (denied.status, denied.retry_after_s) == (429, 1)
    assert dict(denied.headers)["retry-after-ms"] == b"250"
    await bench.advance(0.249)
    assert dict((await bench.refused(key)).headers)["retry-after-ms"] == b"1"
    await bench.advance(0.001)
    await bench.admit(key)
    await bench.refused(key)
    await bench.advance(10)
    for _ in range(3):
        await bench.admit(key)
    await bench.refused(key)


async def test_requests_per_day_end_at_midnight_utc(bench: Bench) -> None:
    key = ("key:a", rules(requests_per_day=2))
    for _ in range(2):
        await bench.admit(key)
    denied = await bench.refused(key)
    assert denied.retry_after_s == 43_200
    assert "2 requests per day (key/requests_per_day)" in denied.message
    assert dict(denied.headers)["x-should-retry"] == b"false"
    await bench.advance(43_199)
    assert (await bench.refused(key)).retry_after_s == 1
    await bench.advance(1)
    await bench.admit(key)


async def test_tokens_are_reserved_then_settled(bench: Bench) -> None:
    """15 tokens are held while the call runs; 12 are what it took."""
    key = ("key:a", rules(tokens_per_minute=20, tokens_per_day=10_000))
    call_id, grant = await bench.admit(key)
    assert bench.counters("key:a")[1:3] == (15, 15)
    await bench.settle(call_id, grant, 1, 12, 0)
    assert bench.counters("key:a")[1:3] == (12, 12)
    denied = await bench.refused(key)
    assert denied.code == "rate_limit_exceeded"
    assert "20 tokens per minute" in denied.message
    assert denied.retry_after_s == 60
    await bench.advance(60)
    await bench.admit(key)


async def test_settling_twice_counts_once(bench: Bench) -> None:
    key = ("key:a", rules(concurrent_requests=3, **WIDE))
    call_id, grant = await bench.admit(key)
    for _ in range(3):
        await bench.settle(call_id, grant, 0, 0, 0)
    assert bench.counters("key:a") == (0, 0, 0, 0, 0)
    assert bench.slots("key:a") == 0


async def test_a_call_that_never_was_is_no_refund(bench: Bench) -> None:
    key = ("key:a", rules(requests_per_day=10, **WIDE))
    _, grant = await bench.admit(key)
    before = bench.counters("key:a")
    await bench.settle("another", grant, 0, 0, 0)
    assert bench.counters("key:a") == before


async def test_more_than_was_reserved_is_charged_too(bench: Bench) -> None:
    """A provider that counts more than was estimated is believed."""
    key = ("key:a", rules(**WIDE))
    call_id, grant = await bench.admit(key)
    await bench.settle(call_id, grant, 1, 500, 3_000_000)
    assert bench.counters("key:a") == (0, 0, 500, 0, 3_000_000)


async def test_an_estimate_is_never_more_than_was_reserved(bench: Bench) -> None:
    key = ("key:a", rules(**WIDE))
    call_id, grant = await bench.admit(key)
    await bench.settle(call_id, grant, 1, 500, 3_000_000, certain=False)
    assert bench.counters("key:a") == (0, 0, 15, 0, 30_000)


async def test_a_lost_reservation_becomes_a_charge_of_its_estimate(
    bench: Bench, impatient: None
) -> None:
    """The slot comes back with the lease, the tokens do not, and a late settlement is too late."""
    key = ("key:a", rules(concurrent_requests=1, **WIDE))
    call_id, grant = await bench.admit(key)
    await bench.advance(LEASE_S - 1)
    assert (await bench.refused(key)).code == "concurrency_limit_exceeded"
    await bench.advance(1)
    assert bench.slots("key:a") == 0
    await bench.settle(call_id, grant, 0, 0, 0)
    assert bench.counters("key:a") == (0, 0, 15, 0, 30_000)
    await bench.admit(key)


async def test_a_settlement_does_not_reach_into_the_next_window(bench: Bench) -> None:
    """What was reserved in August leaves September alone."""
    key = ("key:a", rules(usd_per_month=1, usd_per_day=1))
    call_id, grant = await bench.admit(key)
    await bench.advance(MONTH_END_S - LEASE_S)
    later, later_grant = await bench.admit(key, lease_us=10**9)
    await bench.advance(LEASE_S)
    await bench.admit(key)
    assert bench.counters("key:a")[3:] == (30_000, 30_000)
    await bench.settle(later, later_grant, 1, 0, 0)
    await bench.settle(call_id, grant, 1, 0, 0)
    assert bench.counters("key:a")[3:] == (30_000, 30_000)


async def test_a_budget_gives_what_is_left_of_it(bench: Bench) -> None:
    """Money for 3 output tokens beside the prompt lowers the bound to 3; then there is none."""
    key = ("key:a", rules(usd_per_month="0.000001"))  # 1,000,000 pico-USD
    _, grant = await bench.admit(key, fixed=(1, 10, 988_000), per_output=(0, 1, 4_000), output=100)
    assert grant.output == 3
    assert bench.counters("key:a")[4] == 1_000_000
    denied = await bench.refused(key)
    assert (denied.status, denied.code) == (429, "insufficient_quota")
    assert denied.retry_after_s == MONTH_END_S
    assert "1e-06 USD per month (key/usd_per_month)" in denied.message


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize(
    "limits",
    [{"tokens_per_minute": 15}, {"tokens_per_day": 15}, {"usd_per_day": 1}, {"usd_per_month": 1}],
)
async def test_what_takes_a_request_alone_is_refused_to_who_is_over_a_limit(
    bench: Bench, limits: dict[str, Any], over: int
) -> None:
    """A kept answer fits where all is used, and goes to nobody who has had more than that."""
    key = ("key:a", rules(**limits))
    call_id, grant = await bench.admit(key)
    await bench.settle(call_id, grant, 1, 15 + over, 10**12 + over)
    assert (await bench.refused(key)).status == 429
    told: dict[str, Any] = {"fixed": (1, 0, 0), "per_output": (0, 0, 0), "output": 0}
    if over:
        assert (await bench.refused(key, **told)).status == 429
    else:
        await bench.admit(key, **told)


async def test_a_rate_of_tokens_gives_its_whole_limit_at_most(bench: Bench) -> None:
    """A call that alone would be over the minute's limit is cut to it, not refused for ever."""
    key = ("key:a", rules(tokens_per_minute=100))
    _, grant = await bench.admit(key, output=5_000)
    assert grant.output == 90


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        pytest.param({"tokens_per_minute": 10}, "rate_limit_exceeded", id="tokens of a minute"),
        pytest.param({"tokens_per_day": 10}, "rate_limit_exceeded", id="tokens of a day"),
        pytest.param({"usd_per_day": "0.000000"}, "insufficient_quota", id="no money at all"),
    ],
)
async def test_what_can_never_fit_has_no_retry_after(
    bench: Bench, limits: dict[str, Any], code: str
) -> None:
    denied = await bench.refused(("key:a", rules(**limits)))
    assert (denied.code, denied.retry_after_s) == (code, None)
    assert dict(denied.headers)["x-should-retry"] == b"false"
    assert "alone" in denied.message


async def test_money_is_exact_beyond_what_a_double_holds(bench: Bench) -> None:
    """9 million USD in pico-USD has 19 digits: the last one counts."""
    key = ("key:a", rules(usd_per_month=9_000_000))
    limit = 9 * 10**18
    step = 2**53 - 1
    call_id, grant = await bench.admit(key, fixed=(1, 0, 1), per_output=(0, 0, 0), output=0)
    await bench.settle(call_id, grant, 1, 0, limit - step - 1)
    await bench.admit(key, fixed=(1, 0, step), per_output=(0, 0, 0), output=0)
    assert bench.counters("key:a")[4] == limit - 1
    await bench.refused(key, fixed=(1, 0, 2), per_output=(0, 0, 0), output=0)
    await bench.admit(key, fixed=(1, 0, 1), per_output=(0, 0, 0), output=0)
    assert bench.counters("key:a")[4] == limit
    await bench.refused(key, fixed=(1, 0, 1), per_output=(0, 0, 0), output=0)


async def test_of_several_limits_the_longest_wait_is_told(bench: Bench) -> None:
    key = ("key:a", rules(requests_per_second=1, burst=1, requests_per_day=1))
    await bench.admit(key)
    denied = await bench.refused(key)
    assert denied.retry_after_s == 43_200
    assert "key/requests_per_day" in denied.message


async def test_the_caller_that_is_full_waits_for_its_own_last_call(bench: Bench) -> None:
    """A slot that comes free within two flushes of the access log is no refusal."""
    key = ("key:a", rules(concurrent_requests=1))
    call_id, grant = await bench.admit(key)
    waiting = asyncio.create_task(bench.admit(key))
    await bench.waiting(1)
    await bench.settle(call_id, grant, 1, 0, 0)
    await waiting
    assert bench.slots("key:a") == 1
    denied = await bench.refused(key)
    assert (denied.code, denied.retry_after_s) == ("concurrency_limit_exceeded", 1)
    assert "1 concurrent requests (key/concurrent_requests)" in denied.message
    assert bench.errors.limits[-1] == "key/concurrent_requests"


async def test_the_last_calls_tokens_are_waited_for(bench: Bench) -> None:
    """What a call in flight will give back is worth waiting for as a slot is."""
    key = ("key:a", rules(tokens_per_minute=20))
    call_id, grant = await bench.admit(key)
    waiting = asyncio.create_task(bench.admit(key))
    await bench.waiting(1)
    await bench.settle(call_id, grant, 1, 2, 0)
    await waiting
    assert bench.counters("key:a")[1] == 17


async def test_waiters_are_served_in_the_order_they_came(bench: Bench) -> None:
    key = ("key:a", rules(concurrent_requests=1))
    held = await bench.admit(key)
    served: list[int] = []

    async def one(number: int) -> None:
        call_id, grant = await bench.admit(key)
        served.append(number)
        bench.ledger.settle(_done(call_id, grant))
        bench.ledger.flush()

    tasks = []
    for number in range(5):
        tasks.append(asyncio.create_task(one(number)))
        await bench.waiting(number + 1)
    await bench.settle(*held, 1, 0, 0)
    await asyncio.gather(*tasks)
    assert served == [0, 1, 2, 3, 4]


async def test_a_waiter_that_leaves_leaves_its_slot(bench: Bench) -> None:
    key = ("key:a", rules(concurrent_requests=1))
    held = await bench.admit(key)
    waiting = [asyncio.create_task(bench.admit(key)) for _ in range(3)]
    await bench.waiting(3)
    waiting[0].cancel()
    await bench.settle(*held, 1, 0, 0)
    call_id, grant = await waiting[1]
    await bench.settle(call_id, grant, 1, 0, 0)
    await waiting[2]
    assert bench.slots("key:a") == 1


async def test_a_thousand_at_once_get_exactly_the_limit(bench: Bench) -> None:
    """The first request ever included: nobody checks before somebody else has charged."""
    key = ("key:a", rules(requests_per_day=137, tokens_per_day=10**6))
    done = await asyncio.gather(*(bench.admit(key) for _ in range(1000)), return_exceptions=True)
    assert sum(not isinstance(one, Denied) for one in done) == 137
    assert bench.counters("key:a")[0] == 137


async def test_the_answer_says_what_is_left(bench: Bench) -> None:
    key = ("key:a", rules(requests_per_second=2, burst=4, tokens_per_minute=100))
    _, grant = await bench.admit(key)
    told = dict(grant.headers)
    assert told["x-ratelimit-limit-requests"] == b"4"
    assert told["x-ratelimit-remaining-requests"] == b"3"
    assert told["x-ratelimit-reset-requests"] == b"500ms"
    assert told["x-ratelimit-limit-tokens"] == b"100"
    assert told["x-ratelimit-remaining-tokens"] == b"85"
    assert told["x-ratelimit-reset-tokens"] == b"1m0s"
    assert told["ratelimit"] == (
        b'"key/requests_per_second";r=3;t=1, "key/tokens_per_minute";r=85;t=60'
    )


def _done(call_id: str, grant: Grant) -> Settlement:
    return Settlement(call_id, (1, 0, 0), certain=True, hold=grant.hold)


async def test_waiters_are_bounded(bench: Bench) -> None:
    """Beyond the bound nobody waits in vain: refused at once."""
    key = ("key:a", rules(concurrent_requests=1))
    await bench.admit(key)
    tasks = [asyncio.create_task(bench.admit(key)) for _ in range(MAX_WAITING)]
    await bench.waiting(MAX_WAITING)
    loop = asyncio.get_running_loop()
    began = loop.time()
    denied = await bench.refused(key)
    assert denied.code == "concurrency_limit_exceeded"
    assert loop.time() - began < WAIT_S / 2
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await bench.waiting(0)
