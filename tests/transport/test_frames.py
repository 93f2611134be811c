"""Frames, byte by byte."""

from __future__ import annotations

import pytest

from extproc.transport import frames
from extproc.transport.frames import ConnectionFault, frame, unpadded


def test_a_frame_is_its_header_and_payload() -> None:
    """Size, kind, flags, stream, payload, as RFC 9113 4.1 draws them."""
    assert (
        frame(frames.DATA, frames.END_STREAM, 5, b"abc")
        == b"\x00\x00\x03\x00\x01\x00\x00\x00\x05abc"
    )
    assert frame(frames.PING, 0, 0, bytes(8))[:9] == b"\x00\x00\x08\x06\x00\x00\x00\x00\x00"
    assert len(frame(frames.DATA, 0, 1, bytes(70_000))) == 9 + 70_000


@pytest.mark.parametrize(
    ("payload", "plain"),
    [
        pytest.param(b"\x00abc", b"abc", id="no padding"),
        pytest.param(b"\x02abc..", b"abc", id="two bytes of it"),
        pytest.param(b"\x03...", b"", id="nothing but padding"),
    ],
)
def test_padding_is_taken_off(payload: bytes, plain: bytes) -> None:
    """The length byte and as many bytes at the end go."""
    assert unpadded(payload) == plain


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        pytest.param(b"", frames.FRAME_SIZE_ERROR, id="no length byte"),
        pytest.param(b"\x01", frames.PROTOCOL_ERROR, id="more than there is"),
        pytest.param(b"\x04abc", frames.PROTOCOL_ERROR, id="as long as the payload"),
    ],
)
def test_bad_padding_has_its_code(payload: bytes, code: int) -> None:
    """RFC 9113 6.1."""
    with pytest.raises(ConnectionFault) as caught:
        unpadded(payload)
    assert caught.value.code == code
