"""One gateway for the tests of a module, with its scripts put back before each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from .harness import Gateway, running
from .scripted import Processor, http_answer

NAMES = ("a", "b", "c")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """Start Envoy with providers a, b and c, one that refuses and one that does not resolve."""
    providers = {
        "dead": {"dialect": "openai", "endpoint": "http://127.0.0.1:1/v1"},
        "nowhere": {"dialect": "openai", "endpoint": "http://provider.invalid/v1"},
    }
    directory = tmp_path_factory.mktemp("gateway")
    async with running(directory, names=NAMES, providers=providers) as gateway:
        yield gateway


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(shared: Gateway) -> Gateway:
    """Return the module's gateway as if it had just been started."""
    fresh = Processor()
    for name in ("plans", "denies", "timeout_ms", "first_byte_ms", "heads", "bodies", "entries"):
        setattr(shared.processor, name, getattr(fresh, name))
    for provider in shared.providers.values():
        provider.seen, provider.answers = [], []
        provider.answer = http_answer(200, b"{}")
    return shared
