"""Processes that are started again, stopped, and tied to this one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from extproc import children
from extproc.children import Child, keep

# Says so when it is up, and waits to be ended.
WAITS = "import os, signal; os.write({file}, b'u'); signal.pause()"
DEAF = "import signal; signal.signal(15, signal.SIG_IGN); " + WAITS


def child(code: str, **more: object) -> Child:
    return Child("it", [sys.executable, "-c", code], **more)  # type: ignore[arg-type]


async def test_one_that_ends_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever watches is told the code; once told to stop, nothing is started."""
    monkeypatch.setattr(children, "RESTART_FIRST_S", 0.0)
    stop, codes = asyncio.Event(), []
    one = child("raise SystemExit(7)")
    assert one.code is None

    def ended(_: Child, code: int) -> None:
        codes.append(code)
        if len(codes) == 3:
            stop.set()

    await one.start()
    async with asyncio.timeout(20):
        await keep(one, stop, ended)
    assert codes == [7, 7, 7]
    assert one.code == 7


@pytest.mark.parametrize(
    ("code", "expected"),
    [(WAITS, -signal.SIGTERM), (DEAF, -signal.SIGKILL)],
    ids=["one that listens", "one that does not"],
)
async def test_one_is_asked_before_it_is_ended(code: str, expected: int) -> None:
    read, write = os.pipe()
    one = child(code.format(file=write), files=[write])
    await one.start()
    os.close(write)
    assert await asyncio.to_thread(os.read, read, 1) == b"u"
    os.close(read)
    await one.stop(0.2 if expected == -signal.SIGKILL else 20)
    assert one.code == expected
    await one.stop(0.2)  # once more is nothing


async def test_a_tethered_one_sees_the_end_of_this_process(tmp_path: Path) -> None:
    """Its standard input ends with whoever started it, however that ended."""
    told = tmp_path / "told"
    inner = f"import sys, pathlib; sys.stdin.read(); pathlib.Path({str(told)!r}).write_text('over')"
    outer = (
        "import asyncio, os, sys\n"
        "from extproc.children import Child\n"
        "async def main():\n"
        f"    await Child('in', [sys.executable, '-c', {inner!r}], tethered=True).start()\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    one = child(outer)
    await one.start()
    assert one.process is not None
    async with asyncio.timeout(20):
        assert await one.process.wait() == -signal.SIGKILL
        while not told.exists() or told.read_text() != "over":
            await asyncio.sleep(0.01)


async def test_files_are_inherited_by_number(tmp_path: Path) -> None:
    """Those named, and no others."""
    with (tmp_path / "a").open("w") as a, (tmp_path / "b").open("w") as b:
        code = f"import os; os.write({a.fileno()}, b'x'); os.write({b.fileno()}, b'y')"
        one = child(code, files=[a.fileno()])
        one.env = {**os.environ, "PYTHONWARNINGS": "ignore"}
        await one.start()
        assert one.process is not None
        assert await one.process.wait() == 1
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("x", "")
