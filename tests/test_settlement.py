"""The bill of a finished exchange, as a truth table; rows that could cheat someone first."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from extproc.domain import Ended, LogEntry, Usage, UsageSource
from extproc.policies.estimate import Estimator
from extproc.record import Attempt, Record
from extproc.settlement import settle, settlement_of

REPORT = '{"usage":{"prompt_tokens":100,"completion_tokens":20}}'
REPORTED = Usage(100, 20, 0, UsageSource.PROVIDER)
NOTHING = Usage(0, 0, 0, UsageSource.NONE)
UNSENT = Usage(0, 0, 0, UsageSource.PARTIAL)
FIRST = Attempt("openai", "gpt-4o-mini", (150_000, 600_000, 75_000))
SECOND = Attempt("local", "llama", (1, 2, 1))
FREE = Attempt("gratis", "llama", None)
RECORD = Record("id-1", 400, "", "acme", "key_1", "chat", "small", False, [FIRST, SECOND, FREE])
ENTRY = LogEntry(
    record="",
    request_id="req-1",
    status=200,
    cluster="openai",
    attempts=1,
    flags=(),
    start_ms=1_700_000_000_000,
    duration_ms=1234.6,
    first_upstream_tx_ms=2.0,
    first_upstream_rx_ms=300.4,
    first_chunk_ms=10.2,
    request_bytes=400,
    response_bytes=800,
    usage=REPORT,
    events=0,
    done=True,
)
GUESSED = (100, 200)  # of 400 and 800 bytes by the priors of 4 bytes a token


def partial(given: int, output: int) -> Usage:
    return Usage(given, output, 0, UsageSource.PARTIAL)


def estimated(given: int, output: int) -> Usage:
    return Usage(given, output, 0, UsageSource.ESTIMATED)


START = 'message_start "usage":{"input_tokens":90,"cache_read_input_tokens":10,"output_tokens":1}'
ROWS = [
    (
        "of an Anthropic stream that was cut the prompt is known and the answer estimated",
        {"done": False, "usage": START},
        Ended.PARTIAL,
        Usage(100, 200, 10, UsageSource.PARTIAL),
    ),
    (
        "an Anthropic stream that ends is charged what its two parts say",
        {"usage": START + ' "usage":{"output_tokens":33}'},
        Ended.FINISHED,
        Usage(100, 33, 10, UsageSource.PROVIDER),
    ),
    (
        "a client that leaves after the usage was reported pays what was reported",
        {"done": False, "flags": ("downstream_connection_termination",)},
        Ended.PARTIAL,
        REPORTED,
    ),
    (
        "a client that leaves before the usage pays for what was written",
        {"done": False, "usage": ""},
        Ended.PARTIAL,
        partial(*GUESSED),
    ),
    (
        "a client that leaves before the first byte pays for its prompt",
        {"done": False, "usage": "", "status": 0, "response_bytes": 0},
        Ended.PARTIAL,
        partial(100, 0),
    ),
    (
        "a client that leaves before a provider was tried pays nothing",
        {"done": False, "status": 0, "first_upstream_tx_ms": None, "response_bytes": 0},
        Ended.PARTIAL,
        UNSENT,
    ),
    (
        "no report is believed of a provider that was not tried",
        {"first_upstream_tx_ms": None},
        Ended.FINISHED,
        UNSENT,
    ),
    ("an answer with its usage costs what was reported", {}, Ended.FINISHED, REPORTED),
    (
        "an answer without usage is estimated",
        {"usage": ""},
        Ended.FINISHED,
        estimated(*GUESSED),
    ),
    (
        "an answer whose usage is cut is estimated",
        {"usage": REPORT[:30]},
        Ended.FINISHED,
        estimated(*GUESSED),
    ),
    (
        "an answer whose usage cannot be is estimated",
        {"usage": '{"usage":{"prompt_tokens":-1}}'},
        Ended.FINISHED,
        estimated(*GUESSED),
    ),
    (
        "an empty answer is its prompt",
        {"usage": "", "response_bytes": 0},
        Ended.FINISHED,
        estimated(100, 0),
    ),
    (
        "a reported zero is a zero",
        {"usage": '{"usage":{"prompt_tokens":0,"completion_tokens":0}}'},
        Ended.FINISHED,
        Usage(0, 0, 0, UsageSource.PROVIDER),
    ),
    ("a lower error answer costs nothing", {"status": 400}, Ended.FAILED, NOTHING),
    ("a limit of the provider costs nothing", {"status": 429}, Ended.FAILED, NOTHING),
    ("an upper error answer costs nothing", {"status": 503}, Ended.FAILED, NOTHING),
    (
        "an error answer the client did not wait for costs nothing",
        {"status": 504, "done": False},
        Ended.FAILED,
        NOTHING,
    ),
    (
        "an error before any provider costs nothing",
        {"status": 503, "first_upstream_tx_ms": None},
        Ended.FAILED,
        NOTHING,
    ),
    ("the highest status that is no error", {"status": 399}, Ended.FINISHED, REPORTED),
    ("an informational status is no answer", {"status": 199}, Ended.PARTIAL, REPORTED),
]


@pytest.mark.parametrize(
    ("changes", "ended", "usage"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_how_an_exchange_ended_and_what_it_used(
    changes: dict[str, Any], ended: Ended, usage: Usage
) -> None:
    outcome = settle(replace(ENTRY, **changes), RECORD, Estimator())
    assert (outcome.ended, outcome.usage) == (ended, usage)
    fresh = usage.input - usage.cached_input
    expected = fresh * 150_000 + usage.cached_input * 75_000 + usage.output * 600_000
    assert outcome.cost_pico_usd == expected


@pytest.mark.parametrize(
    ("attempts", "retried", "provider", "cost"),
    [
        pytest.param(0, (), "openai", 100 * 150_000 + 20 * 600_000, id="none counted is the first"),
        pytest.param(1, (), "openai", 100 * 150_000 + 20 * 600_000, id="the first"),
        pytest.param(2, ("openai",), "local", 140, id="the second at its own price"),
        pytest.param(3, ("openai", "local"), "gratis", None, id="the third has no known price"),
        pytest.param(
            5, ("openai", "local", "gratis", "gratis"), "gratis", None, id="the last tried again"
        ),
    ],
)
def test_the_last_attempt_is_the_one_billed(
    attempts: int, retried: tuple[str, ...], provider: str, cost: int | None
) -> None:
    outcome = settle(replace(ENTRY, attempts=attempts), RECORD, Estimator())
    assert (outcome.provider, outcome.cost_pico_usd) == (provider, cost)
    assert (outcome.attempts, outcome.retried) == (attempts, retried)


def test_the_cached_part_of_a_prompt_has_its_own_price() -> None:
    report = (
        '{"usage":{"prompt_tokens":100,"completion_tokens":20,'
        '"prompt_tokens_details":{"cached_tokens":60}}}'
    )
    outcome = settle(replace(ENTRY, usage=report), RECORD, Estimator())
    assert outcome.usage == Usage(100, 20, 60, UsageSource.PROVIDER)
    assert outcome.cost_pico_usd == 40 * 150_000 + 60 * 75_000 + 20 * 600_000


@pytest.mark.parametrize(
    ("rx", "chunk", "expected"),
    [
        pytest.param(300.4, 10.2, 311, id="headers and the wait for the first chunk"),
        pytest.param(0.0, 0.0, 0, id="zero is a time"),
        pytest.param(None, 10.2, None, id="no answer came"),
        pytest.param(300.4, None, None, id="no chunk came"),
    ],
)
def test_time_to_first_token(rx: float | None, chunk: float | None, expected: int | None) -> None:
    entry = replace(ENTRY, first_upstream_rx_ms=rx, first_chunk_ms=chunk)
    assert settle(entry, RECORD, Estimator()).ttft_ms == expected


def test_all_other_fields_are_carried_over() -> None:
    entry = replace(ENTRY, attempts=2, flags=("a", "b"))
    outcome = settle(entry, RECORD, Estimator())
    assert (outcome.id, outcome.request_id) == ("id-1", "req-1")
    assert (outcome.tenant, outcome.key_id, outcome.endpoint) == ("acme", "key_1", "chat")
    assert (outcome.model, outcome.served_model, outcome.stream) == ("small", "llama", False)
    assert (outcome.status, outcome.time_ms, outcome.duration_ms) == (200, 1_700_000_000_000, 1235)
    assert (outcome.request_bytes, outcome.response_bytes) == (400, 800)
    assert outcome.flags == "a,b"


STREAM = Record("id-2", 400, "", "acme", "key_1", "chat", "small", True, [FIRST])


@pytest.mark.parametrize(
    ("events", "output"),
    [
        pytest.param(7, 7, id="an event a token while nothing is learned"),
        pytest.param(0, 4, id="by bytes where none was counted"),
    ],
)
def test_a_stream_without_usage_is_estimated_by_its_events(events: int, output: int) -> None:
    entry = replace(ENTRY, usage="", events=events, response_bytes=1024)
    assert settle(entry, STREAM, Estimator()).usage == estimated(100, output)


def test_embeddings_have_no_output_to_estimate() -> None:
    record = Record("id-3", 400, "", "acme", "k", "embeddings", "e", False, [FIRST])
    entry = replace(ENTRY, usage="", response_bytes=10_000)
    assert settle(entry, record, Estimator()).usage == estimated(100, 0)


def test_a_finished_report_teaches_the_estimator() -> None:
    estimator = Estimator()
    settle(ENTRY, RECORD, estimator)
    again = settle(replace(ENTRY, usage="", response_bytes=400), RECORD, estimator)
    assert again.usage == estimated(100, 10)  # 800 bytes were 20 tokens


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"done": False}, id="a cut answer: its bytes are not those of its tokens"),
        pytest.param({"status": 500}, id="an error"),
        pytest.param({"first_upstream_tx_ms": None}, id="an untried provider"),
        pytest.param({"usage": ""}, id="an estimate"),
    ],
)
def test_nothing_else_teaches_the_estimator(changes: dict[str, Any]) -> None:
    estimator = Estimator()
    settle(replace(ENTRY, **changes), RECORD, estimator)
    assert len(estimator) == 0


@pytest.mark.parametrize(
    ("changes", "amount", "certain"),
    [
        pytest.param({}, (1, 120, 27_000_000), True, id="a finished call takes what it used"),
        pytest.param(
            {"status": 503}, (0, 0, 0), True, id="a provider's failure takes nothing, no request"
        ),
        pytest.param({"status": 429}, (0, 0, 0), True, id="nor does a provider's own limit"),
        pytest.param(
            {"status": 400}, (1, 0, 0), True, id="the caller's error is a request all the same"
        ),
        pytest.param(
            {"usage": "", "done": False}, (1, 300, 135_000_000), False, id="a cut call is estimated"
        ),
    ],
)
def test_what_a_call_takes_from_its_limits(
    changes: dict[str, Any], amount: tuple[int, int, int], certain: bool
) -> None:
    outcome = settle(replace(ENTRY, **changes), RECORD, Estimator())
    made = settlement_of(outcome, RECORD)
    assert (made.id, made.amount, made.certain) == ("id-1", amount, certain)


def test_counting_tokens_is_free() -> None:
    """A count generates nothing, whatever its answer seems to say."""
    record = msgspec.structs.replace(RECORD, endpoint="count_tokens")
    outcome = settle(replace(ENTRY, usage=REPORT), record, Estimator())
    assert (outcome.usage, outcome.cost_pico_usd) == (NOTHING, 0)


@pytest.mark.parametrize(
    ("part", "done", "paid"),
    [
        pytest.param(True, True, REPORTED, id="a good answer that did not go with the rest"),
        pytest.param(True, False, NOTHING, id="an answer that was an error"),
        pytest.param(False, True, NOTHING, id="no part at all"),
    ],
)
def test_an_answer_to_a_part_is_billed_whatever_was_made_of_it(
    part: bool, done: bool, paid: Usage
) -> None:
    """The provider made it, though the client was told an error; it is no request then."""
    record = replace(RECORD, part=part)
    outcome = settle(replace(ENTRY, status=502, done=done), record, Estimator())
    assert (outcome.ended, outcome.usage) == (Ended.FAILED, paid)
    assert settlement_of(outcome, record).amount[:2] == (0, paid.input + paid.output)
