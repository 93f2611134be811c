"""What a Redis Cluster says about who has which keys. Pure.

Knows: hash slots and the reply of CLUSTER SLOTS. Must not know: connections, or what keys are for.
Source: the Redis Cluster specification, "Key distribution model" and "Hash tags"; CLUSTER SLOTS.
"""

from __future__ import annotations

from binascii import crc_hqx
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

SLOTS: Final = 16_384
UNKNOWN: Final = b"?"  # a node that was told to tell names and has none

Address: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """Who has a slot: the id of its master, where that is, and where every other node is."""

    owner: bytes
    at: Address
    others: tuple[Address, ...]


def slot_of(key: bytes) -> int:
    """Return the slot of a key: of what is between its first `{` and the next `}`, if anything."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


def layout(reply: Any, slot: int, asked: str) -> Layout | None:
    """Read CLUSTER SLOTS; None where nobody has the slot. `asked` is the host that was asked.

    Raises ValueError for a reply of another shape.
    """
    owner: tuple[bytes, Address] | None = None
    seen: dict[Address, None] = {}
    try:
        for first, last, master, *replicas in reply:
            for host, port, node_id, *_ in (master, *replicas):
                if host == UNKNOWN:
                    continue
                # None or empty: the host that was asked, which alone knows how it is reached.
                address = ((host or b"").decode() or asked, int(port))
                seen[address] = None
                if node_id == master[2] and first <= slot <= last:
                    owner = bytes(node_id), address
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError("not a reply of CLUSTER SLOTS") from error
    if owner is None:
        return None
    return Layout(owner[0], owner[1], tuple(a for a in seen if a != owner[1]))
