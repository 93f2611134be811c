"""One running stack a transport for all end-to-end tests, and others for those that break them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic
from openai import OpenAI

from .stack import TRANSPORTS, Stack, start_stack


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Append Envoy's and the processor's logs to a failure."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.when == "call" and report.failed:
        for name in ("stack", "own_stack"):
            found = getattr(item, "funcargs", {}).get(name)
            if isinstance(found, Stack):
                report.sections.append(("logs", found.logs()))


@dataclass
class Shared:
    """A running stack for whoever changes nothing that lasts, and a key without limits."""

    stack: Stack
    key: str


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """Name the transport between Envoy and the processor: every test runs on each."""
    return str(request.param)


@pytest.fixture(scope="session")
def shared_stacks(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], Shared]]:
    """Start one stack a transport when it is first asked for; they run until the session ends."""
    running: dict[str, Shared] = {}

    def of(transport: str) -> Shared:
        if transport not in running:
            started = start_stack(tmp_path_factory.mktemp("stack"), transport=transport)
            running[transport] = Shared(started, "")
            running[transport].key = started.create_key("shared")
        return running[transport]

    yield of
    for shared in running.values():
        shared.stack.stop()


@pytest.fixture
def stack(shared_stacks: Callable[[str], Shared], transport: str) -> Stack:
    """Return the shared stack with empty truth logs and no sticky behaviour."""
    shared = shared_stacks(transport).stack
    shared.clear_sims()
    return shared


@pytest.fixture
def key(stack: Stack, shared_stacks: Callable[[str], Shared], transport: str) -> str:
    """Return the shared key."""
    return shared_stacks(transport).key


@pytest.fixture
def fresh_stack(tmp_path: Path, transport: str) -> Iterator[Callable[..., Stack]]:
    """Start stacks that a test may change or kill; all are stopped after it."""
    running: list[Stack] = []

    def start(**words: Any) -> Stack:
        directory = tmp_path / str(len(running))
        directory.mkdir()
        running.append(start_stack(directory, transport=transport, **words))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture
def chat(stack: Stack, key: str) -> Iterator[OpenAI]:
    """Return OpenAI's client; it will ask for a model at the Anthropic provider."""
    with OpenAI(base_url=f"{stack.base}/v1", api_key=key, max_retries=0) as made:
        yield made


@pytest.fixture
def claude(stack: Stack, key: str) -> Iterator[Anthropic]:
    """Return Anthropic's client; it will ask for a model at an OpenAI provider."""
    with Anthropic(base_url=stack.base, api_key=key, max_retries=0) as made:
        yield made
