"""Any calls for embeddings, one after the other: each is answered as if there were no cache."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.batches import ALONE, Batches, document, vector

TTL_S = 3600
texts = st.sampled_from(["", "a", "é", "e\u0301", '"}],"object":"list","model":"', "[0,1]"])
tokens = st.lists(st.integers(0, 1), min_size=1, max_size=2)
# The API takes no empty text alone.
inputs = (
    texts.filter(bool)
    | tokens
    | st.lists(texts, min_size=2, max_size=5)
    | st.lists(texts, min_size=1, max_size=3)
    | st.lists(tokens, min_size=1, max_size=5)
)
fields = st.sampled_from([{}, {}, {"dimensions": 2}, {"encoding_format": "base64"}])
controls = st.sampled_from(
    ["", "", "max-age=5", "max-age=5", "max-age=5", "no-cache", "no-store", "no-cache, no-store"]
)
calls = st.tuples(inputs, fields, controls, st.sampled_from([0, 6, TTL_S]), st.booleans())


def each(inputs_: Any) -> list[Any]:
    """Return the inputs of a call one by one."""
    alone = isinstance(inputs_, str) or isinstance(inputs_[0], int)
    return [inputs_] if alone else list(inputs_)


@given(calls=st.lists(calls, min_size=3, max_size=8))
def test_any_calls_are_answered_as_if_there_were_no_cache(calls: list[Any]) -> None:
    asyncio.run(_answered_all(calls))


async def _answered_all(calls: list[Any]) -> None:
    bench = Batches(model=ALONE)
    kept: dict[str, float] = {}  # since when
    for asked, more, control, passes_s, purged in calls:
        headers = {"cache-control": control} if control else {}
        found = await bench.ask(asked, fields=more, headers=headers)
        assert found.status == 200
        assert found.got["data"] == document(asked)["data"]
        assert found.got["model"] == "first"

        names = {json.dumps([one, more], sort_keys=True): one for one in each(asked)}
        youngest_s = 5 if "max-age" in control else TTL_S
        now = bench.clock.now
        known = {n for n in names if n in kept and now - kept[n] < min(youngest_s, TTL_S)}
        if "no-cache" in control:
            known = set()
        sent = [] if found.sent is None else each(found.sent)
        wanted = each(asked) if not known else [one for n, one in names.items() if n not in known]
        assert sent == wanted
        if "no-store" not in control:
            kept |= {n: now for n in names if n not in known}
        assert [one["embedding"] for one in found.got["data"]] == [vector(o) for o in each(asked)]

        bench.clock.now += passes_s
        if purged:
            await bench.answers.purge()
            bench.clock.now += 2  # a call's log entry says that it began a second ago
            kept.clear()
