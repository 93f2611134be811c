"""Strict models: which targets are left, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.domain import Plan
from extproc.errors import Denied
from extproc.policies.strictness import enforce
from tests.calls import target

NATIVE = target("a")
OTHER = target("claude", dialect="anthropic")


@pytest.mark.parametrize(
    ("caller", "attempts", "lost", "left"),
    [
        pytest.param("openai", (OTHER, NATIVE), ("seed",), (NATIVE,), id="one that would lose"),
        pytest.param("anthropic", (OTHER, NATIVE), ("top_k",), (OTHER,), id="the other way round"),
        pytest.param("openai", (OTHER,), (), (OTHER,), id="nothing is lost"),
        pytest.param("openai", (OTHER, NATIVE), (), (OTHER, NATIVE), id="nothing lost, in order"),
        pytest.param("openai", (NATIVE, NATIVE), None, (NATIVE, NATIVE), id="nothing to translate"),
    ],
)
def test_targets_that_get_the_whole_call_are_left(
    caller: Any, attempts: Any, lost: Any, left: Any
) -> None:
    """A plan keeps its order, and what needs no translation is not translated to find out."""

    def lossy() -> tuple[str, ...]:
        assert lost is not None
        return lost

    assert enforce(Plan(attempts, 1), caller, lossy).attempts == left


def test_where_none_is_left_the_call_is_refused() -> None:
    """422, naming what would be lost."""
    with pytest.raises(Denied, match="logprobs, seed") as caught:
        enforce(Plan((OTHER,), 1), "openai", lambda: ("logprobs", "seed"))
    assert (caught.value.status, caught.value.param) == (422, "logprobs")
