"""What admission leaves for settlement comes back as it was, or is called foreign."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.answers import Filling, Inputs, Told
from extproc.domain import Price, Principal, Reply, once
from extproc.gateway import Hit
from extproc.hold import Hold
from extproc.record import Attempt, Foreign, Record, decode, price_of
from extproc.recording import encode, encode_hit
from tests.calls import call, forward, target
from tests.kept import entry

AMOUNTS = st.integers(0, 2**62)
WRITES = st.none() | AMOUNTS
ONE_PRICE = st.builds(Price, *[AMOUNTS] * 3, cache_write=WRITES, cache_write_1h=WRITES)
TIERED = st.builds(Price, *[AMOUNTS] * 3, st.integers(1, 2**31), ONE_PRICE, WRITES, WRITES)
PRICES = st.none() | ONE_PRICE | TIERED
TARGETS = st.builds(lambda p, m, price: target(p, m, price=price), st.text(), st.text(), PRICES)
GOOD = ["i", 60, "", "t", "k", "chat", "m", True, [["p", "m", [1, 2, 3]]]]


@given(st.lists(TARGETS, min_size=1, max_size=8), st.text(), st.text(), st.booleans())
def test_a_record_comes_back_as_it_was(
    attempts: list[object], tenant: str, id_: str, stream: bool
) -> None:
    planned = forward(
        *attempts,  # type: ignore[arg-type]
        principal=Principal(tenant, "key_1", "free"),
        id=id_,
        call=call("smäll", stream=stream),
    )
    trace = "ab" * 32
    assert decode(encode(planned).decode()).trace == ""
    record = decode(encode(planned, trace).decode())
    assert record.trace == trace
    assert (record.id, record.tenant, record.key_id) == (id_, tenant, "key_1")
    assert (record.endpoint, record.model, record.stream) == ("chat", "smäll", stream)
    assert record.prompt_bytes == planned.call.text_bytes
    assert [(a.provider, a.model, price_of(a)) for a in record.attempts] == [
        (t.provider, t.model, t.price) for t in once(planned.plan.attempts)
    ]


@given(st.binary(min_size=32, max_size=32), st.integers(1, 2**40), st.booleans(), st.booleans())
def test_what_keeping_an_answer_takes_comes_back(
    digest: bytes, ttl_ms: int, leads: bool, bounded: bool
) -> None:
    batch = Inputs(digest * 2, (3, 2**40))
    filling = Filling(digest, ttl_ms, leads, bounded)
    hold = Hold((("key:k", 3),), (1, 2, 3), (4, 5, 6))
    for kept in (filling, Filling(digest, ttl_ms, leads, bounded, batch)):
        for held in (None, hold):
            record = decode(encode(forward(filling=kept, hold=held)).decode())
            assert (record.filling, record.hold, record.told) == (kept, held, "")
            assert not record.part


@pytest.mark.parametrize("filling", [None, Filling(b"d" * 32, 5, True, False)])
@pytest.mark.parametrize("hold", [None, Hold((("key:k", 3),), (1, 2, 3), (4, 5, 6))])
def test_a_record_says_that_a_part_was_sent(filling: Filling | None, hold: Hold | None) -> None:
    planned = forward(filling=filling, hold=hold, complete=lambda body: body)
    record = decode(encode(planned).decode())
    assert (record.part, record.filling, record.hold, record.told) == (True, filling, hold, "")


@given(st.text(), st.text(), st.sampled_from(["hit", "collapsed"]))
def test_a_told_answers_record_names_who_once_gave_it(
    provider: str, served: str, how: Told
) -> None:
    kept = entry(0, provider=provider, served_model=served)
    hit = Hit("id-1", Principal("acme", "key_1", "free"), call(), kept, how, Reply(200, b""))
    record = decode(encode_hit(hit, "ab" * 32).decode())
    assert (record.id, record.tenant, record.key_id, record.told) == ("id-1", "acme", "key_1", how)
    assert record.attempts == [Attempt(provider, served, None)]
    assert (record.model, record.endpoint, record.trace) == ("small", "chat", "ab" * 32)


def test_a_record_is_one_short_line() -> None:
    raw = encode(forward(target("openai", "gpt-4o-mini")))
    assert b"\n" not in raw
    assert len(raw) < 120


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("[", id="cut"),
        pytest.param("{}", id="an object"),
        pytest.param("[]", id="too short"),
        pytest.param(json.dumps([*GOOD[:-1], []]), id="no attempts to bill"),
        pytest.param(json.dumps([*GOOD[:-1], [["p", "m", [1, 2]]]]), id="a price too few"),
        pytest.param(json.dumps([*GOOD[:-1], [["p", "m", [1, 2, 0.5]]]]), id="half a price"),
        pytest.param(json.dumps([7, *GOOD[1:]]), id="an id that is no text"),
        pytest.param(json.dumps([*GOOD[:6], 1, *GOOD[7:]]), id="a stream that is no bool"),
        pytest.param("9" * 9999, id="a long number"),
        pytest.param("[" * 9999, id="brackets without end"),
    ],
)
def test_text_no_admission_wrote_is_foreign(text: str) -> None:
    with pytest.raises(Foreign):
        decode(text)


@given(st.text(max_size=60))
def test_any_text_is_a_record_or_foreign(text: str) -> None:
    try:
        assert isinstance(decode(text), Record)
    except Foreign:
        return


def test_a_record_of_an_earlier_version_is_read() -> None:
    """Calls in flight over an upgrade are billed as they were planned."""
    tiered = [["p", "m", [1, 2, 3]], ["q", "m", [1, 2, 3], [9, 4, 5, 6]]]
    record = decode(json.dumps([*GOOD[:-1], tiered]))
    assert [price_of(one) for one in record.attempts] == [
        Price(1, 2, 3),
        Price(1, 2, 3, 9, Price(4, 5, 6)),
    ]


def test_a_free_price_is_a_price() -> None:
    assert price_of(Attempt("p", "m", (0, 0, 0))) == Price(0, 0, 0)
    assert price_of(Attempt("p", "m", None)) is None


def test_a_reservation_travels_with_its_call() -> None:
    """So that any process that shares the ledger can settle it."""
    hold = Hold((("key:a", 5), ("global", 1)), (1, 10, 30), (2, 3, 4))
    assert decode(encode(forward(hold=hold)).decode()).hold == hold
    assert decode(encode(forward()).decode()).hold is None
