"""The pieces all translations share."""

from typing import Any

import pytest

from extproc.dialects.translation import Losses, arguments_of, count_of, object_of, objects, text_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a":1}', {"a": 1}),
        ("", {}),
        (" \n", {}),
        ("[]", None),
        ('{"a":', None),
        ("[" * 99999, None),
        (None, None),
        ({"a": 1}, None),
    ],
    ids=["an object", "nothing", "white space", "a list", "cut", "too deep", "null", "no text"],
)
def test_arguments_of_a_call(text: Any, expected: Any) -> None:
    """Arguments are an object in a string; nothing is an empty one."""
    assert arguments_of(text) == expected


def test_wrong_types_are_nothing() -> None:
    """Readers of provider and caller JSON never raise."""
    assert objects([{}, 1, None, {"a": 1}]) == [{}, {"a": 1}]
    assert (objects("x"), object_of([]), text_of(1), count_of("1")) == ([], {}, "", 0)
    assert (count_of(True), count_of(-1), count_of(7)) == (0, 0, 7)


def test_losses_are_sorted_and_named_once() -> None:
    """The rest of an object is what is set and not known."""
    losses = Losses()
    losses.rest({"b": 1, "a": None, "known": 2}, known=("known",), prefix="x.")
    losses.add("a")
    losses.add("a")
    assert losses.names() == ("a", "x.b")
