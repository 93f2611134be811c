"""An append-only file of records that outlives the process that wrote it.

Knows: framing, one file and its lock. Must not know: what a record holds.
The file is mapped, because an append is on the path of every call and a write(2) takes 20 us. What
was appended is in the page cache, which survives `kill -9`; a power cut loses what the kernel had
not written yet, about the last second (see `sync`). Blocks are reserved before they are used, so a
full disk is an error here and never a signal.
A frame is its length, its CRC-32, its bytes. What follows a frame that is cut or wrong is dropped;
the zeros of the reserve are such a frame, because the checksum does not begin at 0.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from zlib import crc32

_frame: Final = struct.Struct("<LL")
_write_frame: Final = _frame.pack_into
FRAME_BYTES: Final = 8
MAX_RECORD_BYTES: Final = 1 << 20  # a longer length is not one that was written here
MIN_REWRITE_BYTES: Final = 16 << 20  # about 100,000 calls; read back in a second
GROWTH: Final = 4  # rewritten when so many times as long as after the last time
RESERVE_BYTES: Final = 1 << 20  # reserved at a time: some 5,000 calls
CHECKSUM_BEGINS: Final = 1  # not 0, or eight zeros would be an empty record


class Journal:
    """One file, held by one process. Writing raises OSError where the disk refuses."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises OSError: BlockingIOError where a process has it."""
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                reason = "in use by another processor"
                raise BlockingIOError(error.errno, reason, str(path)) from None
            self._fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError:
            os.close(self._lock)
            raise
        self._map: mmap.mmap | None = None  # None: nothing is reserved yet
        self._room = 0  # bytes that are mapped
        self._size = 0
        self._compact_size = 0

    def read(self) -> list[bytes]:
        """Return every whole record, oldest first, and cut off what follows the last of them."""
        data = self._path.read_bytes()
        records, at = _whole(data)
        self._unmap()
        if at < len(data):
            os.ftruncate(self._fd, at)
        self._size = at
        return records

    def append(self, *records: bytes) -> None:
        """Add records, all or none."""
        self._make_room(sum([FRAME_BYTES + len(one) for one in records]))
        for one in records:
            self.add(one)

    def add(self, record: bytes) -> None:
        """Add one record."""
        size = len(record)
        at = self._size + FRAME_BYTES
        if at + size > self._room:
            self._make_room(FRAME_BYTES + size)
        reserved = self._map
        assert reserved is not None
        _write_frame(reserved, self._size, size, _checksum(record))
        reserved[at : at + size] = record
        self._size = at + size

    @property
    def is_long(self) -> bool:
        """Say whether it is time for `rewrite`."""
        return self._size > max(MIN_REWRITE_BYTES, GROWTH * self._compact_size)

    def rewrite(self, records: Iterable[bytes]) -> None:
        """Put these records in the place of all there are, at once or not at all."""
        fresh = self._path.with_suffix(".new")
        fd = os.open(fresh, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600)
        old_fd, old_map, old_size, old_room = self._fd, self._map, self._size, self._room
        self._fd, self._map, self._size, self._room = fd, None, 0, 0
        try:
            self.append(*records)
            fresh.replace(self._path)
        except OSError:
            self._unmap()
            os.close(fd)
            self._fd, self._map, self._size, self._room = old_fd, old_map, old_size, old_room
            fresh.unlink(missing_ok=True)
            raise
        if old_map is not None:
            old_map.close()
        os.close(old_fd)
        self._compact_size = self._size

    def sync(self) -> None:
        """Wait for the disk: for a thread, every second or so."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Give back what was reserved and let go of the file."""
        self._unmap()
        os.ftruncate(self._fd, self._size)
        os.close(self._fd)
        os.close(self._lock)

    def _make_room(self, more: int) -> None:
        """Reserve so many bytes after those that are used."""
        needed = self._size + more
        if self._map is not None and needed <= self._room:
            return
        capacity = -(-max(needed, 1) // RESERVE_BYTES) * RESERVE_BYTES
        os.posix_fallocate(self._fd, 0, capacity)
        self._unmap()
        self._map = mmap.mmap(self._fd, capacity)
        self._room = capacity

    def _unmap(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None
            self._room = 0


def read_only(path: Path) -> list[bytes]:
    """Return every whole record, oldest first, of a file that may be in use; none without a file.

    Raises OSError.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return _whole(data)[0]


def _whole(data: bytes) -> tuple[list[bytes], int]:
    """Return the whole records at the beginning, and where the last of them ends."""
    records = []
    at = 0
    while at + _frame.size <= len(data):
        size, checksum = _frame.unpack_from(data, at)
        stop = at + _frame.size + size
        record = data[at + _frame.size : stop]
        if size > MAX_RECORD_BYTES or stop > len(data) or _checksum(record) != checksum:
            break
        records.append(record)
        at = stop
    return records, at


def _checksum(record: bytes) -> int:
    return crc32(record, CHECKSUM_BEGINS)
