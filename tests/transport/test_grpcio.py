"""The reference transport."""

from __future__ import annotations

from pathlib import Path

import pytest

from extproc.transport.grpcio import GrpcioTransport
from tests.transport.scenarios import *  # noqa: F403
from tests.transport.scenarios import MAX_BODY_BYTES, Inbox, Opened, Serve


@pytest.fixture
def serve() -> Serve:
    return lambda path, opened, inbox, limit: GrpcioTransport(f"unix:{path}", opened, inbox, limit)


@pytest.mark.parametrize("address", ["unix:{}/none/s.sock", "256.0.0.1:1"])
async def test_an_address_that_cannot_be_had_is_an_os_error(address: str, tmp_path: Path) -> None:
    transport = GrpcioTransport(address.format(tmp_path), Opened(), Inbox(), MAX_BODY_BYTES)
    with pytest.raises(OSError, match="cannot bind"):
        await transport.start()
