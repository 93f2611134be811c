"""Where things are in the state directory."""

from __future__ import annotations

from pathlib import Path

from extproc.config import load
from extproc.places import Places


def test_everything_is_in_the_state_directory() -> None:
    places = Places.of(load([], {"LLM_AGENT__STATE__DIR": "/var/lib/x"}))
    assert places.state == Path("/var/lib/x")
    paths = (
        places.envoy,
        places.processor_socket,
        places.envoy_admin_socket,
        places.ledger,
        places.redis,
        places.redis_socket,
        *(at(n) for at in (places.worker_socket, places.log_socket) for n in range(3)),
        *(places.worker_admin_socket(n) for n in range(3)),
    )
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to(places.state) for path in paths)


def test_the_sockets_are_where_envoy_runs() -> None:
    places = Places(Path("s"))
    assert places.processor_socket.parent == places.envoy_admin_socket.parent == places.envoy
    assert places.worker_socket(1).parent == places.log_socket(1).parent == places.envoy
