"""A client built on the `h2` library: it checks every frame it is sent, and sends odd but legal ones."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest

from extproc.transport.lane import LaneTransport

from .scenarios import PATIENCE_S, Inbox, Opened, within
from .wire import GRPC, client, message

MIB = 1024 * 1024


@dataclass
class Talk:
    """A connection of the `h2` client over the lane's socket."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http: h2.connection.H2Connection
    data: dict[int, bytes] = field(default_factory=dict)
    trailers: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    seen: list[h2.events.Event] = field(default_factory=list)

    def flush(self) -> None:
        self.writer.write(self.http.data_to_send())

    def open(self) -> int:
        stream = int(self.http.get_next_available_stream_id())
        self.http.send_headers(stream, GRPC)
        return stream

    async def read(self) -> None:
        """Read once; windows are given back as the data comes. A frame that breaks a rule raises."""
        async with asyncio.timeout(PATIENCE_S):
            raw = await self.reader.read(65536)
        assert raw, "the connection was closed"
        for event in self.http.receive_data(raw):
            self.seen.append(event)
            if isinstance(event, h2.events.DataReceived):
                self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.TrailersReceived):
                self.trailers[event.stream_id] = dict(event.headers)
        self.flush()

    async def send(self, stream: int, raw: bytes, draw: random.Random, pad: bool) -> None:
        """Send bytes in frames of any size, as the windows allow."""
        while raw:
            room = min(
                self.http.local_flow_control_window(stream),
                self.http.max_outbound_frame_size,
                16000,
            )
            if room < 300:
                await self.read()
                continue
            size = draw.randint(1, min(room - 256, len(raw)))
            padding = draw.randint(0, 255) if pad else None
            self.http.send_data(stream, raw[:size], pad_length=padding)
            raw = raw[size:]
            self.flush()

    async def until_ended(self, *streams: int) -> None:
        while set(streams) - set(self.trailers):
            await self.read()


@pytest.fixture
def opened() -> Opened:
    return Opened()


@pytest.fixture
async def talk(tmp_path: Path, opened: Opened) -> AsyncIterator[Talk]:
    lane = LaneTransport(f"unix:{tmp_path}/s", opened, Inbox(), 11 * MIB)
    await lane.start()
    reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
    made = Talk(reader, writer, client())
    made.flush()
    yield made
    writer.close()
    await lane.stop(0)


@pytest.mark.parametrize("pad", [False, True], ids=["plain", "padded"])
async def test_interleaved_streams_in_pieces_of_any_size(
    talk: Talk, opened: Opened, pad: bool
) -> None:
    """Each gets its own bytes, whole and in order."""
    draw = random.Random(7)
    bodies = {talk.open(): draw.randbytes(draw.randint(1, 90_000)) for _ in range(20)}
    wires = {n: message(b"%d" % n) + message(body) + message(b"end") for n, body in bodies.items()}
    left = dict(wires)
    while left:
        stream = draw.choice(list(left))
        size = draw.randint(1, 20_000)
        await talk.send(stream, left[stream][:size], draw, pad)
        left[stream] = left[stream][size:]
        if not left[stream]:
            del left[stream]
            talk.http.end_stream(stream)
    talk.flush()
    await talk.until_ended(*bodies)
    assert talk.data == wires
    assert {ends[b"grpc-status"] for ends in talk.trailers.values()} == {b"0"}
    assert {exchange.closes for exchange in opened.exchanges} == {1}


async def test_ten_mib_through_the_smallest_windows(talk: Talk) -> None:
    """64 KiB at a time, both ways."""
    stream = talk.open()
    body = random.Random(3).randbytes(10 * MIB)
    await talk.send(stream, message(body) + message(b"end"), random.Random(3), pad=False)
    await talk.until_ended(stream)
    assert talk.data[stream] == message(body) + message(b"end")


async def test_windows_and_frames_that_change_under_way(talk: Talk) -> None:
    """Larger frames, then a window of nothing, then of everything."""
    codes = h2.settings.SettingCodes
    talk.http.update_settings({codes.MAX_FRAME_SIZE: 2**20, codes.INITIAL_WINDOW_SIZE: 0})
    talk.flush()
    stream = talk.open()
    await talk.send(stream, message(bytes(50_000)) + message(b"end"), random.Random(1), pad=False)
    while not any(isinstance(event, h2.events.ResponseReceived) for event in talk.seen):
        await talk.read()
    assert talk.data == {}
    talk.http.update_settings({codes.INITIAL_WINDOW_SIZE: 1_000_000, codes.HEADER_TABLE_SIZE: 0})
    talk.http.increment_flow_control_window(1_000_000)
    talk.flush()
    await talk.until_ended(stream)
    assert talk.data[stream] == message(bytes(50_000)) + message(b"end")


async def test_a_thousand_streams_one_after_the_other_leave_nothing(
    talk: Talk, opened: Opened
) -> None:
    """As Envoy uses a connection: opened, answered, reset by the client that is done."""
    for _ in range(1000):
        stream = talk.open()
        talk.http.send_data(stream, message(b"end"))
        talk.flush()
        await talk.until_ended(stream)
        talk.http.reset_stream(stream, h2.errors.ErrorCodes.NO_ERROR)
    talk.http.ping(b"12345678")
    talk.flush()
    while not any(isinstance(event, h2.events.PingAckReceived) for event in talk.seen):
        await talk.read()
    assert len(opened.exchanges) == 1000
    assert {exchange.closes for exchange in opened.exchanges} == {1}


async def test_resets_at_random_points_close_every_exchange_once(
    talk: Talk, opened: Opened
) -> None:
    """Before a message, in the middle of one, while it is worked on, after its answer."""
    draw = random.Random(11)
    for _ in range(300):
        stream = talk.open()
        wire = message(b"one") + message(draw.choice([b"hang", b"two", b"late"]))
        talk.http.send_data(stream, wire[: draw.randint(0, len(wire))])
        talk.flush()
        if draw.random() < 0.3:
            talk.http.ping(b"anything")  # so that there is something to read
            talk.flush()
            await talk.read()
        talk.http.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        talk.flush()
    last = talk.open()
    talk.http.send_data(last, message(b"end"))
    talk.flush()
    await talk.until_ended(last)
    for exchange in opened.exchanges:
        await within(exchange.closed)
    assert {exchange.closes for exchange in opened.exchanges} == {1}
