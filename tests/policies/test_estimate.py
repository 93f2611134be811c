"""Estimates: priors, learning, and what junk cannot do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.domain import Usage, UsageSource
from extproc.policies.estimate import MAX_MODELS, Estimator

sizes = st.integers(-(10**20), 10**20)
tokens = st.integers(-(10**3), 10**16)


def used(tokens_in: int, tokens_out: int, source: UsageSource = UsageSource.PROVIDER) -> Usage:
    return Usage(tokens_in, tokens_out, 0, source)


lessons = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]), st.booleans(), sizes, sizes, st.builds(used, tokens, tokens)
    ),
    max_size=20,
)


def taught(*rows: tuple[str, bool, int, int, Usage]) -> Estimator:
    estimator = Estimator()
    for row in rows:
        estimator.learn(*row)
    return estimator


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [
        pytest.param([], 400, 100, id="four bytes a token before anything is learned"),
        pytest.param([], 401, 101, id="a part of a token is a token"),
        pytest.param([], 0, 0, id="no bytes, no tokens"),
        pytest.param([], -5, 0, id="a negative size is no size"),
        pytest.param(
            [("m", True, 200, 9, used(100, 9))], 400, 200, id="the first replaces the prior"
        ),
        pytest.param(
            [("m", True, 200, 9, used(100, 9)), ("m", False, 600, 9, used(100, 9))],
            400,
            100,
            id="the second makes a mean: 2 and 6 bytes a token",
        ),
        pytest.param([("other", True, 200, 9, used(100, 9))], 400, 100, id="models are apart"),
        pytest.param([("m", True, 200, 9, used(0, 9))], 400, 100, id="zero tokens teach nothing"),
        pytest.param([("m", True, 200, 9, used(-3, 9))], 400, 100, id="nor negative ones"),
        pytest.param([("m", True, 200, 9, used(10**15, 9))], 400, 100, id="nor 10**15"),
        pytest.param([("m", True, 0, 9, used(100, 9))], 400, 100, id="nor an empty prompt"),
        pytest.param(
            [("m", True, 200, 9, used(100, 9, UsageSource.ESTIMATED))],
            400,
            100,
            id="nor an estimate",
        ),
        pytest.param([("m", True, 1, 9, used(10**9, 9))], 100, 400, id="the ratio ends at 0.25"),
        pytest.param([("m", True, 10**9, 9, used(1, 9))], 4096, 1, id="and at 4,096"),
    ],
)
def test_input(rows: list[tuple[str, bool, int, int, Usage]], size: int, expected: int) -> None:
    """A prompt's estimate follows what was learned of its model."""
    assert taught(*rows).estimate_input("m", size) == expected


@pytest.mark.parametrize(
    ("rows", "stream", "size", "events", "expected"),
    [
        pytest.param([], True, 9_999, 42, 42, id="an unknown stream: its content events"),
        pytest.param([], True, 512, 0, 2, id="an unknown stream without events: 256 bytes each"),
        pytest.param([], False, 400, 42, 100, id="an unknown plain answer: four bytes a token"),
        pytest.param([], True, 0, 0, 0, id="nothing came, nothing was used"),
        pytest.param(
            [("m", True, 9, 1_000, used(9, 10))], True, 500, 42, 5, id="a known stream: its bytes"
        ),
        pytest.param(
            [("m", True, 9, 1_000, used(9, 10))], False, 400, 0, 100, id="plain answers are apart"
        ),
        pytest.param(
            [("m", False, 9, 1_000, used(9, 500))], True, 9_999, 42, 42, id="and streams from them"
        ),
        pytest.param(
            [("m", False, 9, 1_000, used(9, 0))],
            False,
            400,
            0,
            100,
            id="embeddings teach no output",
        ),
    ],
)
def test_output(
    rows: list[tuple[str, bool, int, int, Usage]],
    stream: bool,
    size: int,
    events: int,
    expected: int,
) -> None:
    """An answer's estimate follows its form."""
    assert taught(*rows).estimate_output("m", stream, size, events) == expected


@given(lessons, sizes, sizes, st.booleans(), st.integers(-5, 10**9))
def test_monotone_and_not_negative(
    rows: list[tuple[str, bool, int, int, Usage]], one: int, two: int, stream: bool, events: int
) -> None:
    """More bytes are never fewer tokens, whatever was taught."""
    estimator = taught(*rows)
    small, large = sorted((one, two))
    for model in ("a", "b", "c"):
        low = estimator.estimate_input(model, small)
        assert 0 <= low <= estimator.estimate_input(model, large)
        low = estimator.estimate_output(model, stream, small, events)
        assert 0 <= low <= estimator.estimate_output(model, stream, large, events)


@given(lessons)
def test_error_is_a_number(rows: list[tuple[str, bool, int, int, Usage]]) -> None:
    """The error stays within its bounds under junk."""
    estimator = taught(*rows)
    for kind in ("prompt", "plain", "stream"):
        error = estimator.error_ratio(kind)
        assert error is None or 0 <= error <= 100


def test_error_is_taken_before_learning() -> None:
    """The first answer is judged by the prior, the second by the first."""
    estimator = Estimator()
    assert estimator.error_ratio("prompt") is None
    estimator.learn("m", False, 400, 400, used(200, 100))
    assert estimator.error_ratio("prompt") == pytest.approx(0.5)
    assert estimator.error_ratio("plain") == pytest.approx(0.0)
    estimator.learn("m", False, 400, 400, used(200, 100))
    assert estimator.error_ratio("prompt") == pytest.approx(0.25)


def test_follows_a_model_that_changes() -> None:
    """A hundred answers of a new kind outweigh a thousand old ones."""
    estimator = taught(*[("m", False, 200, 9, used(100, 9))] * 1_000)
    assert estimator.estimate_input("m", 800) == 400
    for _ in range(100):
        estimator.learn("m", False, 800, 9, used(100, 9))
    assert estimator.estimate_input("m", 800) == pytest.approx(100, abs=1)


def test_models_are_bounded() -> None:
    """Ten thousand names keep a thousand; the ones in use stay."""
    estimator = taught(("kept", False, 200, 9, used(100, 9)), ("lost", False, 200, 9, used(100, 9)))
    for number in range(10_000):
        estimator.learn(f"m{number}", False, 200, 9, used(100, 9))
        assert estimator.estimate_input("kept", 400) == 200
    assert len(estimator) == MAX_MODELS
    assert estimator.estimate_input("lost", 400) == 100
    assert repr(estimator) == "Estimator(models=1000)"


def test_asking_remembers_nothing() -> None:
    """An estimate for a stranger takes no memory."""
    estimator = Estimator()
    for number in range(2_000):
        estimator.estimate_input(f"m{number}", 4)
        estimator.estimate_output(f"m{number}", True, 4, 1)
    assert len(estimator) == 0
