"""Envoy sends the headers that decisions read, and no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from extproc import pipeline
from extproc.cache_policy import ModelPolicy, Policy
from extproc.domain import Head, Principal
from extproc.gateway import Caching, Identified
from extproc.headers import READ
from extproc.limits import Scope
from extproc.policies.auth import find_credential
from extproc.stores.answers import MemoryAnswers
from extproc.stores.flights import Flights
from extproc.tiers import tier_of
from tests.calls import ALICE, CHAT_PATH, body, gateway, snapshot
from tests.ledgers import rules


class Asked(Mapping[str, str]):
    """Headers that remember which of them were asked for; it has none."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("what is not named cannot be sent")

    def __len__(self) -> int:
        return 0


class Finding:
    """Looks for a credential as the authenticator does."""

    async def authenticate(self, headers: Mapping[str, str], now: float) -> Principal:
        assert find_credential(headers) is None
        return ALICE


async def test_every_header_that_is_read_is_sent_and_no_other() -> None:
    asked = Asked()
    head = Head("POST", CHAT_PATH, "", asked, False)
    tier = tier_of((rules(Scope.IP, requests_per_day=1),))
    policy = Policy(enabled=True, models={"small": ModelPolicy("v1")})
    shot = snapshot(tier=tier, cache=policy)
    caching = Caching(MemoryAnswers(2**20, clock=lambda: 0.0), Flights())
    bench = gateway(Finding(), snapshot=shot, caching=caching)
    identified = await pipeline.identify(bench, head, pipeline.request_id_of(bench, head))
    assert isinstance(identified, Identified)
    pipeline.greet(identified)
    pipeline.dialect_of(Head("GET", "/v1/models", "", asked, True))
    await pipeline.admit(bench, identified, body())
    elsewhere = {":method", ":path", "traceparent"}
    assert asked.names == set(READ) - elsewhere
