"""`python -m benchmarks.against REF`: the request path of this tree against an earlier commit's.

REF is checked out into a temporary worktree. The product of both trees runs at once, each with its
own Envoy and processor, and is loaded in turn with plain calls that pass through. Both run on this
environment's packages and are interpreted, so what differs is the sources alone. A ratio is of two
measurements of one round, seconds apart, because a busy machine changes what both measure. Noise is
the spread of these ratios between rounds: the middle of it that has the median with 95%.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

from benchmarks import load, measure, rungs
from benchmarks.load import Spread
from benchmarks.measure import CONNECTIONS, PROMPT_BYTES, Loaded, turned
from benchmarks.processes import StartError
from benchmarks.product import MODEL, ROOT

BENCH = ROOT / ".bench"
ROUNDS = 15  # many short ones, because noise falls with their number
MIN_ROUNDS = 6  # with fewer no spread has the median with 95%
SECONDS = 1.0  # at many connections, and again at one: with 15 rounds a minute for both trees
MISSED = 0.025  # how often the median may be below what is taken as spread, and as often above
HIDDEN = 0.10  # where noise could hide a loss above this, nothing was shown
HERE, THERE = "this tree", "REF"
RUNG = 8  # the product from its sources
FAILED = 1
BAD_USAGE = 2
COMMAND_SECONDS = 60
# What an older tree has no field for is taken out. What it refuses for another reason it says.
ACCEPTED = """
import json, os, sys
from pydantic import ValidationError
from extproc import schema
from extproc.schema import Config

if not os.path.realpath(schema.__file__).startswith(os.getcwd() + os.sep):
    sys.exit("its extproc has no schema.py")  # what was imported is the installed one
wanted, unknown = json.load(sys.stdin), []
try:
    Config.model_validate(wanted)
except ValidationError as refused:
    unknown = [one["loc"] for one in refused.errors() if one["type"] == "extra_forbidden"]
for *outer, name in unknown:
    inner = wanted
    for step in outer:
        inner = inner[step]
    del inner[name]
print(json.dumps([wanted, [".".join(map(str, path)) for path in unknown]]))
"""


class BadRef(Exception):
    """The commit to compare with cannot be had; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that is compared. `more_is_better` of requests per second alone.

    `speed` is what a caller sees; the rest is what it costs.
    """

    name: str
    of: Callable[[Loaded], float]
    digits: int
    more_is_better: bool = False
    speed: bool = False


FIGURES = (
    Figure(f"req/s, {CONNECTIONS} connections", lambda one: one.many.per_second, 0, True, True),
    Figure("p50 in ms, 1 connection", lambda one: one.one.p50_ms, 3, speed=True),
    Figure("processor CPU, us/request", lambda one: one.processor_us, 1),
    Figure("Envoy CPU, us/request", lambda one: one.envoy_us, 1),
)


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of both trees. `ratio` is this tree's over REF's: the rounds' median and noise."""

    figure: Figure
    here: Spread
    there: Spread
    ratio: Spread

    @property
    def losses(self) -> Spread:
        """Return by which share this tree is worse; negative where it is better."""
        worse = [1 - one if self.figure.more_is_better else one - 1 for one in self._ratios]
        return Spread(worse[1], min(worse), max(worse))

    @property
    def state(self) -> str:
        """Say whether it is worse beyond noise, or that noise is too much to tell."""
        if self.losses.low > 0:
            return "WORSE"
        return "not worse" if self.losses.high <= HIDDEN else "CANNOT TELL"

    @property
    def _ratios(self) -> tuple[float, float, float]:
        return self.ratio.low, self.ratio.median, self.ratio.high


def noise(ratios: Sequence[float]) -> Spread:
    """Return the median of at least `MIN_ROUNDS` ratios within the spread that has it with 95%.

    By order alone (the sign test's interval), because rounds on a busy machine follow no bell.
    """
    ranked, count = sorted(ratios), len(ratios)
    outside = -1  # how many to leave off at each end
    while sum(comb(count, below) for below in range(outside + 2)) / 2**count <= MISSED:
        outside += 1
    assert outside >= 0, f"{count} rounds have no such spread"
    return Spread(statistics.median(ranked), ranked[outside], ranked[-1 - outside])


def compare(here: Sequence[Loaded], there: Sequence[Loaded]) -> list[Compared]:
    """Compare the rounds of both trees, whose n-th entries were measured in the same round."""
    made = []
    for figure in FIGURES:
        ours, theirs = [figure.of(one) for one in here], [figure.of(one) for one in there]
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        made.append(Compared(figure, _whole(ours), _whole(theirs), noise(ratios)))
    return made


def _whole(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def report(compared: Sequence[Compared], here: str, there: str) -> bool:
    """Print the table and the verdicts on speed and cost; say whether this tree is not slower."""
    print(f"\n{'':28}{there:>26}{here:>26}   ratio")
    for one in compared:
        sides = "".join(f"{_told(side, one.figure.digits):>26}" for side in (one.there, one.here))
        ratio = f"{one.ratio.median:.3f} ({one.ratio.low:.3f} to {one.ratio.high:.3f})"
        print(f"{one.figure.name:28}{sides}   {ratio}  {one.state}")
    print()
    slower = _verdict([one for one in compared if one.figure.speed], "slower", there)
    _verdict([one for one in compared if not one.figure.speed], "dearer", there)
    return not slower


def _verdict(compared: Sequence[Compared], word: str, there: str) -> bool:
    """Print whether some figures are worse; say whether one is, or may be for all that is known."""
    worse = [one for one in compared if one.state == "WORSE"]
    unclear = [one for one in compared if one.state == "CANNOT TELL"]
    if worse:
        what = ", ".join(f"{one.figure.name} by {one.losses.median:.1%}" for one in worse)
        print(f"{word.upper()} than {there} beyond noise: {what}")
    elif unclear:
        what = ", ".join(f"{one.figure.name} by {one.losses.high:.0%}" for one in unclear)
        print(f"CANNOT TELL if {word} than {there}: noise could hide {what}; give it more --rounds")
    else:
        print(f"not {word} than {there} beyond noise")
    return bool(worse or unclear)


def _told(side: Spread, digits: int) -> str:
    return f"{side.median:,.{digits}f} ({side.low:,.{digits}f}-{side.high:,.{digits}f})"


def resolve(ref: str, root: Path) -> str:
    """Return the commit that `ref` names. Raises `BadRef` where this clone does not have it."""
    found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if found.returncode == 0:
        return found.stdout.strip()
    shallow = _git(root, "rev-parse", "--is-shallow-repository")
    if shallow.returncode:
        raise BadRef(f"{root} is no git repository, so there is no {ref} to compare with")
    if shallow.stdout.strip() == "true":
        raise BadRef(f"{ref} is not in this clone, which is shallow: git fetch --unshallow")
    raise BadRef(f"{ref} is no commit of this repository; git fetch, or name another")


@contextlib.contextmanager
def checkout(commit: str, root: Path, path: Path) -> Iterator[Path]:
    """Check `commit` out at `path` in a worktree of its own; remove it however this ends."""
    made = _git(root, "worktree", "add", "--detach", "--quiet", str(path), commit)
    try:
        if made.returncode:
            raise BadRef(f"cannot check {commit} out: {made.stderr.strip()}")
        yield path
    finally:
        _git(root, "worktree", "remove", "--force", str(path))
        shutil.rmtree(path, ignore_errors=True)
        _git(root, "worktree", "prune")


def accepted_by(tree: Path, wanted: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the part of a configuration that a tree knows, and the paths of the rest.

    Raises `StartError` for a tree without a configuration of this kind.
    """
    done = subprocess.run(
        [sys.executable, "-c", ACCEPTED],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS,
    )
    if done.returncode:
        raise StartError(f"REF has no such configuration: {done.stderr.strip()[-500:]}")
    known, unknown = json.loads(done.stdout)
    return known, unknown


def _for(tree: Path) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        known, unknown = accepted_by(tree, config)
        if unknown:
            print(f"REF does not have, and runs without: {', '.join(unknown)}", flush=True)
        config.clear()
        config.update(known)

    return change


def rounds(
    sides: Mapping[str, rungs.Rung], count: int, seconds: float, body: Path
) -> dict[str, list[Loaded]]:
    """Measure both trees once a round, each first in every other one. Raises `LoadError`."""
    for rung in sides.values():
        load.run(rung.url, body, rung.headers, connections=CONNECTIONS, seconds=1)  # warm up
    found: dict[str, list[Loaded]] = {name: [] for name in sides}
    for turn in range(count):
        for at in turned(range(len(sides)), turn):
            name = list(sides)[at]
            one = measure.loaded(sides[name], body, seconds)
            if errors := one.many.errors + one.one.errors:
                # What refuses is quick: no figure.
                told = one.many.failures or one.one.failures
                raise load.LoadError(f"{name}: {errors} requests failed: {told}")
            found[name].append(one)
        rates = ", ".join(
            f"{name} {seen[-1].many.per_second:,.0f}/s" for name, seen in found.items()
        )
        print(f"round {turn + 1} of {count}: {rates}", flush=True)
    return found


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__)
    options.add_argument("ref", metavar="REF", help="the commit to compare with")
    options.add_argument("--rounds", type=int, default=ROUNDS, help=f"{MIN_ROUNDS} or more")
    options.add_argument("--seconds", type=float, default=SECONDS, help="one measurement's length")
    chosen = options.parse_args(argv)
    if chosen.rounds < MIN_ROUNDS:
        options.error(f"--rounds: at least {MIN_ROUNDS}")
    return chosen


def main(argv: Sequence[str]) -> int:
    """Compare; 0 not slower, 1 slower, too noisy to tell or not measured, 2 no such commit."""
    chosen = parse(argv)
    try:
        commit = resolve(chosen.ref, ROOT)
        load.find_wrk()
        with contextlib.ExitStack() as stack:
            found = _measured(stack, chosen, commit)
    except BadRef as problem:
        print(f"benchmarks.against: {problem}", file=sys.stderr)
        return BAD_USAGE
    there = _git(ROOT, "rev-parse", "--short", commit).stdout.strip()
    return 0 if report(compare(found[HERE], found[THERE]), _this_tree(), there) else FAILED


def _measured(
    stack: contextlib.ExitStack, chosen: argparse.Namespace, commit: str
) -> dict[str, list[Loaded]]:
    BENCH.mkdir(exist_ok=True)
    run = Path(tempfile.mkdtemp(prefix="run-", dir=BENCH))
    stack.callback(shutil.rmtree, run, ignore_errors=True)
    tree = stack.enter_context(checkout(commit, ROOT, run / "tree"))
    if not (tree / "extproc" / "cli.py").is_file():
        raise BadRef(f"{chosen.ref} is from before there was a product")
    upstream = stack.enter_context(rungs.mocks(run))
    sides: dict[str, rungs.Rung] = {}
    for name, source in ((THERE, tree), (HERE, ROOT)):
        made = rungs.product(RUNG, run, upstream, source, name=name[:4], change=_for(source))
        sides[name] = stack.enter_context(made)
        rungs.probe(sides[name])
        print(f"{name} is up", flush=True)
    body = run / "prompt.json"
    body.write_bytes(load.prompt(MODEL, PROMPT_BYTES))
    return rounds(sides, chosen.rounds, chosen.seconds, body)


def _this_tree() -> str:
    """Name what is checked out here; a + says that there are changes to it."""
    commit = _git(ROOT, "rev-parse", "--short", "HEAD").stdout.strip()
    changed = _git(ROOT, "status", "--porcelain", "--untracked-files=no").stdout.strip()
    return f"{commit}+" if changed else commit


def _git(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "-C", str(root), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS,
    )


def _leave(signum: int, _frame: object) -> None:
    sys.exit(128 + signum)  # unwinds the stack that stops every process and removes the worktree


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _leave)
    try:
        sys.exit(main(sys.argv[1:]))
    except (load.LoadError, StartError) as problem:
        print(f"benchmarks.against: {problem}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(130)
