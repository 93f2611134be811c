"""The cost of a translated chunk can be measured in both directions."""

import pytest

from benchmarks import translation


@pytest.mark.parametrize("direction", sorted(translation.DIRECTIONS))
def test_a_chunk_costs_something(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole answer is translated, so the figure is of work that was done."""
    monkeypatch.setattr(translation, "CHUNKS", 20)
    assert 0 < translation.chunk_us(direction) < 10_000
