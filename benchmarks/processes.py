"""Start, watch, measure and stop the processes of a benchmark.

Knows process ids, ports and logs. Knows no rung and no gateway.
"""

import contextlib
import os
import platform
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HOST = "127.0.0.1"
START_SECONDS = 30.0  # Envoy and a processor are up in one; a loaded machine takes longer
STOP_SECONDS = 8.0  # first politely, then not
POLL_SECONDS = 0.05
LOG_TAIL_BYTES = 1500
CPUCLOCK_SCHED = 2  # clock_getcpuclockid(3): the precise user + system time of a whole process
MEBIBYTE = 1024 * 1024


class StartError(RuntimeError):
    """A process did not come up; the message ends with the tail of its log."""


@dataclass(frozen=True, slots=True)
class Child:
    """One started process, the leader of its own process group."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def tail(self) -> str:
        """Return the end of the log, for a message about why it did not work."""
        with contextlib.suppress(OSError):
            return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return ""


def free_port() -> int:
    """Return a port that the kernel says is free now."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def running(
    name: str, argv: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """Run `argv` in its own process group, output to `cwd/name.log`; stop the group at the end."""
    log = cwd / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(argv),
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Child(name, process, log)
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process group that `process` leads: SIGTERM, then SIGKILL."""
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # workers that outlived their leader


def wait_port(port: int, child: Child, seconds: float = START_SECONDS) -> None:
    """Wait until `port` accepts, or raise `StartError` when the child ends or time is up."""

    def accepts() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1.0):
            return True
        return False

    _wait(accepts, child, seconds, f"port {port}")


def wait_path(path: Path, child: Child, seconds: float = START_SECONDS) -> None:
    """Wait until a Unix socket exists at `path`, or raise `StartError`."""
    _wait(path.is_socket, child, seconds, f"socket {path.name}")


def _wait(ready: Callable[[], bool], child: Child, seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not ready():
        if child.process.poll() is not None:
            raise StartError(f"{child.name} ended with {child.process.returncode}: {child.tail()}")
        if time.monotonic() > until:
            raise StartError(f"{child.name}: no {what} after {seconds:.0f} s: {child.tail()}")
        time.sleep(POLL_SECONDS)


def tree(pid: int) -> list[psutil.Process]:
    """Return the process and all its descendants that are alive."""
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(pid)
        return [leader, *leader.children(recursive=True)]
    return []


def cpu_seconds(child: Child | None) -> float:
    """Return user + system seconds spent by the child and its descendants, to the nanosecond."""
    if child is None:
        return 0.0
    total = 0.0
    for process in tree(child.pid):
        try:
            total += time.clock_gettime((~process.pid << 3) | CPUCLOCK_SCHED)
        except OSError:  # not allowed or not Linux: /proc ticks of 10 ms will do
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
    return total


def rss_mib(child: Child | None) -> float:
    """Return the resident memory of the child and its descendants in MiB."""
    if child is None:
        return 0.0
    total = 0
    for process in tree(child.pid):
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total / MEBIBYTE


def machine() -> dict[str, Any]:
    """Return what figures depend on, and when it was; nothing that names the machine."""
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }
