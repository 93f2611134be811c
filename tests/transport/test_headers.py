"""Header blocks: what a request must have, and that a remembered block is never a wrong one."""

from __future__ import annotations

import pytest
from hpack import Encoder, HeaderTuple, NeverIndexedHeaderTuple
from hypothesis import given
from hypothesis import strategies as st

from extproc.transport import frames
from extproc.transport.frames import ConnectionFault
from extproc.transport.headers import MAX_KNOWN_BLOCKS, MAX_KNOWN_BYTES, Blocks, check

METHOD, SCHEME, PATH = (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/s/M")
GOOD = [METHOD, SCHEME, PATH]


def blocks() -> Blocks:
    return Blocks(65536, 4096, lambda _: None)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        pytest.param(GOOD, "", id="the least there is"),
        pytest.param([*GOOD, (b"te", b"trailers"), (b"x", b"a b")], "", id="te trailers"),
        pytest.param([*GOOD, (b"x", b"\xe9")], "", id="a value beyond ASCII"),
        pytest.param([*GOOD, (b"x", b"")], "", id="an empty value"),
        pytest.param([*GOOD, (b"x", b"1"), (b"x", b"2")], "", id="a field twice"),
        pytest.param([(b":method", b"OPTIONS"), SCHEME, (b":path", b"*")], "", id="OPTIONS *"),
        pytest.param([(b":method", b"CONNECT"), (b":authority", b"a:1")], "", id="CONNECT"),
        pytest.param([*GOOD, (b"content-length", b"7")] * 1, "", id="a length"),
        pytest.param([], "no :method", id="nothing"),
        pytest.param([SCHEME, PATH], "no :method", id="no method"),
        pytest.param([METHOD, PATH], "no :scheme", id="no scheme"),
        pytest.param([METHOD, SCHEME], "bad :path", id="no path"),
        pytest.param([METHOD, SCHEME, (b":path", b"")], "bad :path", id="empty path"),
        pytest.param([METHOD, SCHEME, (b":path", b"*")], "bad :path", id="POST *"),
        pytest.param([*GOOD, (b":method", b"GET")], "unexpected :method", id="two methods"),
        pytest.param([*GOOD, (b":status", b"200")], "unexpected :status", id="a response's field"),
        pytest.param([*GOOD, (b":x", b"y")], "unexpected :x", id="an unknown pseudo-header"),
        pytest.param(
            [METHOD, SCHEME, (b"x", b"y"), PATH], ":path after a regular field", id="late"
        ),
        pytest.param([*GOOD, (b"X", b"y")], "bad field name", id="upper case"),
        pytest.param([*GOOD, (b"", b"y")], "bad field name", id="empty name"),
        pytest.param([*GOOD, (b"a b", b"y")], "bad field name", id="a blank in a name"),
        pytest.param([*GOOD, (b"x", b"a\r\nb: c")], "bad value of x", id="a line break"),
        pytest.param([*GOOD, (b"x", b"\x00")], "bad value of x", id="NUL"),
        pytest.param([*GOOD, (b"x", b" a")], "bad value of x", id="a blank in front"),
        pytest.param([*GOOD, (b"x", b"a\t")], "bad value of x", id="a tab behind"),
        *(
            pytest.param(
                [*GOOD, (name, b"a")], f"{name.decode()} is not for HTTP/2", id=name.decode()
            )
            for name in (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding")
        ),
        pytest.param([*GOOD, (b"upgrade", b"a")], "upgrade is not for HTTP/2", id="upgrade"),
        pytest.param([*GOOD, (b"te", b"gzip")], "te is not for HTTP/2", id="te gzip"),
        pytest.param([*GOOD, (b"content-length", b"-1")], "bad content-length", id="negative"),
        pytest.param([*GOOD, (b"content-length", b"1" * 19)], "bad content-length", id="endless"),
        pytest.param(
            [*GOOD, (b"content-length", b"1"), (b"content-length", b"2")],
            "two lengths",
            id="lengths",
        ),
        pytest.param(
            [(b":method", b"CONNECT"), SCHEME, PATH], "bad CONNECT", id="CONNECT with path"
        ),
    ],
)
def test_a_request_is_checked(fields: list[tuple[bytes, bytes]], fault: str) -> None:
    """RFC 9113 8.2 and 8.3, row by row."""
    assert check(fields).fault == fault


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        pytest.param([], "", id="none"),
        pytest.param([(b"x", b"y")], "", id="one"),
        pytest.param([METHOD], ":method among trailers", id="a pseudo-header"),
        pytest.param([(b"X", b"y")], "bad field name", id="upper case"),
    ],
)
def test_trailers_are_checked(fields: list[tuple[bytes, bytes]], fault: str) -> None:
    """RFC 9113 8.1: no pseudo-header."""
    assert check(fields).trailer_fault == fault


def test_a_length_is_read_unless_the_block_is_broken() -> None:
    """`content-length` as a number."""
    assert check([*GOOD, (b"content-length", b"12")]).length == 12
    assert check(GOOD).length is None
    assert check([*GOOD, (b"content-length", b"x")]).length is None


def test_a_block_over_the_list_size_ends_the_connection() -> None:
    """The bomb: one byte a field that the table makes 4 KB."""
    encoder = Encoder()
    bomb = encoder.encode([("x", "v" * 3000)]) + encoder.encode([("x", "v" * 3000)]) * 30
    with pytest.raises(ConnectionFault) as caught:
        blocks().read(bomb)
    assert caught.value.code == frames.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"\xff\xff\xff\xff", id="an endless index"),
        pytest.param(b"\x80", id="index 0"),
        pytest.param(b"\xfe", id="an index beyond the table"),
        pytest.param(b"\x00\x05ab", id="cut"),
        pytest.param(b"\x3f\xe2\x1f", id="a table larger than allowed"),
        pytest.param(b"\x20\x3f\xe1\x1f\x20\x82", id="three sizes of the table"),
        pytest.param(b"\x20" * 60_000, id="thousands of them"),
    ],
)
def test_a_block_that_cannot_be_decoded_ends_the_connection(block: bytes) -> None:
    """RFC 9113 4.3: COMPRESSION_ERROR."""
    with pytest.raises(ConnectionFault) as caught:
        blocks().read(block)
    assert caught.value.code == frames.COMPRESSION_ERROR


def test_a_table_may_change_its_size_twice_a_block() -> None:
    """The smallest and the last of what it was meanwhile (RFC 7541 4.2)."""
    assert blocks().read(b"\x20\x3f\xe1\x1f\x82").fields == {":method": "GET"}


def test_a_block_costs_of_its_turn_what_it_takes_to_decode() -> None:
    """By its fields and its bytes; nothing when it is remembered."""
    spent: list[int] = []
    ours = Blocks(65536, 4096, spent.append)
    ours.read(b"\x82" * 100)
    ours.read(b"\x82" * 100)
    ours.read(b"\x00\x01x\x7f\x81\x07" + b"v" * 1024)
    assert spent == [4 * 100 + 100 // 8, 4 + 1030 // 8]


FIELDS = st.lists(
    st.tuples(
        st.sampled_from(["x", "y", "z"]),
        st.sampled_from([0, 1, 2, 90, 4000]),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@given(st.lists(FIELDS, max_size=40))
def test_remembered_blocks_are_what_a_decoder_says(
    requests: list[list[tuple[str, int, bool]]],
) -> None:
    """Whatever enters and leaves the table in between, the same block is never read as another."""
    encoder, ours = Encoder(), blocks()
    encoder.header_table_size = 200  # so that entries leave it
    for fields in requests:
        kinds = [
            (NeverIndexedHeaderTuple if secret else HeaderTuple)(name, "v" * size)
            for name, size, secret in fields
        ]
        read = ours.read(encoder.encode(kinds))
        assert dict(read.fields) == {name: "v" * size for name, size, _ in fields}


def test_known_blocks_are_bounded() -> None:
    """A peer that sends ever new blocks, or long ones, does not fill the memory."""
    ours = blocks()
    for count in range(3 * MAX_KNOWN_BLOCKS):
        read = ours.read(b"\x00\x01x\x04" + b"%04d" % count)  # a field that is written out
        assert read.fields == {"x": f"{count:04}"}
        assert len(ours._known) <= MAX_KNOWN_BLOCKS
    long = b"\x00\x01x\x01y" * MAX_KNOWN_BYTES
    ours.read(long)
    assert long not in ours._known


def test_envoys_blocks_are_remembered() -> None:
    """Because it writes `:path` out in every one, and sends thousands a second."""
    ours, encoder = blocks(), Encoder()
    fields = [HeaderTuple(":method", "POST"), NeverIndexedHeaderTuple(":path", "/s/M")]
    fields += [HeaderTuple(":scheme", "http"), HeaderTuple("x", "y")]
    first, *rest = [ours.read(encoder.encode(fields)) for _ in range(3)]
    assert first == rest[0]
    assert rest[0] is rest[1]
