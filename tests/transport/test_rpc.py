"""gRPC's header fields and trailers."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from extproc.transport import rpc
from extproc.transport.rpc import refusal, timeout_s, trailers


def decoded(block: bytes) -> dict[str, str]:
    return dict(Decoder().decode(block))


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1S", 1.0),
        ("250m", 0.25),
        ("99999999n", 0.099999999),
        ("7u", 7e-6),
        ("2M", 120.0),
        ("1H", 3600.0),
    ],
)
def test_a_timeout_is_read(written: str, seconds: float) -> None:
    """At most eight digits and a unit."""
    assert timeout_s(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written", ["", "1", "S", "1s", "-1S", "1.5S", "123456789S", "1S ", "\u0661S"]
)
def test_a_malformed_timeout_is_refused(written: str) -> None:
    """Anything else is no timeout."""
    with pytest.raises(ValueError, match="grpc-timeout"):
        timeout_s(written)


@pytest.mark.parametrize(
    ("method", "kind", "status"),
    [
        ("POST", "application/grpc", ""),
        ("POST", "application/grpc+proto", ""),
        ("POST", "application/grpc;charset=utf-8", ""),
        ("POST", "application/grpcx", "415"),
        ("POST", "application/json", "415"),
        ("POST", None, "415"),
        ("GET", "application/grpc", "405"),
        ("CONNECT", None, "405"),
    ],
)
def test_what_is_not_grpc_is_refused(method: str, kind: str | None, status: str) -> None:
    """An HTTP status and a gRPC one, for whoever reads which."""
    headers = {":method": method} | ({} if kind is None else {"content-type": kind})
    answer = decoded(refusal(headers))
    assert answer.get(":status", "") == status
    assert ("grpc-status" in answer) == bool(status)


@given(st.text(max_size=400))
def test_a_reason_is_percent_encoded(reason: str) -> None:
    """Any text survives, up to its bound, as printable ASCII."""
    found = decoded(trailers(rpc.INTERNAL, reason))
    assert found["grpc-status"] == "13"
    assert found["grpc-message"].isascii()
    assert found["grpc-message"].isprintable()
    assert unquote(found["grpc-message"]) == reason[: rpc.MAX_REASON_CHARS]


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 256, 16_000])
def test_a_literal_of_any_length_is_decoded(size: int) -> None:
    """The length takes as many bytes as it needs (RFC 7541 5.1)."""
    assert decoded(rpc.literal(b"x", b"v" * size)) == {"x": "v" * size}


def test_the_constant_blocks() -> None:
    """What every good answer begins and ends with."""
    assert decoded(rpc.RESPONSE) == {":status": "200", "content-type": "application/grpc"}
    assert decoded(trailers(rpc.OK)) == {"grpc-status": "0"}
