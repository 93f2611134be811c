"""The constant replies of rung 3, read by an independent decoder."""

import warnings

from benchmarks.noop_processor import CONTINUE_HEADERS, plan

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
