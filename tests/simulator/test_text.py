"""Tokens are counted by a rule that can be redone by hand."""

import json

import pytest

from extproc.simulator import text


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        pytest.param("", 1, id="an empty text costs one token"),
        pytest.param("abcd", 1, id="four bytes are one token"),
        pytest.param("abcde", 2, id="a fifth byte starts another"),
        pytest.param("éé", 1, id="bytes count, not characters: four"),
        pytest.param("ééé", 2, id="bytes count, not characters: six"),
    ],
)
def test_count(content: str, tokens: int) -> None:
    """A text costs a token for every four UTF-8 bytes begun."""
    assert text.count(content) == tokens


@pytest.mark.parametrize(
    ("wanted", "limit", "expected"),
    [
        pytest.param(None, None, (16, False), id="sixteen by default"),
        pytest.param(5, None, (5, False), id="as many as the behaviour says"),
        pytest.param(5, 5, (5, False), id="a limit just reached cuts nothing"),
        pytest.param(5, 3, (3, True), id="a lower limit cuts"),
        pytest.param(0, 3, (0, False), id="none at all"),
    ],
)
def test_output_tokens(wanted: int | None, limit: int | None, expected: tuple[int, bool]) -> None:
    """The caller's limit wins over what the simulator would send."""
    assert text.output_tokens(wanted, limit) == expected


def test_words_past_the_prebuilt_ones_go_on_the_same_way() -> None:
    """Every way to ask for the same words gives the same words."""
    count = text.PREBUILT_WORDS + 3
    one_by_one = b"".join(text.words(index, index + 1) for index in range(count))
    assert one_by_one == text.answer(count)
    assert json.loads(b'"%b"' % one_by_one).split()[-1] == f"tok{count - 1}"
