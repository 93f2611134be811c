"""Processes of ours: started, started again when they end by themselves, stopped.

Knows: processes and pipes. Must not know: what they do, who is told of their end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RESTART_FIRST_S: Final = 0.1
RESTART_LAST_S: Final = 5.0
STABLE_S: Final = 10.0  # a child that ran this long restarts at once again


@dataclass(slots=True)
class Child:
    """One supervised process.

    `files` are descriptors it inherits under their own numbers. `tethered`: its standard input ends
    when this process does, however that ends.
    """

    name: str
    command: Sequence[str]
    cwd: Path | None = None
    env: Mapping[str, str] | None = None
    files: Sequence[int] = ()
    tethered: bool = False
    process: asyncio.subprocess.Process | None = None

    @property
    def code(self) -> int | None:
        """Return the exit code, None while it runs or was never started."""
        return None if self.process is None else self.process.returncode

    async def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches the supervisor alone."""
        environment = None if self.env is None else dict(self.env)  # uvloop takes a plain dict
        self.process = await asyncio.create_subprocess_exec(
            *self.command,
            cwd=self.cwd,
            env=environment,
            pass_fds=self.files,
            stdin=asyncio.subprocess.PIPE if self.tethered else None,
            start_new_session=True,
        )

    def terminate(self) -> None:
        """Ask it to end."""
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()

    async def stop(self, patience_s: float) -> None:
        """Ask it to end, and end it when it does not."""
        process = self.process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(patience_s):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def keep(child: Child, stop: asyncio.Event, ended: Callable[[Child, int], None]) -> None:
    """Start the child again whenever it ends by itself; `ended` is told its exit code."""
    delay = RESTART_FIRST_S
    while not stop.is_set():
        assert child.process is not None
        started = time.monotonic()
        code = await child.process.wait()
        if stop.is_set():
            return
        delay = RESTART_FIRST_S if time.monotonic() - started > STABLE_S else delay
        ended(child, code)
        await asyncio.sleep(delay)
        delay = min(delay * 2, RESTART_LAST_S)
        if not stop.is_set():
            await child.start()
