"""Header blocks of requests: decoded, checked, and remembered where that is safe.

Knows: RFC 7541 by python-hyper's decoder, RFC 9113 8.2 and 8.3. Must not know: streams or gRPC.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from extproc.transport.frames import COMPRESSION_ERROR, ENHANCE_YOUR_CALM, ConnectionFault

MAX_KNOWN_BLOCKS: Final = 256  # Envoy sends a handful
MAX_KNOWN_BYTES: Final = 1024  # Envoy's are a tenth of it
PSEUDO: Final = frozenset({":method", ":scheme", ":path", ":authority"})
# Fields of one HTTP/1 connection, which HTTP/2 does not carry (8.2.2).
OF_A_CONNECTION: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
)
MAX_LENGTH_DIGITS: Final = 18
FIELD_COST: Final = 4  # of a turn's budget: some 8 us
BYTES_COST: Final = 8  # as many of Huffman's code for one of the budget
_name: Final = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")
# Of the table's size; two are all it takes to say (RFC 7541 4.2), and a block holds 65,000.
_three_updates: Final = re.compile(rb"(?:[\x20-\x3e]|\x3f[\x80-\xff]*[\x00-\x7f]){3}")
_bad_value: Final = re.compile(rb"[\x00\r\n]|\A[ \t]|[ \t]\Z")


@dataclass(frozen=True, slots=True)
class Head:
    """A decoded block: its fields, and what is wrong with it as a request and as trailers."""

    fields: Mapping[str, str]
    length: int | None  # content-length
    fault: str
    trailer_fault: str


class Blocks:
    """Decodes the header blocks of one connection, in order. `spend` takes of the turn's budget."""

    __slots__ = ("_decoder", "_known", "_spend")

    def __init__(
        self, max_list_bytes: int, max_table_bytes: int, spend: Callable[[int], None]
    ) -> None:
        self._spend = spend
        self._decoder = Decoder(max_header_list_size=max_list_bytes)
        self._decoder.max_allowed_table_size = max_table_bytes
        self._known: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """Decode a block; the answer of a short one that left the table as it was is kept.

        Envoy writes `:path` out in every block, so few are of indexes alone. Raises
        ConnectionFault: the tables of the two sides have parted (RFC 9113 4.3).
        """
        known = self._known.get(block)
        if known is not None:
            return known
        if _three_updates.match(block):
            raise ConnectionFault(COMPRESSION_ERROR, "the table changes size at will")
        table = self._decoder.header_table
        entries, maxsize = table.dynamic_entries, table.maxsize
        count, newest = len(entries), entries[0] if entries else None
        try:
            found = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError as error:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "header list too large") from error
        except HPACKError as error:
            raise ConnectionFault(COMPRESSION_ERROR, "bad header block") from error
        fields = [(bytes(name), bytes(value)) for name, value in found]
        head = check(fields)
        self._spend(FIELD_COST * len(fields) + len(block) // BYTES_COST)
        # By identity, because an equal entry may have pushed another one out.
        same = table.maxsize == maxsize and len(entries) == count
        if not same or newest is not (entries[0] if entries else None):
            self._known.clear()
        elif len(block) <= MAX_KNOWN_BYTES:
            if len(self._known) >= MAX_KNOWN_BLOCKS:
                self._known.clear()
            self._known[block] = head
        return head


def check(fields: Sequence[tuple[bytes, bytes]]) -> Head:
    """Judge a list of fields (RFC 9113 8.2, 8.3); the first fault is told."""
    found: dict[str, str] = {}
    fault = trailer_fault = ""
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        wrong = _wrong(raw_name, raw_value, name, value)
        if name.startswith(":"):
            trailer_fault = trailer_fault or f"{name} among trailers"
            if name not in PSEUDO or name in found:
                wrong = wrong or f"unexpected {name}"
            elif found and not next(reversed(found)).startswith(":"):
                wrong = wrong or f"{name} after a regular field"
        elif name == "content-length" and found.get(name, value) != value:
            wrong = wrong or "two lengths"
        if wrong:
            fault, trailer_fault = fault or wrong, trailer_fault or wrong
        found[name] = value
    length = found.get("content-length")
    return Head(
        fields=found,
        length=None if length is None or fault else int(length),
        fault=fault or _missing(found),
        trailer_fault=trailer_fault,
    )


def _wrong(raw_name: bytes, raw_value: bytes, name: str, value: str) -> str:
    """Say what is wrong with one field, wherever it stands."""
    if not _name.fullmatch(raw_name):
        return "bad field name"
    if _bad_value.search(raw_value):
        return f"bad value of {name}"
    if name in OF_A_CONNECTION or (name == "te" and value != "trailers"):
        return f"{name} is not for HTTP/2"
    if name == "content-length" and not (
        value.isascii() and value.isdigit() and len(value) <= MAX_LENGTH_DIGITS
    ):
        return "bad content-length"
    return ""


def _missing(found: Mapping[str, str]) -> str:
    """Say which pseudo-header a request lacks (8.3.1, 8.5)."""
    method = found.get(":method")
    if not method:
        return "no :method"
    if method == "CONNECT":
        wrong = ":scheme" in found or ":path" in found or not found.get(":authority")
        return "bad CONNECT" if wrong else ""
    if not found.get(":scheme"):
        return "no :scheme"
    path = found.get(":path", "")
    if not path.startswith("/") and (method, path) != ("OPTIONS", "*"):
        return "bad :path"
    return ""
