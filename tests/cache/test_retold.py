"""What entries became is kept as long as the entry, and within its bytes."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from extproc.answers import Entry
from extproc.cache.retold import Retold

ENTRY = Entry("chat", "acme", "small", "p", "m", 0, 1, "sse", (1, 1, 0), b"data: [DONE]\n\n")


class Maker:
    """Makes bodies and counts them."""

    def __init__(self, size: int = 10) -> None:
        self.size = size
        self.made = 0

    def __call__(self) -> bytes:
        self.made += 1
        return b"x" * self.size


def entry() -> Entry:
    """Return an entry of its own that equals all others."""
    return replace(ENTRY)


def test_it_is_made_once_for_an_entry_and_a_way() -> None:
    """And anew for another way, and for another entry that only looks alike."""
    retold, make = Retold(), Maker()
    one, other = entry(), entry()
    for _ in range(3):
        assert retold.told(one, "document", make) == b"x" * 10
    assert make.made == 1
    retold.told(one, "stream", make)
    retold.told(other, "document", make)
    assert (make.made, len(retold)) == (3, 3)


def test_an_entry_that_came_later_is_another_one() -> None:
    """Also where the one before it is gone, whose address it could have."""
    retold, make = Retold(), Maker()
    for _ in range(5):
        retold.told(entry(), "document", make)
    assert make.made == 5


def test_the_least_recently_told_leaves_first() -> None:
    """Within the bound; what is larger than it is told and not kept."""
    make, weight = Maker(), ENTRY.weight + 10
    retold = Retold(max_bytes=2 * weight)
    first, second, third = entry(), entry(), entry()
    for one in (first, second, first, third):
        retold.told(one, "document", make)
    assert (make.made, len(retold)) == (3, 2)
    retold.told(first, "document", make)
    assert make.made == 3
    retold.told(second, "document", make)
    assert make.made == 4
    large = Maker(2 * weight)
    assert len(retold.told(third, "stream", large)) == large.size
    assert repr(retold) == f"Retold(2 answers, {2 * weight} of {2 * weight} bytes)"


def test_what_cannot_be_made_is_not_kept() -> None:
    """It is tried again."""
    retold, one = Retold(), entry()

    def fail() -> bytes:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        retold.told(one, "document", fail)
    assert retold.told(one, "document", Maker()) == b"x" * 10
