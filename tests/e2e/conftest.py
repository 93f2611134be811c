"""One running stack for all end-to-end tests, and stacks of their own for the ones that break it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .stack import Stack, start_stack


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


@pytest.fixture(scope="session")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Start the stack once for the session."""
    running = start_stack(tmp_path_factory.mktemp("stack"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def shared_key(shared_stack: Stack) -> str:
    """Return a key without limits of models or endpoints."""
    return shared_stack.create_key("shared")


@pytest.fixture
def stack(shared_stack: Stack) -> Stack:
    """Return the shared stack with empty truth logs and no sticky behaviour."""
    shared_stack.clear_sims()
    return shared_stack


@pytest.fixture
def key(stack: Stack, shared_key: str) -> str:
    """Return the shared key."""
    return shared_key


@pytest.fixture
def fresh_stack(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """Start stacks that a test may change or kill; all are stopped after it."""
    running: list[Stack] = []

    def start(**words: Any) -> Stack:
        directory = tmp_path / str(len(running))
        directory.mkdir()
        running.append(start_stack(directory, **words))
        return running[-1]

    yield start
    for one in running:
        one.stop()
