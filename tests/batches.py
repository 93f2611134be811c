"""A gateway that is asked for batches of embeddings, and a provider that answers in numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from extproc.domain import Model, Outcome, Principal
from tests.attempts import chunk, response_head
from tests.cache_bench import Answered, Bench
from tests.calls import EMBEDDINGS, answer, body_message, headers_message, target

PATH = f"/v1{EMBEDDINGS.suffix}"
ALONE = Model("small", "priority", (target("a", "first", max_retries=2),))
EITHER = Model("small", "priority", (target("a", "first", max_retries=2), target("b", "second")))
BOB = Principal("umbrella", "key_bob", "free")


def vector(text: Any, model: str = "first") -> list[float]:
    """Return what a model makes of an input."""
    return [float(sum(json.dumps(text).encode())), float(len(model))]


def document(inputs: Any, model: str = "first") -> dict[str, Any]:
    """Answer as a provider does: ten tokens for each input."""
    every = [inputs] if isinstance(inputs, str) or isinstance(inputs[0], int) else inputs
    data = [
        {"object": "embedding", "index": at, "embedding": vector(one, model)}
        for at, one in enumerate(every)
    ]
    tokens = 10 * len(every)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


class Asked(NamedTuple):
    """What became of a call: the client's status and document, the inputs sent upstream or None."""

    status: int
    got: dict[str, Any]
    sent: Any
    answered: Answered
    row: Outcome | None

    @property
    def said(self) -> str:
        return self.answered.said


class Batches(Bench):
    """Sends whole calls, and plays Envoy's part and the provider's."""

    async def ask(
        self,
        inputs: Any,
        *,
        headers: dict[str, str] | None = None,
        model: str = "first",
        status: int = 200,
        provider: Callable[[Any, str], dict[str, Any]] = document,
        settle: bool = True,
        fields: dict[str, Any] | None = None,
        **entry: Any,
    ) -> Asked:
        exchange = self.processor.open()
        raw = json.dumps({"model": "small", "input": inputs, **(fields or {})}).encode()
        await exchange.receive(headers_message(*(headers or {}).items(), path=PATH))
        answered = Answered(await exchange.receive(body_message(raw), self._say))
        if answered.told:
            assert exchange.ended
            row = self.settle(answered, attempts=0, usage="") if answered.status == 200 else None
            return Asked(answered.status, json.loads(answered.body), None, answered, row)
        mutation = answered.reply.request_body.response.body_mutation
        sent = json.loads(mutation.body if mutation and mutation.body else raw)
        made = provider(sent["input"], model)
        got = made
        if not exchange.ended:
            head = answer(await exchange.receive(response_head(status, "application/json")))
            assert head.response_headers is not None
            if status == 200:
                whole = chunk(json.dumps(made).encode(), ends=True)
                common = answer(await exchange.receive(whole)).response_body.response
                set_ = {
                    o.header.key: o.header.raw_value for o in common.header_mutation.set_headers
                }
                status = int(set_.get(":status", b"200"))
                assert int(set_["content-length"]) == len(common.body_mutation.body)
                got = json.loads(common.body_mutation.body)
        assert exchange.ended
        exchange.close()
        row = None
        if settle:
            usage = json.dumps({"usage": made["usage"]})
            row = self.settle(answered, made, status=status, usage=usage, **entry)
        return Asked(status, got, sent["input"], answered, row)


def told(inputs: Any, tokens: int, model: str = "first") -> dict[str, Any]:
    """Return the answer to a batch, counted as so many tokens."""
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return document(inputs, model) | {"usage": usage}
