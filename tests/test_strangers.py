"""What strangers write leaves nothing behind: no memory, no account, no label.

`make crash` sends a million wrong keys and a million unknown models; the suite some thousands.
"""

from __future__ import annotations

import gc
import os
import random
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable

import psutil
import pytest

from extproc.domain import KeyRecord
from extproc.identity import Authenticator
from extproc.inflight import InFlight
from extproc.limits import Tier
from extproc.policies.auth import KeyDirectory, digest_of, new_api_key
from extproc.service import Processor
from extproc.stores.memory import MemoryLedger
from extproc.telemetry.metrics import Metrics
from tests.calls import NOW, body, body_message, gateway, headers_message, snapshot
from tests.ledgers import rules

STRANGERS = int(os.environ.get("LLM_EDGE_STRANGERS", "3000"))  # `make crash` sets a million
WARM = 2_000  # after these every cache that is bounded has what it may have of strangers
# What may be left after any number of them: a dictionary that grew once, a cache's last entries.
MAX_BLOCKS = 1_000
MAX_BYTES = 8 * 1024 * 1024
KEY_ID, KEY = new_api_key(bytes(32))
RECORD = KeyRecord(KEY_ID, digest_of(KEY), "ci", "acme", "free", None, None, 0.0, None, None)
# Places of one length in encoded messages, so that none has to be encoded anew.
WRONG = "sk_" + "W" * 43
MODEL = "m" * 40
REQUEST_ID = "i" * 32


class Bench:
    """A processor with its real parts around it."""

    def __init__(self) -> None:
        self.metrics = Metrics(models={"small"}, served_models={"x"}, providers={"openai"})
        self.ledger = MemoryLedger(lambda: NOW, self.metrics)
        identity = Authenticator(tiers={"free"}, directory=KeyDirectory.of([RECORD], 1))
        every = rules(requests_per_second=1_000_000_000, requests_per_day=2**40)
        tier = Tier((every,), bounded=False, priced=False, by_address=False)
        self.gateway = gateway(
            identity, self.metrics, ledger=self.ledger, snapshot=snapshot(tier=tier)
        )
        self.inflight = InFlight(lambda: NOW)
        self.processor = Processor(self.gateway, self.inflight)

    def series(self) -> int:
        """Count the series on the page."""
        return sum(not line.startswith(b"#") for line in self.metrics.expose()[0].splitlines())

    def play(self, *messages: bytes) -> bytes:
        """Send messages to a new exchange; return its last reply. Nothing here waits."""
        exchange = self.processor.open()
        reply = b""
        for message in messages:
            try:
                exchange.receive(message).send(None)
            except StopIteration as stopped:
                reply = stopped.value
        assert exchange.ended
        exchange.close()
        return reply


Stranger = Callable[[random.Random], tuple[bytes, ...]]


def text(draw: random.Random, length: int) -> bytes:
    return urlsafe_b64encode(draw.randbytes(length))[:length]


def by_key(wrong: str, *pairs: tuple[str, str]) -> Stranger:
    """Return strangers with a credential in the place of `wrong`, each under an id of its own."""
    template = headers_message(("x-request-id", REQUEST_ID), *pairs)
    assert template.count(wrong.encode()) == 1

    def made(draw: random.Random) -> tuple[bytes, ...]:
        credential = wrong[:3].encode() + text(draw, len(wrong) - 3)
        message = template.replace(wrong.encode(), credential)
        return (message.replace(REQUEST_ID.encode(), text(draw, len(REQUEST_ID))),)

    return made


def by_model(path: str = "/v1/chat/completions") -> Stranger:
    """Return calls of one who is known for models that nobody has."""
    head = headers_message(("authorization", f"Bearer {KEY}"), path=path)
    template = body_message(body(model=MODEL, max_tokens=1))
    assert template.count(MODEL.encode()) == 1
    return lambda draw: (head, template.replace(MODEL.encode(), text(draw, len(MODEL))))


def by_path() -> Stranger:
    """Return requests for what is not there."""
    template = headers_message(path=f"/v1/{MODEL}")
    return lambda draw: (template.replace(MODEL.encode(), text(draw, len(MODEL))),)


@pytest.mark.parametrize(
    ("stranger", "refusal"),
    [
        pytest.param(by_key(WRONG, ("authorization", f"Bearer {WRONG}")), b"invalid_api_key", id="wrong keys"),
        pytest.param(by_key("a" * 46, ("x-api-key", "a" * 46)), b"invalid_api_key", id="what is no key"),
        pytest.param(by_model(), b"model_not_found", id="unknown models"),
        pytest.param(by_model("/v1/messages"), b"not_found_error", id="unknown models of the other dialect"),
        pytest.param(by_path(), b"not_found", id="unknown paths"),
    ],
)  # fmt: skip
def test_strangers_leave_nothing_behind(stranger: Stranger, refusal: bytes) -> None:
    """Memory, accounts, ratios and series are as many after any number of them as after a few."""
    bench, draw = Bench(), random.Random(20260401)
    process = psutil.Process()

    def send(count: int) -> None:
        for _ in range(count):
            assert refusal in bench.play(*stranger(draw))

    send(WARM)
    gc.collect()
    series, blocks, resident = bench.series(), sys.getallocatedblocks(), process.memory_info().rss
    send(STRANGERS)
    gc.collect()
    assert bench.series() == series
    assert sys.getallocatedblocks() - blocks < MAX_BLOCKS
    assert process.memory_info().rss - resident < MAX_BYTES
    assert repr(bench.ledger) == "MemoryLedger(accounts=0, open=0)"
    assert len(bench.gateway.estimator) == len(bench.inflight) == 0
    assert bench.gateway.health.states() == {}


def test_the_measure_sees_what_is_left_behind() -> None:
    """As many blocks as strangers would be far beyond the bound: the test above can fail."""
    draw = random.Random(1)
    blocks = sys.getallocatedblocks()
    kept = [text(draw, 40) for _ in range(STRANGERS)]
    assert sys.getallocatedblocks() - blocks > 2 * MAX_BLOCKS
    assert len(kept) == STRANGERS
