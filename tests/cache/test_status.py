"""Cache-Status and Age as clients read them, by a parser of structured fields of its own."""

from __future__ import annotations

import re
from typing import Any

import pytest

from extproc.cache.reasons import Reason
from extproc.cache.status import age, forwarded, hit

KEY = bytes(range(32))


def parse(raw: bytes) -> tuple[str, dict[str, Any]]:
    """Read one member of a list by RFC 8941: a token and its parameters."""
    text = raw.decode("ascii")
    name = re.match(r"[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*", text)
    assert name is not None
    at = name.end()
    found: dict[str, Any] = {}
    parameter = re.compile(
        r"; *([a-z*][a-z0-9_.*-]*)(?:=(?:(-?[0-9]{1,15})|\"((?:[ !#-\[\]-~]|\\[\"\\])*)\"|(\?[01])|([A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*)))?"
    )
    while at < len(text):
        one = parameter.match(text, at)
        assert one is not None, text[at:]
        key, integer, string, boolean, token = one.groups()
        value: Any = True
        if integer is not None:
            value = int(integer)
        elif boolean is not None:
            value = boolean == "?1"
        elif string is not None or token is not None:
            value = string if string is not None else token
        assert key not in found
        found[key] = value
        at = one.end()
    return name[0], found


@pytest.mark.parametrize(
    ("written", "says"),
    [
        pytest.param(hit(ttl_ms=297_999), {"hit": True, "ttl": 297}, id="a hit"),
        pytest.param(hit(ttl_ms=0), {"hit": True, "ttl": 0}, id="a hit at its end"),
        pytest.param(hit(ttl_ms=1000, key=KEY), {"hit": True, "ttl": 1, "key": KEY.hex()}, id="a hit with its key"),
        pytest.param(forwarded("miss"), {"fwd": "miss"}, id="a miss"),
        pytest.param(forwarded("miss", stored=True, ttl_ms=300_000), {"fwd": "miss", "stored": True, "ttl": 300}, id="a miss that is stored"),
        pytest.param(forwarded("miss", collapsed=True), {"fwd": "miss", "collapsed": True}, id="a call that had another's answer"),
        pytest.param(forwarded("miss", collapsed=False), {"fwd": "miss", "collapsed": False}, id="a call that waited in vain"),
        pytest.param(forwarded("miss", key=KEY), {"fwd": "miss", "key": KEY.hex()}, id="a miss with its key"),
        pytest.param(forwarded("stale", stored=True), {"fwd": "stale", "stored": True}, id="an entry too old"),
        pytest.param(forwarded("request", detail=Reason.NO_STORE), {"fwd": "request", "detail": "no-store"}, id="the caller's wish"),
        pytest.param(forwarded("bypass", detail=Reason.TEMPERATURE), {"fwd": "bypass", "detail": "temperature"}, id="a call the cache has no part in"),
    ],
)  # fmt: skip
def test_what_a_status_says(written: bytes, says: dict[str, Any]) -> None:
    assert parse(written) == ("llm-edge", says)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_can_be_told(reason: Reason) -> None:
    assert parse(forwarded("bypass", detail=reason)) == (
        "llm-edge",
        {"fwd": "bypass", "detail": reason.value},
    )


@pytest.mark.parametrize("written", [hit(ttl_ms=1), forwarded("miss", stored=True)])
def test_the_key_is_told_only_where_it_is_given(written: bytes) -> None:
    assert "key" not in parse(written)[1]


@pytest.mark.parametrize(
    ("stored_ms", "now_ms", "written"),
    [
        pytest.param(1000, 1999, b"0", id="less than a second"),
        pytest.param(1000, 3000, b"2", id="two seconds"),
        pytest.param(5000, 1000, b"0", id="a clock that is behind"),
    ],
)
def test_age_is_whole_seconds(stored_ms: int, now_ms: int, written: bytes) -> None:
    assert age(stored_ms, now_ms) == written
