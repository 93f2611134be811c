"""The JSON load: wrk, its request bodies, and what its one line of numbers means.

Knows wrk and how to make prompts of a size. Knows no rung.
"""

import json
import os
import shutil
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("wrk.lua")
MARK = "@" * 16  # wrk.lua puts a number here
LINE = "BENCH "
KINDS = ("connect", "read", "write", "timeout", "status")  # of errors, as wrk counts them
TIMEOUT_SECONDS = 30  # LiteLLM at 32 connections takes seconds when the machine is busy
SLACK_SECONDS = 60
WORDS = "Explain to a new colleague, with one example, how a reverse proxy balances load. "


class LoadError(RuntimeError):
    """wrk is missing or did not finish."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run of wrk measured. Latencies in milliseconds, corrected for late requests.

    `failures` says what went wrong how often: `timeout: 2, status: 7 (429: 7)`.
    """

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int
    failures: str = ""

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of the rounds between the lowest and the highest."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread | None:
    """Return median, lowest and highest, or None when nothing was measured."""
    if not values:
        return None
    return Spread(statistics.median(values), min(values), max(values))


def find_wrk() -> str:
    """Return the path of wrk; install Debian's package when root lacks it. Raises `LoadError`."""
    if (path := shutil.which("wrk")) is not None:
        return path
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print("wrk is missing: installing the package wrk", flush=True)
        for step in (["update", "-qq"], ["install", "-y", "-qq", "wrk"]):
            subprocess.run(["apt-get", *step], check=False, stdout=subprocess.DEVNULL)
    if (path := shutil.which("wrk")) is None:
        raise LoadError("wrk is missing; install it (Debian, Ubuntu: apt-get install wrk)")
    return path


def parse(output: str) -> Sample:
    """Read the line that wrk.lua prints at the end. Raises `LoadError` when there is none."""
    lines = [line for line in output.splitlines() if line.startswith(LINE)]
    if not lines:
        raise LoadError(f"wrk printed no result: {output.strip()[-500:]}")
    found = json.loads(lines[-1].removeprefix(LINE))
    failed = {kind: found[kind] for kind in KINDS if found[kind]}
    return Sample(
        requests=found["requests"],
        seconds=found["duration_us"] / 1e6,
        p50_ms=found["p50_us"] / 1e3,
        p99_ms=found["p99_us"] / 1e3,
        errors=sum(failed.values()),
        failures=_counted(failed) + _by_status(found.get("statuses", {})),
    )


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{what}: {count}" for what, count in counts.items())


def _by_status(counts: Mapping[str, int]) -> str:
    return f" ({_counted(dict(sorted(counts.items())))})" if counts else ""


def run(
    url: str,
    body: Path,
    headers: Mapping[str, str],
    *,
    connections: int,
    seconds: float,
    unique: bool = True,
    statuses: bool = False,
) -> Sample:
    """Load `url` from one thread for whole `seconds` and return what it measured.

    `statuses` has refusals told by status, for a little of the load generator's time.
    """
    argv = [find_wrk(), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    argv += ["--timeout", f"{TIMEOUT_SECONDS}s", "-s", str(SCRIPT), url]
    lines = {"content-type": "application/json", **headers}
    env = {
        **os.environ,
        "BENCH_BODY": str(body),
        "BENCH_HEADERS": "\n".join(f"{name}: {value}" for name, value in lines.items()),
        "BENCH_UNIQUE": "1" if unique else "0",
        "BENCH_STATUSES": "1" if statuses else "0",
    }
    done = subprocess.run(
        argv, env=env, capture_output=True, text=True, check=False, timeout=seconds + SLACK_SECONDS
    )
    return parse(done.stdout + done.stderr)


def prompt(model: str, size_bytes: int) -> bytes:
    """Return a chat completion request of about `size_bytes` with a place for wrk's number."""
    fixed = len(chat(model, [""]))
    words = WORDS * (size_bytes // len(WORDS) + 1)
    return chat(model, [words[: max(0, size_bytes - fixed)]])


def chat(model: str, messages: Sequence[str]) -> bytes:
    """Return a chat completion request with these user messages, numbered in a system message."""
    turns = [{"role": "system", "content": f"You are a helpful assistant. Case {MARK}."}]
    turns += [{"role": "user", "content": text} for text in messages]
    call = {"model": model, "temperature": 0.7, "max_tokens": 128, "messages": turns}
    return json.dumps(call, separators=(",", ":")).encode()
