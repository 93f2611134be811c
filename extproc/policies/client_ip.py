"""Whose address a call is counted by.

Knows: X-Forwarded-For as Envoy leaves it. Must not know: sockets.
Envoy appends the address of the connection, so only what it and the configured number of trusted
proxies appended is believed; what stands further left is anybody's to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final

ADDRESSES: Final = "x-forwarded-for"
UNKNOWN: Final = "unknown"  # all such callers share one account: a missing address is no way out
_PREFIX_BITS: Final = 64  # one IPv6 customer has at least so many addresses


def client_address(headers: Mapping[str, str], trusted_hops: int) -> str:
    """Return the caller's address: an IPv6 one as its /64.

    With fewer entries than trusted proxies the connection's own address stands, as in Envoy
    (`xff_num_trusted_hops`).
    """
    written = headers.get(ADDRESSES)
    if not written:
        return UNKNOWN
    if "," not in written:
        return _normal(written.strip())
    entries = written.rsplit(",", trusted_hops + 1)
    at = -1 - trusted_hops
    return _normal(entries[at if len(entries) > trusted_hops else -1].strip())


@lru_cache(maxsize=4096)
def _normal(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        return UNKNOWN
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        host_bits = address.max_prefixlen - _PREFIX_BITS
        return f"{IPv6Address(int(address) >> host_bits << host_bits)}/{_PREFIX_BITS}"
    return str(address)
