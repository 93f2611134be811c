"""Answers as providers write them, in every dialect and both forms, by how they ended."""

from __future__ import annotations

from typing import Any

import msgspec


def encode(value: Any) -> bytes:
    """Write JSON."""
    return msgspec.json.encode(value)


def chat(finish: str | None, **said: Any) -> bytes:
    """Return a chat completion."""
    return encode(
        {
            "id": "1",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish,
                    "message": {"role": "assistant", "content": "x", **said},
                }
            ],
        }
    )


def chunks(*pieces: dict[str, Any], end: str = "data: [DONE]\n\n", gap: str = "\n\n") -> bytes:
    """Return a stream of chunks, `end` after them."""
    return (
        "".join(f"data: {encode(piece).decode()}{gap}" for piece in pieces).encode() + end.encode()
    )


def delta(finish: str | None = None, index: int = 0, **said: Any) -> dict[str, Any]:
    """Return a chunk of chat."""
    return {"choices": [{"index": index, "finish_reason": finish, "delta": said}]}


def message(stop: str | None, *kinds: str) -> bytes:
    """Return an Anthropic message of blocks of these types."""
    return encode(
        {"type": "message", "stop_reason": stop, "content": [{"type": kind} for kind in kinds]}
    )


def events(*pieces: tuple[str, dict[str, Any]]) -> bytes:
    """Return a stream of named events that carry their type."""
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (kind.encode(), encode({"type": kind, **rest}))
        for kind, rest in pieces
    )


def told(stop: str | None, *kinds: str, end: str = "message_stop") -> bytes:
    """Return a message as a stream."""
    blocks = [
        ("content_block_start", {"index": at, "content_block": {"type": kind, "text": ""}})
        for at, kind in enumerate(kinds)
    ]
    return events(
        ("message_start", {"message": {"stop_reason": None, "content": []}}),
        *blocks,
        ("ping", {}),
        (
            "content_block_delta",
            {"index": 0, "delta": {"type": "text_delta", "text": "event: message_stop"}},
        ),
        ("message_delta", {"delta": {"stop_reason": stop}, "usage": {"output_tokens": 3}}),
        (end, {}),
    )


def response(
    status: str, *kinds: str, reason: str | None = None, parts: tuple[str, ...] = ("output_text",)
) -> dict[str, Any]:
    """Return a response whose output items have these types."""
    items = [
        {
            "type": kind,
            **({"content": [{"type": part} for part in parts]} if kind == "message" else {}),
        }
        for kind in kinds
    ]
    return {
        "status": status,
        "output": items,
        "incomplete_details": None if reason is None else {"reason": reason},
    }


def streamed(kind: str, whole: dict[str, Any]) -> bytes:
    """Return a response as a stream whose last event is of this kind."""
    return events(
        ("response.created", {"response": response("in_progress")}),
        ("response.output_text.delta", {"delta": "x"}),
        (kind, {"response": whole}),
    )
