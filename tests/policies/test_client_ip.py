"""Whose address it is, as a truth table; what callers make up first."""

from __future__ import annotations

import pytest

from extproc.policies.client_ip import UNKNOWN, client_address

ROWS = [
    ("made up entries stand to the left", "1.1.1.1, 2.2.2.2,9.9.9.9", 0, "9.9.9.9"),
    ("made up entries beyond the trusted proxy", "1.1.1.1, 2.2.2.2, 10.0.0.1", 1, "2.2.2.2"),
    ("fewer entries than proxies", "9.9.9.9", 2, "9.9.9.9"),
    ("as many entries as proxies", "8.8.8.8, 9.9.9.9", 2, "9.9.9.9"),
    ("two proxies", "6.6.6.6, 7.7.7.7, 8.8.8.8, 9.9.9.9", 2, "7.7.7.7"),
    ("no header at all", "", 0, UNKNOWN),
    ("no address", "me", 0, UNKNOWN),
    ("an IPv6 customer's whole prefix", "2001:db8:1:2:3:4:5:6", 0, "2001:db8:1:2::/64"),
    ("the same customer", "2001:db8:1:2:ffff::1", 0, "2001:db8:1:2::/64"),
    ("IPv4 in IPv6", "::ffff:1.2.3.4", 0, "1.2.3.4"),
]


@pytest.mark.parametrize(
    ("written", "hops", "address"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS]
)
def test_the_address_is_what_trusted_proxies_say(written: str, hops: int, address: str) -> None:
    assert client_address({"x-forwarded-for": written}, hops) == address


def test_without_the_header_all_share_one_account() -> None:
    assert client_address({}, 0) == UNKNOWN
