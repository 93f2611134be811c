"""The cost of telling kept answers again can be measured."""

import pytest

from benchmarks import retelling


def test_every_figure_is_of_work_that_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every endpoint both ways, and embeddings in both encodings."""
    monkeypatch.setattr(retelling, "REPETITIONS", 1)
    rows = list(retelling.rows())
    assert len({row.told for row in rows}) == 7 * len(retelling.REQUESTS) + 2 * 4
    assert all(row.size > 0 and 0 < row.cost_us < 1e6 for row in rows)
