"""Event streams as providers write them, and ways to cut them.

Knows: SSE and the OpenAI chunk shapes. Must not know: the probe.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
DONE = b"data: [DONE]"
TRAPS = (
    "plain",
    "漢字 😀 é",
    'data: [DONE]\n\ndata: {"usage":{"prompt_tokens":1}}\n\n',
    '{"choices":[],"usage":{"prompt_tokens":1}}',
    "x" * 5_000,
)


def event(value: Any, separators: tuple[str, str] = (",", ":"), ascii_only: bool = True) -> bytes:
    """Return one event without its blank line."""
    text = json.dumps(value, separators=separators, ensure_ascii=ascii_only)
    return b"data: " + text.encode()


def content(text: str, **more: Any) -> dict[str, Any]:
    """Return one content chunk of a chat completion."""
    return {"id": "c", "choices": [{"index": 0, "delta": {"content": text}}], **more}


def stream(events: Sequence[bytes], newline: bytes = b"\n", last: bytes | None = None) -> bytes:
    """Join events with blank lines; `last` replaces what follows the last one."""
    text = b"".join(one + newline * 2 for one in events)
    return text if last is None else text.removesuffix(newline * 2) + last


def cut(data: bytes, how: str, seed: int = 0) -> list[bytes]:
    """Cut a stream into chunks."""
    if how == "whole":
        return [data]
    if how == "bytes":
        return [data[at : at + 1] for at in range(len(data))]
    places = random.Random(seed)
    cuts = sorted(places.sample(range(1, len(data)), min(20, len(data) - 1)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
