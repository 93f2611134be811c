"""Which addresses stay on this machine."""

from __future__ import annotations

import pytest

from extproc.addresses import is_local


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("unix:/run/s.sock", True),
        ("127.0.0.1:50051", True),
        ("127.8.8.8:1", True),
        ("[::1]:50051", True),
        ("localhost:50051", True),
        ("0.0.0.0:50051", False),
        ("[::]:50051", False),
        ("10.0.0.1:50051", False),
        ("localhost.example:50051", False),
        ("processor.svc:50051", False),
        ("50051", False),
        ("", False),
    ],
)
def test_an_address_is_local_or_not(address: str, local: bool) -> None:
    """Unix sockets and loopback are; a name is not, whatever it would resolve to."""
    assert is_local(address) is local
