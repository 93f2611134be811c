"""Embeddings, input by input: what to ask for when some are known, and one answer of all of them.

Knows: the `input` of an embeddings call and the list it is answered with. Must not know: keys,
stores, HTTP. Vectors are never read: floats and base64 stay the bytes they came as.
Source: OpenAI API reference, Embeddings.

What is kept of an input is a whole answer to a call for it alone, laid out so that its vector is
found without parsing it (an answer to such a call as upstream laid it out is read as well):

    {"data":[{"index":0,<its other members>}],"object":"list","model":<name>,"usage":{...}}

Tokens are counted per call. An input's share is by its token ids, or by the bytes of its text: an
estimate, but the shares of one answer add up to what it counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final

import msgspec

from extproc.cache.recorded import CannotTell
from extproc.dialects.json_body import spans
from extproc.domain import Span

_HEAD: Final = b'{"data":[{"index":0,'
_ITEM_END: Final = b'}],"object":"list","model":"'
_TO_MEMBERS: Final = len(b"}],")
_VECTOR_BEGINS: Final = (b"[", b'"')

MAX_TOKENS: Final = 2**53  # of an answer: above it not every reader of JSON has whole numbers

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode
_decode_items: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_index: Final = msgspec.json.Decoder(int).decode


class Batch(msgspec.Struct, frozen=True, gc=False):
    """The inputs of one call.

    `pieces` is each input's canonical JSON: with the model and `rest`, which is every other member
    of the body, decoded, it decides the vector. `spans` is where in the body each was written.
    """

    pieces: tuple[bytes, ...]
    spans: tuple[Span, ...]
    input_span: Span
    rest: Mapping[str, Any]


class Part(msgspec.Struct, frozen=True, gc=False):
    """A batch of which some inputs are known, by their index, and the indexes asked for."""

    batch: Batch
    known: Mapping[int, bytes]
    asked: Sequence[int]

    def complete(self, answer: bytes) -> bytes:
        """Return the answer to the batch, from one to what was asked for. Raises CannotTell."""
        return merge(self.batch, self.known, take_apart(answer, self.batch, self.asked))


class Taken(msgspec.Struct, frozen=True, gc=False):
    """What an answer gave: what to keep, by index in the batch, and its members but the list."""

    kept: Mapping[int, bytes]
    rest: Mapping[str, msgspec.Raw]


class _Answer(msgspec.Struct, gc=False):
    data: list[dict[str, msgspec.Raw]]
    model: str


_ALONE: Final = Batch((b'""',), (), Span(0, 0), {})


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None


class _End(msgspec.Struct, gc=False):
    """The members after a kept vector."""

    model: str
    usage: _Usage | None = None


_decode_rest: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_answer: Final = msgspec.json.Decoder(_Answer).decode
_decode_usage: Final = msgspec.json.Decoder(_Usage | None).decode
_decode_end: Final = msgspec.json.Decoder(_End).decode


def split(body: bytes) -> Batch:
    """Return the inputs of a body that `dialects.openai.read` accepted, in order.

    A string and a list of token ids are one input, whether alone or in a list. Pure; linear.
    """
    members = spans(body)
    at = members["input"]
    text = body[at.start : at.stop]
    value = _decode(text)
    rest = {
        name: _decode(body[span.start : span.stop])
        for name, span in members.items()
        if name != "input"
    }
    if isinstance(value, str) or not isinstance(value[0], str | list):
        return Batch((_encode(value),), (at,), at, rest)
    found: list[Span] = []
    stop = 1
    for raw in _decode_items(text):
        item = memoryview(raw)
        start = text.index(item, stop)  # of what is between two items, none begins one
        stop = start + len(item)
        found.append(Span(at.start + start, at.start + stop))
    return Batch(tuple(map(_encode, value)), tuple(found), at, rest)


def to_ask(batch: Batch, known: Collection[int]) -> tuple[int, ...]:
    """Return the indexes to ask for: of inputs that are not known, each one once, in order.

    An input is known where one that is written elsewhere and means the same is.
    """
    found = {batch.pieces[index] for index in known}
    first: dict[bytes, int] = {}
    for index, piece in enumerate(batch.pieces):
        if piece not in found:
            first.setdefault(piece, index)
    return tuple(first.values())


def ask_only(body: bytes, batch: Batch, asked: Sequence[int]) -> bytes:
    """Return the body with these inputs alone, as the caller wrote them; nothing else changes.

    What was read of the old body (`Call`) does not hold for the new one.
    """
    if len(asked) == len(batch.pieces):
        return body
    inputs = b",".join([body[s.start : s.stop] for s in map(batch.spans.__getitem__, asked)])
    at = batch.input_span
    return b"%b[%b]%b" % (body[: at.start], inputs, body[at.stop :])


def take_apart(answer: bytes, batch: Batch, asked: Sequence[int]) -> Taken:
    """Return what to keep of an answer to a call for these inputs, for each of them.

    Raises CannotTell for an answer that does not have exactly one vector for each.
    """
    kept, rest, _ = _apart(answer, [size_of(batch.pieces[index]) for index in asked])
    return Taken(dict(zip(asked, kept, strict=True)), rest)


def each_of(answer: bytes, sizes: Sequence[int]) -> list[tuple[bytes, int]]:
    """Return what to keep of an answer to inputs of these sizes, in order, and each one's tokens.

    Raises CannotTell as `take_apart` does.
    """
    kept, _, shares = _apart(answer, sizes)
    return list(zip(kept, shares, strict=True))


def size_of(piece: bytes) -> int:
    """Return by what an input's share of the tokens is told: its token ids, or its bytes."""
    return piece.count(b",") + 1 if piece[:1] == b"[" else len(piece)


def model_of(kept: Iterable[bytes]) -> str:
    """Return the model that says it gave all of these. Raises CannotTell where there is no one."""
    models = {_read(one)[1].model for one in kept}
    if len(models) != 1:
        raise CannotTell("vectors are of more than one model")
    return models.pop()


def _apart(
    answer: bytes, sizes: Sequence[int]
) -> tuple[list[bytes], Mapping[str, msgspec.Raw], list[int]]:
    try:
        answer.decode()
        found = _decode_answer(answer)
        rest = _decode_rest(answer)
        vectors = {_decode_index(one.pop("index", b"null")): one for one in found.data}
        usage = _decode_usage(rest.get("usage", b"null"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise CannotTell("what was recorded is no list of embeddings") from None
    if len(found.data) != len(sizes) or vectors.keys() != set(range(len(sizes))):
        raise CannotTell("an answer does not have a vector for each input")
    shares = _shares(usage, sizes)
    kept: list[bytes] = []
    for number, tokens in enumerate(shares or [0] * len(sizes)):
        item = vectors[number]
        if bytes(item.get("embedding", b""))[:1] not in _VECTOR_BEGINS:
            raise CannotTell("an embedding has no vector")
        told = _counted(tokens) if shares else {}
        end = b"}],%b" % _encode({"object": "list", "model": found.model, **told})[1:]
        kept.append(_HEAD + _encode(item)[1:-1] + end)
    others = {k: v for k, v in rest.items() if k not in {"object", "data"}}
    return kept, others, shares or [0] * len(sizes)


def _shares(usage: _Usage | None, sizes: Sequence[int]) -> list[int]:
    """Share the tokens out, to the last one; nothing where they are not told, or not to believe."""
    if usage is None or usage.prompt_tokens is None or not 0 <= usage.prompt_tokens <= MAX_TOKENS:
        return []
    total = sum(sizes)
    marks = [usage.prompt_tokens * so_far // total for so_far in accumulate(sizes, initial=0)]
    return [stop - start for start, stop in pairwise(marks)]


def _counted(tokens: int) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def merge(batch: Batch, known: Mapping[int, bytes], taken: Taken) -> bytes:
    """Return the answer to the whole batch: what was known, and what upstream was asked for.

    Its usage and every other member but the list is what upstream said, so it counts what was
    asked. Raises CannotTell where what is known is of another model than what was answered, for
    their vectors do not compare; where an input is missing; and for kept bytes that are none.
    """
    data, _ = _data(batch, {**known, **taken.kept})
    return b'{"object":"list","data":[%b],%b' % (data, _encode(taken.rest)[1:])


def whole(batch: Batch, known: Mapping[int, bytes]) -> bytes:
    """Return the answer to a batch of which every input is known.

    Its usage is the sum of the shares, and left out where one of them was not told.
    Raises CannotTell as `merge` does.
    """
    data, ends = _data(batch, known)
    counts = [None if end.usage is None else end.usage.prompt_tokens for end in ends]
    told = [count for count in counts if count is not None]
    usage = _counted(sum(told)) if len(told) == len(counts) else {}
    rest = _encode({"model": ends[0].model, **usage})
    return b'{"object":"list","data":[%b],%b' % (data, rest[1:])


def _data(batch: Batch, kept: Mapping[int, bytes]) -> tuple[bytes, list[_End]]:
    """Return the items of a whole list, renumbered, and what came after each."""
    found = {batch.pieces[index]: _read(one) for index, one in kept.items()}
    try:
        every = [found[piece] for piece in batch.pieces]
    except KeyError:
        raise CannotTell("an input has no vector") from None
    if len({end.model for _, end in every}) != 1:
        raise CannotTell("vectors are of more than one model")
    items = [b'{"index":%d,%b' % (index, item) for index, (item, _) in enumerate(every)]
    return b",".join(items), [end for _, end in every]


def _read(one: bytes) -> tuple[bytes, _End]:
    """Return the members of a kept item after its index, and those of the answer after it."""
    stop = one.rfind(_ITEM_END)
    # Without a brace inside there is no second item, and nothing that looks like the end of one.
    if not one.startswith(_HEAD) or stop < 0 or one.find(b"{", len(_HEAD), stop) >= 0:
        one = take_apart(one, _ALONE, (0,)).kept[0]
        # The last, because after it come a string, in which quotes are escaped, and counts.
        stop = one.rfind(_ITEM_END)
    try:
        end = _decode_end(b"{" + one[stop + _TO_MEMBERS :])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise CannotTell("what was kept is no embedding") from None
    return one[len(_HEAD) : stop + 1], end
