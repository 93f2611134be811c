"""Embeddings input by input: what is asked for, what is kept, and one answer of all of it."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from extproc.cache.embeddings import (
    Batch,
    Part,
    ask_only,
    each_of,
    merge,
    model_of,
    size_of,
    split,
    take_apart,
    to_ask,
    whole,
)
from extproc.cache.recorded import CannotTell
from extproc.dialects.openai import read
from extproc.domain import ENDPOINTS
from extproc.simulator.behaviour import Behaviour

from .told import simulated

ENDPOINT = ENDPOINTS["POST", "/v1/embeddings"]


def body_of(input_: Any, **more: Any) -> bytes:
    return json.dumps({"model": "m", "input": input_, **more}).encode()


def answer(*vectors: Any, tokens: int | None = 10, model: Any = "e-1", **more: Any) -> bytes:
    data = [{"object": "embedding", "index": n, "embedding": one} for n, one in enumerate(vectors)]
    usage = {} if tokens is None else {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    return json.dumps({"object": "list", "data": data, "model": model, **usage, **more}).encode()


@pytest.mark.parametrize(
    ("written", "pieces"),
    [
        pytest.param('"a"', ['"a"'], id="a text"),
        pytest.param('["a"]', ['"a"'], id="a text in a list"),
        pytest.param('["a", "b","a"]', ['"a"', '"b"', '"a"'], id="texts"),
        pytest.param("[1, 2]", ["[1,2]"], id="the tokens of a text"),
        pytest.param("[[1,2] , [3]]", ["[1,2]", "[3]"], id="the tokens of texts"),
        pytest.param(r'["\u00e9", "é", "a\/b", "[1]"]', ['"é"', '"é"', '"a/b"', '"[1]"'], id="texts in other forms"),
        pytest.param('[",", "],[", "\\"\\\\"]', ['","', '"],["', '"\\"\\\\"'], id="texts like lists"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "where", ['{"model":"m","input":%s}', '{ "input" : %s , "model":"m","dimensions":3}']
)
def test_a_body_is_split_into_inputs(where: str, written: str, pieces: list[str]) -> None:
    """Each in one form however it was written, and where it stands in the body."""
    body = (where % written).encode()
    read(ENDPOINT, body)  # the contract: it was accepted
    batch = split(body)
    assert [one.decode() for one in batch.pieces] == pieces
    assert [json.loads(body[s.start : s.stop]) for s in batch.spans] == [
        json.loads(one) for one in pieces
    ]
    assert body[batch.input_span.start : batch.input_span.stop] == written.encode()
    assert batch.rest == {k: v for k, v in json.loads(body).items() if k != "input"}


@pytest.mark.parametrize(
    ("inputs", "known", "asked"),
    [
        pytest.param(["a", "b", "c"], (), (0, 1, 2), id="nothing known"),
        pytest.param(["a", "b", "c"], (1,), (0, 2), id="one known"),
        pytest.param(["a", "b", "c"], (0, 1, 2), (), id="all known"),
        pytest.param(["a", "b", "a", "b", "b"], (), (0, 1), id="each once"),
        pytest.param(["a", "b", "a"], (0, 2), (1,), id="a double known"),
        pytest.param(["a", "b", "a"], (2,), (1,), id="one of a double known"),
    ],
)
def test_what_is_asked_for(
    inputs: list[str], known: tuple[int, ...], asked: tuple[int, ...]
) -> None:
    """What is not known, once, in order."""
    assert to_ask(split(body_of(inputs)), known) == asked


BODY = b'{ "dimensions":2 ,"input": [ "\\u0061" , "b",\n"c" ], "user":"u", "model":"m" }'


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        pytest.param((0,), b'["\\u0061"]', id="the first"),
        pytest.param((1, 2), b'["b","c"]', id="the others"),
        pytest.param((2,), b'["c"]', id="the last"),
        pytest.param((0, 1, 2), b'[ "\\u0061" , "b",\n"c" ]', id="all, untouched"),
    ],
)
def test_only_the_input_is_rewritten(asked: tuple[int, ...], written: bytes) -> None:
    """Every other byte, and every input asked for, is the caller's."""
    rewritten = ask_only(BODY, split(BODY), asked)
    assert rewritten == b'{ "dimensions":2 ,"input": %b, "user":"u", "model":"m" }' % written
    assert read(ENDPOINT, rewritten).model == "m"


def test_nothing_is_copied_where_all_is_asked_for() -> None:
    """Of one text too."""
    for body in (BODY, body_of("a"), body_of([1, 2])):
        batch = split(body)
        assert ask_only(body, batch, to_ask(batch, ())) is body


def test_vectors_stay_the_bytes_they_came_as() -> None:
    """Floats with any digits, base64 with any padding, spaces and unknown fields too."""
    batch = split(body_of(["a", "b", "c"]))
    items = [
        b'{"object": "embedding", "index": 2, "embedding": "AAAA\\/w=="}',
        b'{"embedding":[0.10000000000000000001, -1E-7,\n1.0, 0],"index":0,"new":{"x": 1.50}}',
        b'{"index":1,"embedding":[]}',
    ]
    came = (
        b'{"object":"list","data":[%b],"model":"e","usage":{"prompt_tokens":3,"new":1.0},"id":"x"}'
    )
    taken = take_apart(came % b",".join(items), batch, (0, 1, 2))
    assert merge(batch, {}, taken) == (
        b'{"object":"list","data":['
        b'{"index":0,"embedding":[0.10000000000000000001, -1E-7,\n1.0, 0],"new":{"x": 1.50}},'
        b'{"index":1,"embedding":[]},'
        b'{"index":2,"object":"embedding","embedding":"AAAA\\/w=="}],'
        b'"model":"e","usage":{"prompt_tokens":3,"new":1.0},"id":"x"}'
    )


def test_what_is_kept_is_an_answer_to_a_call_for_one_input() -> None:
    """With its share of the tokens."""
    taken = take_apart(answer([1], [2], tokens=7), split(body_of(["aaaa", "b"])), (0, 1))
    assert [json.loads(one) for one in taken.kept.values()] == [
        json.loads(answer([1], tokens=4)),
        json.loads(answer([2], tokens=3)),
    ]


@pytest.mark.parametrize(
    ("inputs", "tokens", "shares"),
    [
        pytest.param([[1], [1, 2], [1, 2, 3]], 6, [1, 2, 3], id="tokens count themselves"),
        pytest.param(["aaaaaaaa", "bb"], 7, [5, 2], id="texts by their bytes"),
        pytest.param(["a", "b", "c"], 2, [0, 1, 1], id="fewer than inputs"),
        pytest.param(["a", "b"], 0, [0, 0], id="none"),
        pytest.param(["", "b"], 10**15, [4 * 10**14, 6 * 10**14], id="past 32 bits"),
        pytest.param(["a", "b"], None, [None, None], id="not told"),
    ],
)
def test_tokens_are_shared_out(
    inputs: list[Any], tokens: int | None, shares: list[int | None]
) -> None:
    """To the last one."""
    batch = split(body_of(inputs))
    vectors = [[number] for number in range(len(inputs))]
    taken = take_apart(answer(*vectors, tokens=tokens), batch, range(len(inputs)))
    kept = [json.loads(one) for one in taken.kept.values()]
    assert [one.get("usage", {}).get("prompt_tokens") for one in kept] == shares
    assert json.loads(whole(batch, taken.kept)) == json.loads(answer(*vectors, tokens=tokens))


def test_an_answer_is_taken_apart_without_its_batch() -> None:
    """By the sizes of its inputs alone, which is all that settlement has."""
    batch = split(body_of(["aaaa", "b"]))
    sizes = [size_of(piece) for piece in batch.pieces]
    came = answer([1], [2], tokens=7)
    kept = take_apart(came, batch, (0, 1)).kept
    assert each_of(came, sizes) == [(kept[0], 4), (kept[1], 3)]
    untold = each_of(answer([1], [2], tokens=None), sizes)
    assert [tokens for _, tokens in untold] == [0, 0]
    with pytest.raises(CannotTell):
        each_of(came, sizes[:1])


def test_a_part_is_completed_by_what_is_known() -> None:
    """In order; its usage is the part's."""
    batch = split(body_of(["a", "b", "c"]))
    known = take_apart(answer([1], [3]), split(body_of(["a", "c"])), (0, 1)).kept
    part = Part(batch, {0: known[0], 2: known[1]}, (1,))
    told = json.loads(part.complete(answer([2], tokens=5)))
    assert told == json.loads(answer([1], [2], [3], tokens=5))
    with pytest.raises(CannotTell):
        part.complete(answer([2], model="e-2"))


def test_what_is_kept_says_of_which_model_it_is() -> None:
    """One, or it is not used."""
    assert model_of([KEPT[0], answer(B)]) == "e-1"
    for several in ([KEPT[0], OTHER], [], [b"{}"]):
        with pytest.raises(CannotTell):
            model_of(several)


def test_usage_is_not_told_where_a_share_is_not_known() -> None:
    """Rather than a sum that lacks it."""
    batch = split(body_of(["a", "b"]))
    kept = {
        **take_apart(answer([1]), batch, (0,)).kept,
        **take_apart(answer([2], tokens=None), batch, (1,)).kept,
    }
    assert "usage" not in json.loads(whole(batch, kept))


def test_a_name_like_the_layout_confuses_nothing() -> None:
    """What is kept is cut where it was put together, whatever is in it."""
    name = '"}],"object":"list","model":"x'
    inside = {"t": '}],"object":"list","model":"', "data": [{"o": [1]}], "object": "list"}
    vectors = json.loads(answer([1], [2], model=name))
    for item in vectors["data"]:
        item["new"] = inside
    batch = split(body_of(["a", "b"]))
    taken = take_apart(json.dumps(vectors).encode(), batch, (0, 1))
    assert json.loads(whole(batch, taken.kept)) == vectors
    assert json.loads(merge(batch, {}, taken)) == vectors


A, B = [1.0], [2.0]
BAD_ANSWERS = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"[]", id="a list"),
    pytest.param(b'{"error":{"message":"x"}}', id="an error"),
    pytest.param(answer(A, B)[:-5], id="cut short"),
    pytest.param(answer(A), id="a vector too few"),
    pytest.param(answer(A, B, B), id="a vector too many"),
    pytest.param(answer(A, B).replace(b'"index": 1', b'"index": 0'), id="an index twice"),
    pytest.param(answer(A, B).replace(b'"index": 1', b'"index": 2'), id="an index past the end"),
    pytest.param(answer(A, B).replace(b'"index": 1', b'"index": "1"'), id="an index that is a text"),
    pytest.param(answer(A, B).replace(b'"index": 1', b'"index": true'), id="an index that is true"),
    pytest.param(answer(A, B).replace(b'"index": 1, ', b""), id="no index"),
    pytest.param(answer(A, None), id="a vector that is null"),
    pytest.param(answer(A, {"x": 1}), id="a vector that is an object"),
    pytest.param(answer(A, B).replace(b'"embedding": [2.0]', b'"x": 1'), id="no vector"),
    pytest.param(answer(A, B).replace(b'{"object": "embedding", "index": 0, "embedding": [1.0]}', b"1"), id="an item that is a number"),
    pytest.param(answer(A, B, model=None), id="no model"),
    pytest.param(answer(A, B, usage=5), id="usage that is a number"),
    pytest.param(answer(A, B, usage={"prompt_tokens": "x"}), id="tokens that are a text"),
    pytest.param(answer(A, B, x="\xff").replace(b"\\u00ff", b"\xff"), id="not UTF-8"),
    pytest.param(answer(A, B).replace(b"[2.0]", b"[" * 100_000 + b"]" * 100_000), id="nested past every stack"),
]  # fmt: skip


@pytest.mark.parametrize("came", BAD_ANSWERS)
def test_an_answer_that_is_none_is_not_taken_apart(came: bytes) -> None:
    """Exactly one vector for every input, or nothing is kept."""
    with pytest.raises(CannotTell):
        take_apart(came, split(body_of(["a", "b"])), (0, 1))


KEPT = take_apart(answer(A, B), split(body_of(["a", "b"])), (0, 1)).kept
OTHER = take_apart(answer(A, model="e-2"), split(body_of("b")), (0,)).kept[0]


LAID_OUT_SO = (
    b'{"data":[{"index":0,"embedding":[2.0]},{"index":1,"embedding":[3.0]}],'
    b'"object":"list","model":"e-1"}'
)


def test_an_answer_to_one_input_may_be_kept_as_it_came() -> None:
    """However upstream laid it out."""
    batch = split(body_of(["a", "b"]))
    for second in (
        answer(B, tokens=5),
        json.dumps(json.loads(answer(B, tokens=5)), indent=2).encode(),
    ):
        assert json.loads(whole(batch, {0: KEPT[0], 1: second})) == json.loads(answer(A, B))


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(OTHER, id="of another model"),
        pytest.param(None, id="missing"),
        pytest.param(b"", id="empty"),
        pytest.param(answer(B, B), id="two answers"),
        pytest.param(LAID_OUT_SO, id="two answers laid out as one that is kept"),
        pytest.param(KEPT[1][:-1], id="cut short"),
        pytest.param(KEPT[1][1:], id="cut at the start"),
        pytest.param(KEPT[1].replace(b'"e-1"', b'"\xff"'), id="not UTF-8"),
    ],
)
def test_kept_bytes_that_do_not_fit_are_a_miss(second: bytes | None) -> None:
    """Vectors of two models do not compare; others are none."""
    batch = split(body_of(["a", "b"]))
    with pytest.raises(CannotTell):
        whole(batch, {0: KEPT[0]} if second is None else {0: KEPT[0], 1: second})
    with pytest.raises(CannotTell):
        merge(batch, {} if second is None else {1: second}, take_apart(answer(A), batch, (0,)))


@given(
    st.binary(max_size=60) | st.sampled_from([answer(A), answer(A, B)]),
    st.integers(0, 200),
    st.binary(max_size=4),
)
def test_damaged_answers_and_kept_bytes_are_a_miss_or_an_answer(
    came: bytes, at: int, noise: bytes
) -> None:
    """Never another error."""
    batch = split(body_of(["a", "b"]))
    damaged = came[:at] + noise + came[at + len(noise) :]
    for asked in ((0, 1), (0,)):
        try:
            json.loads(merge(batch, {1: KEPT[1]}, take_apart(damaged, batch, asked)))
        except CannotTell:
            continue
    kept = KEPT[0][:at] + noise + KEPT[0][at:]
    try:
        whole(batch, {0: kept, 1: KEPT[1]})
    except CannotTell:
        return


INPUTS = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=6) | st.lists(
    st.lists(st.integers(0, 99), min_size=1, max_size=4), min_size=1, max_size=6
)


@given(INPUTS, st.sampled_from([None, "float", "base64"]), st.data())
def test_a_merged_answer_is_the_one_to_the_whole_call(
    inputs: list[Any], form: str | None, data: st.DataObject
) -> None:
    """For any inputs, doubles too, and any part of them known from any earlier call."""
    assume("".join(map(str, inputs)).isprintable())
    request = {
        "model": "m",
        "input": inputs,
        "dimensions": 3,
        **({"encoding_format": form} if form else {}),
    }

    def ask(part: Any) -> bytes:
        return simulated("embeddings", request | {"input": part}, Behaviour())

    full = json.loads(ask(inputs))
    body = json.dumps(request).encode()
    batch = split(body)
    before = data.draw(st.lists(st.sampled_from(inputs), max_size=4))
    known: dict[int, bytes] = {}
    if before:
        earlier = split(json.dumps(request | {"input": before}).encode())
        kept = take_apart(ask(before), earlier, range(len(before))).kept
        by_piece = {earlier.pieces[index]: one for index, one in kept.items()}
        known = {n: by_piece[piece] for n, piece in enumerate(batch.pieces) if piece in by_piece}
    asked = to_ask(batch, known)
    if not asked:
        told = json.loads(whole(batch, known))
        assert {k: told[k] for k in told if k != "usage"} == {
            k: full[k] for k in full if k != "usage"
        }
        return
    part = json.loads(ask_only(body, batch, asked))
    assert part == request | {"input": part["input"]}
    came = ask(part["input"])
    told = json.loads(merge(batch, known, take_apart(came, batch, asked)))
    assert told == full | {"usage": json.loads(came)["usage"]}


def test_the_official_client_reads_a_merged_answer() -> None:
    """It asks for base64 and returns floats, in order."""

    def provider(request: httpx2.Request) -> httpx2.Response:
        body = request.content
        batch = split(body)
        assert batch.rest["encoding_format"] == "base64"
        vectors = [base64.b64encode(struct.pack("<2f", n, 0.1)).decode() for n in (0, 2)]
        first = take_apart(answer(*vectors), batch, (0, 2))
        second = base64.b64encode(struct.pack("<2f", 1, 0.1)).decode()
        told = merge(batch, first.kept, take_apart(answer(second, tokens=1), batch, (1,)))
        return httpx2.Response(200, content=told, headers={"content-type": "application/json"})

    with (
        httpx2.Client(transport=httpx2.MockTransport(provider)) as transport,
        openai.OpenAI(api_key="k", base_url="http://t/v1", http_client=transport) as client,
    ):
        found = client.embeddings.create(model="m", input=["a", "b", "c"])
    assert [one.index for one in found.data] == [0, 1, 2]
    assert [one.embedding[0] for one in found.data] == [0.0, 1.0, 2.0]
    assert (found.model, found.usage.prompt_tokens) == ("e-1", 1)


def test_a_batch_is_a_value() -> None:
    """Equal bodies give equal batches, so that one may be kept beside a call."""
    assert split(BODY) == split(bytes(bytearray(BODY)))
    assert isinstance(split(BODY), Batch)
