"""Slots and layouts as the Redis Cluster specification has them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from extproc.stores import redis_keys, redis_ledger
from extproc.stores.cluster import Layout, layout, slot_of


@pytest.mark.parametrize(
    ("key", "same_as"),
    [
        pytest.param(b"{user1000}.following", b"user1000", id="what is between braces counts"),
        pytest.param(b"foo{}{bar}", b"foo{}{bar}", id="nothing between the first: all counts"),
        pytest.param(b"foo{{bar}}zap", b"{bar", id="up to the first closing one"),
        pytest.param(b"foo{bar}{zap}", b"bar", id="the first pair counts"),
        pytest.param(b"foo{bar", b"foo{bar", id="never closed: all counts"),
        pytest.param(b"{llm-edge}:a:key:x", b"{llm-edge}:r:1", id="the ledger's share one"),
    ],
)
def test_hash_tags(key: bytes, same_as: bytes) -> None:
    """The examples of the specification."""
    assert slot_of(key) == slot_of(same_as)


def test_the_specifications_checksum() -> None:
    """CRC16 of "123456789" is 0x31C3."""
    assert slot_of(b"123456789") == 0x31C3 % 16_384


@given(st.binary(max_size=40))
def test_any_key_has_the_slot_that_others_give_it(key: bytes) -> None:
    """As redis-py has it."""
    assert slot_of(key) == key_slot(key)


def test_limits_and_keys_have_a_slot_each() -> None:
    """All of a call's accounts are in one, which one script may touch."""
    names = redis_ledger._keys("id", ["key:a", "tenant:b", "ip:1.2.3.4"])
    assert len({slot_of(name) for name in names}) == 1
    assert len({slot_of(f"{redis_keys.PREFIX}:{n}".encode()) for n in ("meta", "index")}) == 1


def node(host: Any, port: int, name: bytes) -> list[Any]:
    return [host, port, name]


A, B, C = node(b"10.0.0.1", 1, b"a"), node(b"10.0.0.2", 2, b"b"), node(b"10.0.0.3", 3, b"c")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        pytest.param(
            [[0, 99, A], [100, 16_383, B, C]],
            Layout(b"a", ("10.0.0.1", 1), (("10.0.0.2", 2), ("10.0.0.3", 3))),
            id="replicas and masters are the others",
        ),
        pytest.param(
            [[0, 0, A], [1, 1, A], [7, 7, A], [8, 9, B]],
            Layout(b"a", ("10.0.0.1", 1), (("10.0.0.2", 2),)),
            id="a share in pieces",
        ),
        pytest.param(
            [[0, 9, node(None, 1, b"a")]],
            Layout(b"a", ("asked", 1), ()),
            id="no host: who was asked",
        ),
        pytest.param(
            [[0, 9, node(b"", 1, b"a")]], Layout(b"a", ("asked", 1), ()), id="an empty one likewise"
        ),
        pytest.param(
            [[0, 9, [b"h", 1, b"a", [b"ip", b"1.2.3.4"]]]],
            Layout(b"a", ("h", 1), ()),
            id="what Redis 7 adds",
        ),
        pytest.param(
            [[0, 9, A, node(b"?", 4, b"d")]],
            Layout(b"a", ("10.0.0.1", 1), ()),
            id="a node without a name is none to go to",
        ),
        pytest.param([[0, 6, A], [8, 9, B]], None, id="nobody has the slot"),
        pytest.param([], None, id="no slot is given out"),
    ],
)
def test_layout(reply: Any, expected: Layout | None) -> None:
    """Of slot 7, asked at a host called asked."""
    assert layout(reply, 7, "asked") == expected


@pytest.mark.parametrize("reply", [b"OK", None, 7, [[0, 9]], [[0, 9, 1]], [[0, 9, []]], [b"x"]])
def test_another_reply_is_an_error(reply: Any) -> None:
    """Whatever comes, nothing but ValueError."""
    with pytest.raises(ValueError, match="CLUSTER SLOTS"):
        layout(reply, 7, "asked")
