"""Runs simulated providers in one process until SIGTERM: python providers.py NAME=DIALECT:PORT ...

Knows: the simulator. One process, because each would load the same for a third of a second.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import uvloop

from extproc.simulator.server import start


async def main(words: list[str]) -> None:
    """Start what each word names and wait for the signal."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    running = []
    for word in words:
        name, _, how = word.partition("=")
        dialect, _, port = how.partition(":")
        running.append(await start("127.0.0.1", int(port), name=name, dialect=dialect))
    await stop.wait()
    for provider in running:
        await provider.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))
