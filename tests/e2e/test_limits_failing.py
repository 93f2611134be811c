"""Limits on the real Envoy where providers fail: one reservation a call, no slot kept, all told."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from .broken import Broken
from .config import SIMULATED
from .failing import CHAT, DIALECTS, GOOD, PATHS, PRICE, TOLD, model
from .stack import Stack, start_stack, wait_for
from .test_limits import ADMIN_TOKEN, ADMIN_VARIABLE, ends_within

LIMITS = {"requests_per_day": 1000, "tokens_per_day": 10_000_000, "usd_per_month": 100}
CALLS = 3
CALLERS_AT_ONCE = 40  # because the gateway looks for new keys only so often
SIMS = {**SIMULATED, "grumpy": "anthropic"}
BROKEN = ("reset", "garbage", "limited", "limited-claude")
LIMITED = {"openai": "limited", "anthropic": "limited-claude"}
# Limit, remaining and reset, by the caller's dialect.
REQUESTS, TOKENS = (
    {
        "openai": tuple(f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset")),
        "anthropic": tuple(
            f"anthropic-ratelimit-{unit}-{what}" for what in ("limit", "remaining", "reset")
        ),
    }
    for unit in ("requests", "tokens")
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Start a stack with one slot a key, and providers of both dialects that fail in many ways."""
    with ExitStack() as ends:
        broken = {how: ends.enter_context(Broken(how)) for how in BROKEN}

        def change(config: dict[str, Any]) -> None:
            configure(config, broken)

        directory = tmp_path_factory.mktemp("limits-failing")
        stack = start_stack(
            directory, change=change, env={ADMIN_VARIABLE: ADMIN_TOKEN}, simulated=SIMS
        )
        ends.callback(stack.stop)
        yield stack


def configure(config: dict[str, Any], broken: Mapping[str, Broken]) -> None:
    """Add a model for each way to fail alone, and for each first target that fails."""
    providers, models = config["providers"], config["models"]
    config["admin"]["token"] = {"env": ADMIN_VARIABLE}
    nothing = dict.fromkeys(("requests_per_second", "burst", "concurrent_requests"))
    config["tiers"] = {"single": {**LIMITS, "concurrent_requests": 1}, "enterprise": nothing}
    for dialect in DIALECTS:
        good, told = GOOD[dialect], TOLD[dialect]
        refused = providers["dead"] | {"dialect": dialect, "max_retries": 0}
        providers[f"refused-{dialect}"] = refused
        for how in ("reset", "garbage", "limited"):
            name = LIMITED[dialect] if how == "limited" else how
            endpoint = f"http://127.0.0.1:{broken[name].port}/v1"
            providers[f"{how}-{dialect}"] = {**refused, "endpoint": endpoint}
            models[f"{how}-{dialect}"] = model((f"{how}-{dialect}", "x"))
        for other, whose in itertools.product(DIALECTS, ("limited", "free")):
            # One a call, because its limits say a minute and it is left alone for as long.
            name = f"limited-{dialect}-{other}-{whose}"
            models[name] = model((f"limited-{dialect}", name))
        keyless = providers[told] | {"api_key": {"env": "LLM_EDGE_TEST_NO_SUCH_KEY"}}
        providers[f"keyless-{dialect}"] = keyless
        models[f"keyless-{dialect}"] = model((f"keyless-{dialect}", "x"))
        models[f"refused-{dialect}"] = model((f"refused-{dialect}", "x"))
        models[f"told-{dialect}"] = model((told, "x"))
        models[f"both-{dialect}"] = model((f"refused-{dialect}", "x"), (told, "y"))
        for other in DIALECTS:
            second = (GOOD[other], "second")
            models[f"503-{dialect}-{other}"] = model((told, "first"), second)
            models[f"refused-{dialect}-{other}"] = model((f"refused-{dialect}", "first"), second)
        models[f"twice-{dialect}"] = model((f"refused-{dialect}", "1"), (told, "2"), (good, "3"))


@dataclass(frozen=True)
class Caller:
    """A key of one slot, and how its limits stand."""

    stack: Stack
    name: str
    key: str = field(repr=False)
    key_id: str

    @property
    def headers(self) -> dict[str, str]:
        """Return the credential."""
        return {"authorization": f"Bearer {self.key}"}

    def used(self) -> dict[str, Any]:
        """Return how much of each limit is taken, asking which takes none."""
        asked = {"key_id": self.key_id, "body": body_of("openai", "told-openai")}
        found = admin(self.stack, "/admin/explain", asked)
        return {one["name"].removeprefix("key/"): one["used"] for one in found["limits"]}

    def settled(self, calls: int) -> list[dict[str, Any]]:
        """Return the bill once it has so many rows, which is after the limits know."""
        rows = self.stack.rows_for(self.name, calls)
        assert len(rows) == calls
        return rows


def admin(stack: Stack, path: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Post to the admin API."""
    url = f"http://127.0.0.1:{stack.admin_port}{path}"
    headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    answer = httpx.post(url, json=asked, headers=headers).raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture(scope="module")
def callers(running: Stack) -> Iterator[Caller]:
    """Make as many callers as are asked for."""
    return itertools.chain.from_iterable(_batch(running, number) for number in itertools.count())


def _batch(stack: Stack, number: int) -> list[Caller]:
    made = []
    for one in range(CALLERS_AT_ONCE):
        name = f"caller-{number}-{one}"
        key = admin(stack, "/admin/keys", {"name": name, "tier": "single"})
        made.append(Caller(stack, name, key["key"], key["key_id"]))

    def known() -> bool:
        return httpx.get(f"{stack.base}/v1/models", headers=made[-1].headers).status_code == 200

    wait_for("the new keys to work", known)
    return made


@pytest.fixture
def caller(running: Stack, callers: Iterator[Caller]) -> Caller:
    """Return a caller of a test's own, and let the providers be well."""
    running.clear_sims()
    return next(callers)


def body_of(dialect: str, name: str, **more: Any) -> dict[str, Any]:
    """Return a call in its caller's dialect."""
    said = [{"role": "user", "content": "hi"}]
    return {"model": name, "messages": said, "max_tokens": 20, **more}


FAILOVERS = [
    *(f"503-{one}-{other}" for one in DIALECTS for other in DIALECTS),
    *(f"refused-{one}-{other}" for one in DIALECTS for other in DIALECTS),
    *(f"twice-{one}" for one in DIALECTS),
]


@pytest.mark.parametrize("stream", [False, True], ids=["a plain answer", "a stream"])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", FAILOVERS)
def test_a_call_that_fails_over_is_one_reservation(
    running: Stack, caller: Caller, name: str, dialect: str, stream: bool
) -> None:
    """Whoever failed before: one request, the tokens and the money of who answered, no slot."""
    for told in TOLD.values():
        running.behave(told, status=503)
    answerer = GOOD[name.rpartition("-")[2]]
    with httpx.Client(base_url=running.base, headers=caller.headers, timeout=30) as client:
        path, body = PATHS[dialect], body_of(dialect, name, stream=stream)
        answers = []
        for calls in (1, 2):  # the second begins where the first was settled
            answers.append(client.post(path, json=body))
            assert answers[-1].status_code == 200, answers[-1].text
            caller.settled(calls)
            truth = running.sim_log(answerer)[-calls:]
            prompt = sum(one["prompt_tokens"] for one in truth)
            output = sum(one["output_tokens_sent"] for one in truth)
            used = caller.used()
            assert used["requests_per_day"] == calls
            assert used["tokens_per_day"] == prompt + output
            assert float(used["usd_per_month"]) == pytest.approx(
                (prompt * PRICE["input"] + output * PRICE["output"]) / 1e6
            )
            assert used["concurrent_requests"] == 0
    attempts = "3" if name.startswith("twice") else "2"
    assert [one.headers["x-llm-attempts"] for one in answers] == [attempts] * 2
    assert [one.headers[REQUESTS[dialect][1]] for one in answers] == ["999", "998"]


def test_a_call_that_failed_over_holds_one_slot_until_its_end(
    running: Stack, caller: Caller
) -> None:
    """While the second target streams: one request and one slot; a client that leaves frees it."""
    running.behave("b", status=503)
    running.behave("a", stall_after_chunks=3)
    body = body_of("openai", "503-openai-openai", stream=True)
    with httpx.Client(base_url=running.base, headers=caller.headers, timeout=30) as client:
        with client.stream("POST", CHAT, json=body) as answer:
            pieces = answer.iter_raw()  # kept, because without it the client would leave
            next(pieces)
            used = caller.used()
            assert (used["requests_per_day"], used["concurrent_requests"]) == (1, 1)
            refused = client.post(CHAT, json=body)
            assert refused.json()["error"]["code"] == "concurrency_limit_exceeded"
    (row,) = caller.settled(1)
    assert (row["attempts"], row["provider"], row["ended"]) == (2, "a", "partial")
    used = caller.used()
    assert (used["requests_per_day"], used["concurrent_requests"]) == (1, 0)


@dataclass(frozen=True)
class Failure:
    """How a call fails at all its targets: its model, what it says to the provider, the answer."""

    model: str
    status: int
    headers: dict[str, str]


def _sim(status: int) -> Failure:
    return Failure("told", status, {"x-sim-status": str(status)})


SLOW = {"x-sim-latency-ms": "5000", "x-llm-timeout-ms": "60"}
FAILURES = {
    **{f"a provider's {one}": _sim(one) for one in (400, 401, 404, 413, 429, 500, 503, 529)},
    "a refused connection": Failure("refused", 502, {}),
    "a reset connection": Failure("reset", 502, {}),
    "no HTTP": Failure("garbage", 502, {}),
    "no credential for the provider": Failure("keyless", 503, {}),
    "no answer in time": Failure("told", 504, SLOW),
    "a refused connection, then 503": Failure("both", 503, {"x-sim-status": "503"}),
    "a refused connection, then silence": Failure("both", 504, SLOW),
}
# To the limits the same as another.
ALIKE = {f"a provider's {status}" for status in (401, 404, 413, 529)}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("provider", DIALECTS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_an_error_says_what_is_left(  # noqa: PLR0917 (one row of the matrix)
    running: Stack, caller: Caller, failure: Failure, dialect: str, provider: str, stream: bool
) -> None:
    """A provider's own, a translated one, and what Envoy says where there is none of either."""
    answer = httpx.post(
        f"{running.base}{PATHS[dialect]}",
        json=body_of(dialect, f"{failure.model}-{provider}", stream=stream),
        headers={**caller.headers, **failure.headers},
        timeout=30,
    )
    assert answer.status_code == failure.status
    by_envoy = failure.status in {502, 504} or failure.model == "keyless"
    assert ("x-llm-provider" in answer.headers) != by_envoy
    check_told(dialect, answer.headers)


def check_told(dialect: str, told: httpx.Headers) -> None:
    """Fail unless an answer tells the gateway's limits, and no others, as of the first call."""
    limits = REQUESTS[dialect], TOKENS[dialect]
    ours = {"ratelimit-policy", "ratelimit", *itertools.chain(*limits)}
    assert {name for name in told if "ratelimit" in name} == ours
    (requests, left, resets), (tokens, tokens_left, tokens_reset) = limits
    assert (told[requests], told[left], told[tokens]) == ("1000", "999", "10000000")
    assert 10_000_000 - 10_000 < int(told[tokens_left]) < 10_000_000
    for reset in (resets, tokens_reset):
        assert dialect == "openai" or ends_within(told[reset], 86_400)
    assert told["ratelimit-policy"].startswith('"key/requests_per_day";q=1000;w=86400')
    assert told["ratelimit"].startswith('"key/requests_per_day";r=999;')


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("provider", DIALECTS)
def test_a_providers_own_limits_are_told_to_nobody(
    running: Stack, caller: Caller, dialect: str, provider: str
) -> None:
    """Its 429 has the limits of the caller, or none: not those of the operator's account."""
    free = {"authorization": f"Bearer {running.create_key(f'free-{dialect}-{provider}')}"}
    told = {}
    for whose, headers in (("limited", caller.headers), ("free", free)):
        body = body_of(dialect, f"limited-{provider}-{dialect}-{whose}")
        answer = httpx.post(f"{running.base}{PATHS[dialect]}", json=body, headers=headers)
        assert (answer.status_code, answer.headers["x-llm-attempts"]) == (429, "1")
        told[whose] = answer.headers
    check_told(dialect, told["limited"])
    assert [name for name in told["free"] if "ratelimit" in name] == []


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("how", [how for how in FAILURES if how not in ALIKE])
def test_a_failed_call_gives_its_slot_back(
    running: Stack, caller: Caller, how: str, dialect: str, stream: bool
) -> None:
    """One after another on one slot: each gets the failure itself and no refusal.

    Only the caller's own errors are requests, and none costs tokens or money.
    """
    failure = FAILURES[how]
    own = failure.status == 400
    with httpx.Client(base_url=running.base, timeout=30) as client:
        client.headers.update({**caller.headers, **failure.headers})
        body = body_of(dialect, f"{failure.model}-{dialect}", stream=stream)
        for number in range(CALLS):
            answer = client.post(PATHS[dialect], json=body)
            assert answer.status_code == failure.status
            assert "concurrency_limit_exceeded" not in answer.text
            # Because how long a call may wait for the last one's slot is no matter here.
            caller.settled(number + 1)
    used = caller.used()
    assert used.pop("usd_per_month") == "0"
    assert used == {
        "requests_per_day": CALLS if own else 0,
        "tokens_per_day": 0,
        "concurrent_requests": 0,
    }
