"""How a script's bytes are cut before they are handed over.

Knows events as bytes. Knows no dialect, no sockets and no time: everything here is pure, and every
cut of a script joins to the same bytes.
"""

import random
from collections.abc import Iterator
from itertools import islice

from extproc.simulator.behaviour import Behaviour
from extproc.simulator.dialect import Event, Usage

PIECE_BYTES = (3, 40, 400)  # tiny, less than an event, more than an event


def frame(events: Iterator[Event], behaviour: Behaviour, seed: int) -> Iterator[Event]:
    """Return what is handed over, piece by piece, up to where the behaviour breaks it off.

    `seed` decides the random cuts; the same seed cuts the same script the same way.
    """
    if behaviour.newline == "crlf":
        events = (event._replace(data=event.data.replace(b"\n", b"\r\n")) for event in events)
    if behaviour.ending is not None:
        events = islice(events, behaviour.ending[1])
    if behaviour.framing == "byte":
        return _recut(events, iter(lambda: 1, 0))
    if behaviour.framing == "random":
        return _recut(events, _sizes(seed))
    return events


def _sizes(seed: int) -> Iterator[int]:
    rng = random.Random(seed)  # noqa: S311 - cuts must repeat, not surprise
    while True:
        yield rng.randint(1, rng.choice(PIECE_BYTES))


def _recut(events: Iterator[Event], sizes: Iterator[int]) -> Iterator[Event]:
    """Cut the joined bytes of `events` at `sizes`; a piece is worth the events that end in it."""
    piece, size = bytearray(), next(sizes)
    tokens = chunks = 0
    usage: Usage | None = None
    paced = False
    for event in events:
        paced = paced or event.paced
        position, length = 0, len(event.data)
        while position < length:
            taken = min(size - len(piece), length - position)
            piece += event.data[position : position + taken]
            position += taken
            if position == length:
                tokens += event.tokens
                chunks += event.chunks
                usage = event.usage or usage
            if len(piece) == size:
                yield Event(bytes(piece), tokens, paced, usage, chunks)
                piece, size = bytearray(), next(sizes)
                tokens, chunks, usage, paced = 0, 0, None, False
    if piece:
        yield Event(bytes(piece), tokens, paced, usage, chunks)
