"""Behaviours are strict: what a test asks for happens, or the test is told."""

import pytest

from extproc.simulator.behaviour import BadBehaviourError, Behaviour, merge, parse


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[]", id="not an object"),
        pytest.param(b'{"usage": "\xff"}', id="not UTF-8"),
        pytest.param(b'{"latency": 5}', id="unknown key"),
        pytest.param(b'{"latency_ms": "5"}', id="text for a number"),
        pytest.param(b'{"latency_ms": -1}', id="negative delay"),
        pytest.param(b'{"status": 302}', id="neither normal nor an error"),
        pytest.param(b'{"status": 600}', id="no HTTP status"),
        pytest.param(b'{"statuses": [503, 301]}', id="a bad status in the queue"),
        pytest.param(b'{"usage": "some"}', id="unknown usage"),
        pytest.param(b'{"tokens_per_chunk": 0}', id="chunks without tokens"),
    ],
)
def test_bad_sticky_behaviour(body: bytes) -> None:
    """Anything but a legal behaviour is refused."""
    with pytest.raises(BadBehaviourError):
        parse(body)


def test_sticky_behaviour_replaces_the_one_before() -> None:
    """What is not named is back at its default, so an empty object resets."""
    assert parse(b'{"chunk_ms": 5, "statuses": [503]}') == Behaviour(chunk_ms=5, statuses=(503,))
    assert parse(b"{}") == Behaviour()


def test_headers_win_over_sticky() -> None:
    """A header changes its own behaviour and leaves the others."""
    sticky = Behaviour(status=503, chunk_ms=5, statuses=(500,))
    headers = {"x-sim-status": "200", "x-sim-retry-after": "1.5", "x-sim-digest": "1", "a": "b"}
    merged = merge(sticky, headers)
    assert merged == Behaviour(
        status=200, chunk_ms=5, statuses=(500,), retry_after=1.5, digest=True
    )
    assert merge(sticky, {"authorization": "Bearer x"}) is sticky


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("x-sim-latency", "5", id="unknown header"),
        pytest.param("x-sim-statuses", "503", id="sticky only"),
        pytest.param("x-sim-output-tokens", "many", id="not a number"),
        pytest.param("x-sim-framing", "bits", id="unknown framing"),
        pytest.param("x-sim-status", "", id="empty"),
    ],
)
def test_bad_header(name: str, value: str) -> None:
    """A header that means nothing is an error that names it."""
    with pytest.raises(BadBehaviourError, match=name.split("-")[1]):
        merge(Behaviour(), {name: value})


@pytest.mark.parametrize(
    ("behaviour", "ending"),
    [
        pytest.param(Behaviour(), None, id="well"),
        pytest.param(Behaviour(abort_after_chunks=2), ("abort", 2), id="abort"),
        pytest.param(Behaviour(stall_after_chunks=0), ("stall", 0), id="stall at once"),
        pytest.param(
            Behaviour(abort_after_chunks=3, stall_after_chunks=2), ("stall", 2), id="the earlier"
        ),
    ],
)
def test_ending(behaviour: Behaviour, ending: tuple[str, int] | None) -> None:
    """An answer breaks at the earlier of abort and stall."""
    assert behaviour.ending == ending
