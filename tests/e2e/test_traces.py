"""A call's trace through the real gateway: caller, admission, provider, settlement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.collector import attributes, collecting

from .stack import TRANSPORTS, Stack, wait_for

CHAT = "/v1/chat/completions"
CANARY = "canary-prompt-51c2"
BODY = {"model": "failover", "messages": [{"role": "user", "content": CANARY}]}
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


# On one transport, because spans go another way.
@pytest.mark.parametrize("transport", TRANSPORTS[:1])
def test_a_trace_goes_from_the_caller_to_the_provider(fresh_stack: Callable[..., Stack]) -> None:
    """Continue the caller's trace over both attempts; a dead collector costs no call."""
    with collecting() as collector:

        def change(config: dict[str, Any]) -> None:
            config["observability"] = {"otlp_endpoint": collector.endpoint}

        stack = fresh_stack(change=change)
        key = stack.create_key("traced")
        stack.behave("b", status=503)
        headers = {"authorization": f"Bearer {key}", "traceparent": f"00-{TRACE}-{CALLER}-01"}

        def call(**body: Any) -> httpx.Response:
            return httpx.post(f"{stack.base}{CHAT}", json={**BODY, **body}, headers=headers)

        assert call(stream=True).status_code == 200
        assert call(model="none").status_code == 404
        wait_for("the spans", lambda: len(collector.spans) >= 3)
        (span,) = collector.named("chat failover")
        assert span.trace_id.hex() == TRACE
        assert span.parent_span_id.hex() == CALLER
        (admission,) = collector.named("admission")
        assert admission.parent_span_id == span.span_id
        (refusal,) = collector.named("chat")
        assert attributes(refusal)["error.type"] == "model_not_found"
        for provider in ("b", "a"):
            (told,) = stack.sim_log(provider)
            sent = told["headers"]["traceparent"]
            assert sent == f"00-{TRACE}-{span.span_id.hex()}-01"
        found = attributes(span)
        assert found["gen_ai.provider.name"] == "a"
        assert found["gen_ai.usage.output_tokens"] == told["output_tokens_sent"]
        assert found["llm_edge.attempts"] == 2
        took_ns = span.end_time_unix_nano - span.start_time_unix_nano
        assert 0 < span.events[0].time_unix_nano - span.start_time_unix_nano <= took_ns
        assert CANARY.encode() not in collector.raw
        assert key.encode() not in collector.raw
        collector.status = 400
        assert call().status_code == 200
        wait_for(
            "the failure to be counted",
            lambda: 'op="export",store="otlp"' in stack.admin_get("/metrics").text,
        )
    assert call().status_code == 200
