"""The constant replies of the no-op rungs, read by an independent decoder, on both transports."""

import sys
import warnings
from pathlib import Path

import grpc
import pytest

from benchmarks import idle
from benchmarks.noop_processor import (
    CONTINUE_BODY,
    CONTINUE_HEADERS,
    REQUEST_BODY,
    REQUEST_HEADERS,
    TRANSPORTS,
    plan,
)
from benchmarks.processes import rss_mib, running, wait_path
from extproc.transport import EXT_PROC

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # envoy-data-plane 2.2 uses a form pydantic deprecates
    from envoy_data_plane.envoy.service.ext_proc.v3 import ProcessingResponse


def test_reply_to_headers_is_continue():
    """The zero value of the headers' answer."""
    reply = ProcessingResponse.parse(CONTINUE_HEADERS)
    assert reply.request_headers is not None
    assert reply.request_body is None


def test_reply_to_body_carries_the_plan_and_a_fresh_route():
    """Without a header mutation Envoy would not look at clear_route_cache."""
    reply = ProcessingResponse.parse(plan("json"))
    assert reply.request_body is not None
    common = reply.request_body.response
    assert common is not None
    assert common.clear_route_cache
    assert common.header_mutation is not None
    assert reply.dynamic_metadata is not None
    groups = reply.dynamic_metadata.to_dict()["llm"]["priority_groups"]
    assert groups == [{"name": "json", "clusters": [{"cluster_name": "json", "weight": 1}]}]


@pytest.mark.parametrize("kind", sorted(TRANSPORTS))
def test_both_transports_answer_and_hold_idle_calls(kind: str, tmp_path: Path):
    """Headers, then the body, which ends the call; and calls that wait stay open and are counted."""
    socket = tmp_path / "s"
    argv = [sys.executable, "-m", "benchmarks.noop_processor", "--transport", kind]
    root = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with running("noop", [*argv, "--socket", str(socket)], tmp_path, root) as child:
        wait_path(socket, child)
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            process = channel.stream_stream(f"/{EXT_PROC}/Process")
            said = [bytes((REQUEST_HEADERS, 0)), bytes((REQUEST_BODY, 0)), b"unread"]
            first, second = process(iter(said), timeout=30)
            assert first == CONTINUE_HEADERS
            assert len(second) == len(CONTINUE_BODY)  # maps have no order
        grown = idle.grown_mib(socket, child, {"authorization": "Bearer x"}, calls=600)
        assert -1 < grown < rss_mib(child)
        with pytest.raises(idle.IdleError, match="ended, not answered"):
            idle.grown_of(socket, child, b"neither headers nor body", 2)
