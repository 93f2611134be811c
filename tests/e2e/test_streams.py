"""Streams are Envoy's business: bytes, counters, and what Python pays for them."""

from __future__ import annotations

import hashlib
import json

import httpx
import pytest

from .stack import Stack, wait_for


def body(**more: object) -> dict[str, object]:
    return {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "Grüße, 世界"}],
        "stream": True,
        **more,
    }


def headers(key: str, **sim: object) -> dict[str, str]:
    return {
        "authorization": f"Bearer {key}",
        **{f"x-sim-{name.replace('_', '-')}": str(value) for name, value in sim.items()},
    }


def read(stack: Stack, key: str, payload: dict[str, object], **sim: object) -> bytes:
    """Stream a chat and return every byte of the body."""
    url = f"{stack.base}/v1/chat/completions"
    with httpx.stream("POST", url, json=payload, headers=headers(key, **sim)) as answer:
        assert answer.status_code == 200, answer.read()
        return b"".join(answer.iter_raw())


@pytest.mark.parametrize("framing", ["event", "byte", "random"])
@pytest.mark.parametrize("newline", ["lf", "crlf"])
def test_pass_through_bytes_are_the_providers(
    stack: Stack, key: str, framing: str, newline: str
) -> None:
    """With usage asked for nothing is touched, however the provider cuts its bytes."""
    payload = body(stream_options={"include_usage": True})
    got = read(stack, key, payload, framing=framing, newline=newline, digest=1)
    truth = stack.sim_log("a")[-1]
    assert truth["sent_bytes"] == len(got)
    assert truth["sent_sha256"] == hashlib.sha256(got).hexdigest()


@pytest.mark.parametrize("framing", ["event", "byte", "random"])
@pytest.mark.parametrize("newline", ["lf", "crlf"])
def test_stripped_bytes_are_the_providers_minus_one_chunk(
    stack: Stack, key: str, framing: str, newline: str
) -> None:
    """Without it, exactly the usage event is missing."""
    sim = {"framing": framing, "newline": newline, "output_tokens": 40}
    whole = read(stack, key, body(stream_options={"include_usage": True}), **sim)
    stripped = read(stack, key, body(), **sim)
    end = b"\r\n\r\n" if newline == "crlf" else b"\n\n"

    def events(data: bytes) -> list[bytes]:
        assert data.endswith(end)
        return data[: -len(end)].split(end)

    def neutral(event: bytes) -> object:
        """Leave out what differs between two answers: id and time."""
        text = event.removeprefix(b"data: ")
        if text == b"[DONE]":
            return "done"
        return {k: v for k, v in json.loads(text).items() if k not in {"id", "created"}}

    kept = [e for e in events(whole) if b'"choices":[]' not in e.replace(b" ", b"")]
    assert len(kept) == len(events(whole)) - 1
    assert [neutral(e) for e in events(stripped)] == [neutral(e) for e in kept]


def test_two_messages_per_request_however_long_the_answer(stack: Stack, key: str) -> None:
    """Envoy's ext_proc counters: one message for headers, one for the body, none per chunk."""

    def sent() -> int:
        stats = stack.envoy_stats("ext_proc.*stream_msgs_sent$")
        assert stats
        return sum(stats.values())

    for tokens in (1, 2000):
        before = sent()
        data = read(stack, key, body(), output_tokens=tokens)
        assert data.count(b"data: ") >= tokens
        assert sent() - before == 2


def test_usage_metadata_settles_streams(stack: Stack) -> None:
    """Each stream leaves one row with the provider's own numbers."""
    key = stack.create_key("settles")
    for include in (True, False):
        extra = {"stream_options": {"include_usage": True}} if include else {}
        read(stack, key, body(**extra), output_tokens=33)
    rows = stack.rows_for("settles", 2)
    truth = stack.sim_log("a")
    assert [r["output"] for r in rows] == [33, 33]
    assert [r["input"] for r in rows] == [t["prompt_tokens"] for t in truth]
    assert {r["usage_source"] for r in rows} == {"provider"}
    assert all(r["ttft_ms"] is not None for r in rows)


LEARNT = 40  # of a mean that forgets by sixteenths: what other tests taught it weighs 8% then


def test_missing_usage_is_estimated_and_marked(stack: Stack) -> None:
    """A completed answer without usage is estimated, with the ratio learned from others."""
    key = stack.create_key("estimates")
    for _ in range(LEARNT):
        read(stack, key, body(), output_tokens=50)
    read(stack, key, body(), output_tokens=50, usage="missing")
    rows = stack.rows_for("estimates", LEARNT + 1)
    assert [r["usage_source"] for r in rows] == ["provider"] * LEARNT + ["estimated"]
    assert rows[-1]["ended"] == "finished"
    # The provider leaves `"usage":null` out of every chunk too, so the answer is a fifth shorter.
    assert abs(rows[-1]["output"] - 50) <= 10


def test_doubled_usage_counts_once_and_absurd_usage_is_not_believed(stack: Stack) -> None:
    """The last usage event wins; numbers nobody could have used are estimated instead."""
    key = stack.create_key("odd-usage")
    read(stack, key, body(), output_tokens=20, usage="twice")
    read(stack, key, body(), output_tokens=20, usage="huge")
    rows = stack.rows_for("odd-usage", 2)
    assert rows[0]["output"] == 20
    assert rows[1]["usage_source"] == "estimated"
    assert rows[1]["output"] < 1000


def test_a_stream_left_early_is_present_once_and_partial(stack: Stack) -> None:
    """The client goes away in mid-stream; the row says what was seen."""
    key = stack.create_key("leaver")
    url = f"{stack.base}/v1/chat/completions"
    with httpx.stream(
        "POST", url, json=body(), headers=headers(key, output_tokens=500, chunk_ms=20)
    ) as answer:
        next(answer.iter_raw())
    rows = stack.rows_for("leaver", 1)
    assert [(r["ended"], r["usage_source"]) for r in rows] == [("partial", "partial")]
    assert 0 < rows[0]["output"] < 500
    wait_for("the provider to notice", lambda: stack.sim_log("a")[-1]["broke"] == "client_closed")
