"""Which commit a tree is compared with, on what configuration, and what is said of the figures."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import against
from benchmarks.against import BadRef, Compared, Figure
from benchmarks.load import LoadError, Sample, Spread
from benchmarks.measure import Loaded
from benchmarks.processes import StartError

ROOT = Path(__file__).resolve().parents[2]
NOBODY = {"user.name": "nobody", "user.email": "nobody@example.invalid", "commit.gpgsign": "false"}


def git(root: Path, *words: str) -> str:
    settings = [word for name, value in NOBODY.items() for word in ("-c", f"{name}={value}")]
    argv = ["git", *settings, "-C", str(root), *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository of two commits, `old` and `new`."""
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "--quiet")
    for name in ("old", "new"):
        (root / "file").write_text(name)
        git(root, "add", "file")
        git(root, "commit", "--quiet", "--message", name)
        git(root, "tag", name)
    return root


def test_a_commit_is_had_by_any_of_its_names(repository: Path) -> None:
    """A tag, an ancestor, an abbreviation: one commit."""
    old = git(repository, "rev-parse", "old")
    assert {against.resolve(ref, repository) for ref in ("old", "HEAD~1", old[:9], old)} == {old}


@pytest.mark.parametrize("ref", ["older", "HEAD~2", "--all", "", "old:file"])
def test_what_is_no_commit_is_said_to_be_none(repository: Path, ref: str) -> None:
    """Whatever git would otherwise make of it."""
    with pytest.raises(BadRef, match="no commit of this repository"):
        against.resolve(ref, repository)


def test_a_shallow_clone_is_said_to_be_shallow(repository: Path, tmp_path: Path) -> None:
    """And how to have the rest."""
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{repository}", str(clone))
    assert against.resolve("HEAD", clone) == git(repository, "rev-parse", "new")
    with pytest.raises(BadRef, match="HEAD~1 is not in this clone, which is shallow: git fetch"):
        against.resolve("HEAD~1", clone)


def test_a_directory_without_git_is_said_to_be_one(tmp_path: Path) -> None:
    """An unpacked release has no earlier commits."""
    with pytest.raises(BadRef, match="is no git repository"):
        against.resolve("HEAD", tmp_path)


@pytest.mark.parametrize("end", [None, KeyboardInterrupt, SystemExit, StartError("no")])
def test_the_worktree_is_removed_however_it_ends(
    repository: Path, tmp_path: Path, end: Any
) -> None:
    """With what was written into it; the repository knows nothing of it any more."""
    commit, path = against.resolve("old", repository), tmp_path / "tree"

    def visit() -> None:
        with against.checkout(commit, repository, path) as tree:
            assert (tree / "file").read_text() == "old"
            (tree / "compiled").write_text("left behind")
            if end is not None:
                raise end

    if end is None:
        visit()
    else:
        with pytest.raises(end if isinstance(end, type) else type(end)):
            visit()
    assert not path.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert (repository / "file").read_text() == "new"


def test_a_tree_that_cannot_be_checked_out_leaves_nothing(repository: Path, tmp_path: Path) -> None:
    """Git's own words are passed on."""
    path = tmp_path / "tree"
    with pytest.raises(BadRef, match="cannot check"), against.checkout("0" * 40, repository, path):
        pytest.fail("there is nothing to be in")
    assert not path.exists()


def test_a_configuration_is_cut_down_to_what_a_tree_knows() -> None:
    """Sections and fields inside them; names with other meanings in the sources stay."""
    wanted = {
        "server": {"port": 1, "shape": "round"},
        "limits": {"global": {"burst": 5}},
        "models": {"m": {"targets": [{"provider": "p", "model": "x", "colour": "red"}]}},
        "weather": {"rain": True},
    }
    known, unknown = against.accepted_by(ROOT, wanted)
    assert known == {
        "server": {"port": 1},
        "limits": {"global": {"burst": 5}},
        "models": {"m": {"targets": [{"provider": "p", "model": "x"}]}},
    }
    assert sorted(unknown) == ["models.m.targets.0.colour", "server.shape", "weather"]


def test_a_tree_without_a_schema_cannot_be_compared(tmp_path: Path) -> None:
    """It is not taken for one that knows nothing."""
    (tmp_path / "extproc").mkdir()
    with pytest.raises(StartError, match="no such configuration"):
        against.accepted_by(tmp_path, {})


@pytest.mark.parametrize(
    ("count", "left_off"),
    [(6, 0), (8, 0), (9, 1), (12, 2), (15, 3), (40, 13)],
)
def test_noise_is_the_middle_of_the_spread(count: int, left_off: int) -> None:
    """By the sign test's table; outliers at both ends do not count for more than one each."""
    ratios = [1 + 0.01 * at for at in range(count)]
    ratios[0], ratios[-1] = -1000.0, 1000.0
    found = against.noise(ratios)
    ends = ratios[left_off], ratios[-1 - left_off]
    assert (found.low, found.high) == ends
    assert found.median == pytest.approx((ratios[(count - 1) // 2] + ratios[count // 2]) / 2)


def compared(
    low: float, median: float, high: float, *, more_is_better: bool = False, speed: bool = True
) -> Compared:
    side = Spread(100.0, 90.0, 110.0)
    figure = Figure("the figure", lambda _: 0.0, 0, more_is_better, speed)
    return Compared(figure, side, side, Spread(median, low, high))


@pytest.mark.parametrize(
    ("ratio", "more_is_better", "state"),
    [
        pytest.param((1.01, 1.02, 1.03), False, "WORSE", id="costs more in every likely case"),
        pytest.param((0.97, 0.98, 0.99), True, "WORSE", id="carries less in every likely case"),
        pytest.param((0.99, 1.01, 1.03), False, "not worse", id="may cost less"),
        pytest.param((0.97, 0.99, 1.01), True, "not worse", id="may carry more"),
        pytest.param((0.70, 0.80, 0.90), False, "not worse", id="costs less"),
        pytest.param((1.20, 1.30, 1.40), True, "not worse", id="carries more"),
        pytest.param((0.80, 1.00, 1.20), False, "CANNOT TELL", id="may cost a fifth more"),
        pytest.param((0.80, 1.00, 1.20), True, "CANNOT TELL", id="may carry a fifth less"),
        pytest.param((0.50, 0.70, 1.05), False, "not worse", id="noise that hides a gain only"),
    ],
)
def test_a_figure_is_judged_by_its_noise(
    ratio: tuple[float, float, float], more_is_better: bool, state: str
) -> None:
    """Worse, not worse, or too noisy to say."""
    assert compared(*ratio, more_is_better=more_is_better).state == state


GOOD, NOISY, BAD = (0.99, 1.00, 1.01), (0.80, 1.00, 1.20), (1.04, 1.05, 1.06)
UNCLEAR = "CANNOT TELL if {} than 1111111: noise could hide the figure by 20%"


@pytest.mark.parametrize(
    ("speeds", "costs", "good", "said"),
    [
        pytest.param([GOOD], [GOOD], True, ["not slower", "not dearer"], id="neither"),
        pytest.param([GOOD], [BAD], True, ["not slower", "DEARER"], id="dearer alone"),
        pytest.param([GOOD, NOISY], [GOOD], False, [UNCLEAR, "not dearer"], id="noise"),
        pytest.param([NOISY, BAD], [NOISY], False, ["SLOWER", UNCLEAR], id="slower all the same"),
    ],
)
def test_the_verdicts_name_what_is_worse(
    speeds: list[Any], costs: list[Any], good: bool, said: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """What cannot be told is no pass, and what is worse goes before it; cost is only said."""
    found = [compared(*one) for one in speeds] + [compared(*one, speed=False) for one in costs]
    assert against.report(found, "2222222", "1111111") is good
    *_, speed, cost = capsys.readouterr().out.splitlines()
    for line, wanted, word in ((speed, said[0], "slower"), (cost, said[1], "dearer")):
        assert line.startswith(wanted.format(word))
        if wanted == word.upper():
            assert line == f"{wanted} than 1111111 beyond noise: the figure by 5.0%"


def one_round(per_second: float, *, errors: int = 0) -> Loaded:
    many = Sample(int(per_second), 1.0, 1.0, 1.0, errors, "status: 3 (429: 3)" if errors else "")
    return Loaded(many, Sample(100, 1.0, 2.0, 2.0, 0), 300.0, 150.0, 1.0, 1.0)


def test_ratios_are_of_one_round() -> None:
    """A machine that is half as fast for a while does not make noise."""
    there = [one_round(rate) for rate in (1000, 500, 1000, 500, 1000, 500)]
    here = [one_round(rate) for rate in (900, 450, 900, 450, 900, 450)]
    rate, latency, *_ = against.compare(here, there)
    assert (rate.ratio.low, rate.ratio.high, rate.state) == (0.9, 0.9, "WORSE")
    assert (rate.there.low, rate.there.high) == (500, 1000)
    assert (latency.ratio.median, latency.state) == (1.0, "not worse")


def test_a_round_with_refusals_is_no_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whose and why is said."""
    rung: Any = SimpleNamespace(url="", headers={}, model="m")
    monkeypatch.setattr(against.load, "run", lambda *_, **__: None)
    monkeypatch.setattr(against.measure, "loaded", lambda *_: one_round(1000.0, errors=3))
    with pytest.raises(LoadError, match=r"REF: 3 requests failed: status: 3 \(429: 3\)"):
        against.rounds({"REF": rung}, 6, 1.0, tmp_path)


def test_an_unknown_commit_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Said before anything is started."""
    assert against.main(["no-such-commit"]) == 2
    assert capsys.readouterr().err.startswith("benchmarks.against: no-such-commit is ")
