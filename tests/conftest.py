"""What every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import httpx
import httpx2
import pytest
from hypothesis import HealthCheck, settings

from tests.written import Write

DATA_VARIABLE = "LLM_EDGE_TEST_DATA"

# No test fails for the time it took: a busy machine would decide it.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _certificates_read_once() -> Iterator[None]:
    """Share TLS contexts among HTTP clients.

    Each client makes one, for which it reads every root certificate, and each `httpx.get` makes a
    client: 50 ms of CPU for a call of one.
    """
    with pytest.MonkeyPatch.context() as patch:
        for library in (httpx, httpx2):
            name = f"{library.__name__}._transports.default.create_ssl_context"
            patch.setattr(name, cache(library.create_ssl_context))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the directory of traces, prompts and bad input; skip where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    found = Path(os.environ.get(DATA_VARIABLE, beside))
    if not found.is_dir():
        pytest.skip(f"no test data: set {DATA_VARIABLE} to a directory that has it")
    return found


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return how to write a configuration file of the given text."""

    def written(text: str, name: str = "llm-edge.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return written
