"""A processor that keeps answers, and log entries of the calls it has sent.

Knows: how a call is sent and settled. Must not know: what a test expects.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from msgspec.structs import replace

from extproc import pipeline
from extproc.cache_policy import ModelPolicy, Policy
from extproc.domain import LogEntry, Model, Outcome, Principal
from extproc.gateway import Caching
from extproc.inflight import InFlight
from extproc.limits import Tier
from extproc.service import Exchange, Processor
from extproc.stores.answers import MemoryAnswers
from extproc.stores.flights import Flights
from extproc.stores.memory import MemoryLedger
from extproc.tiers import tier_of
from tests.calls import (
    ALICE,
    CHAT_PATH,
    Identity,
    Watcher,
    answer,
    body,
    body_message,
    gateway,
    headers_message,
    plain,
    snapshot,
    target,
)
from tests.ledgers import Clock
from tests.test_settlement import ENTRY

SMALL = Model("small", "priority", (target("a", "first"), target("b", "second")))
COMPLETE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "first",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
}


class Watching(Watcher):
    """Remembers what the cache did as well."""

    def __init__(self) -> None:
        super().__init__()
        self.lookups: list[str] = []
        self.fills: list[str] = []

    def looked_up(self, result: str) -> None:
        self.lookups.append(result)

    def kept(self, result: str) -> None:
        self.fills.append(result)


class Answered:
    """The reply to a call, read with the independent types."""

    def __init__(self, raw: bytes) -> None:
        self.reply = answer(raw)
        self.metadata = plain(self.reply.dynamic_metadata) if self.reply.dynamic_metadata else {}

    @property
    def told(self) -> bool:
        """Say whether the processor answered itself."""
        return self.reply.immediate_response is not None

    @property
    def status(self) -> int:
        """Return the status of an answer from the processor."""
        return int(self.reply.immediate_response.status.code)

    @property
    def body(self) -> bytes:
        """Return its body."""
        return bytes(self.reply.immediate_response.body)

    @property
    def error(self) -> str:
        """Return the code of a refusal."""
        return str(json.loads(self.body)["error"]["code"])

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of an answer from here, or those that Envoy is to add."""
        if not self.told:
            found: dict[str, str] = self.metadata.get("llm.limits", {})
            return found
        options = self.reply.immediate_response.headers.set_headers
        return {one.header.key: one.header.raw_value.decode() for one in options}

    @property
    def said(self) -> str:
        """Return Cache-Status, empty where there is none."""
        return self.headers.get("cache-status", "")

    @property
    def record(self) -> str:
        """Return what settlement gets back."""
        return str(self.metadata["llm.call"]["record"])

    @property
    def keep_bytes(self) -> float | None:
        """Return how much of the answer is to be collected."""
        found: float | None = self.metadata["llm.call"].get("keep_bytes")
        return found

    def sent(self, name: str) -> str:
        """Return a header that the request is sent with."""
        options = self.reply.request_body.response.header_mutation.set_headers
        return next(one.header.raw_value.decode() for one in options if one.header.key == name)


class Bench:
    """A processor with a cache in memory; `policy` is of the cache, `limits` of the one tier."""

    def __init__(
        self,
        *limits: Any,
        who: Principal = ALICE,
        model: Model = SMALL,
        on: bool = True,
        wait_ms: int = 60_000,
        **policy: Any,
    ) -> None:
        self.clock = Clock()
        self.watcher = Watching()
        self.answers = MemoryAnswers(2**22, clock=self.clock)
        self.flights = Flights()
        self.ledger = MemoryLedger(self.clock, self.watcher)
        self.inflight = InFlight(self.clock)
        tier: Tier = tier_of(limits)
        cache = Policy(enabled=on, models={model.name: ModelPolicy("v1")}, **policy)
        shot = snapshot(model, tier=tier, cache=cache, wait_ms=wait_ms)
        self.gateway = gateway(
            Identity(who),
            self.watcher,
            snapshot=shot,
            ledger=self.ledger,
            clock=self.clock,
            steady=asyncio.get_running_loop().time,
            caching=Caching(self.answers, self.flights),
        )
        self.processor = Processor(self.gateway, self.inflight)
        self.said: list[bytes] = []

    async def send(self, path: str = CHAT_PATH, raw: bytes = b"", **fields: Any) -> Answered:
        """Send a call; `headers` is a dictionary."""
        return Answered(await self._receive(path, raw, fields, self.processor.open()))

    def begin(self, **fields: Any) -> asyncio.Task[Answered]:
        """Send a call that may have to wait."""
        return asyncio.create_task(self.send(**fields))

    async def _receive(
        self, path: str, raw: bytes, fields: dict[str, Any], exchange: Exchange
    ) -> bytes:
        headers = fields.pop("headers", {})
        first = await exchange.receive(headers_message(*headers.items(), path=path))
        if exchange.ended:
            return first
        try:
            return await exchange.receive(body_message(raw or body(**fields)), self._say)
        finally:
            exchange.close()

    async def _say(self, message: bytes) -> None:
        self.said.append(message)

    async def waiting(self, count: int) -> None:
        """Return once so many calls wait for another's answer."""
        async with asyncio.timeout(10):
            while self.flights.waiting != count:
                await asyncio.sleep(0)

    def settle(self, answered: Answered, document: Any = COMPLETE, **more: Any) -> Outcome:
        """Bring the log entry of a call, by default of a good answer a moment ago."""
        entry = log_entry(answered, document, start_ms=int(self.clock() * 1000) - 1234)
        outcome = pipeline.settle(self.gateway, replace(entry, **more))
        assert outcome is not None
        return outcome

    async def keep(self, document: Any = COMPLETE, **fields: Any) -> Outcome:
        """Send a call and have its answer kept."""
        return self.settle(await self.send(**fields), document)


def log_entry(answered: Answered, document: Any, **more: Any) -> LogEntry:
    """Return the entry of a call's answer: a JSON document, or the bytes of a stream."""
    form, whole = "json", document
    if isinstance(document, bytes):
        form = "sse"
    else:
        whole = json.dumps(document).encode()
    collected = whole if answered.metadata["llm.call"].get("keep_bytes") else b""
    return replace(
        ENTRY, record=answered.record, answer=collected, answer_form=collected and form, **more
    )
