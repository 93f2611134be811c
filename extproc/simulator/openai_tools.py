"""Tools in chat completions as OpenAI writes them: what is offered, and calls whole and streamed.

Knows the JSON of tools, tool choice and tool calls. Knows no events' framing, no HTTP, no pacing.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from extproc.simulator.behaviour import Behaviour
from extproc.simulator.tools import Tool, ToolCall, calls


class Function(msgspec.Struct, gc=False):
    """A function a model may call, or is told to call."""

    name: str
    parameters: dict[str, Any] | None = None


class ToolSpec(msgspec.Struct, gc=False):
    """One tool; those that are no functions are never called."""

    type: str = "function"
    function: Function | None = None


class Choice(msgspec.Struct, gc=False):
    """The one function that must be called."""

    function: Function | None = None


class Offer(msgspec.Struct, frozen=True, gc=False):
    """What a request lets its model call."""

    tools: tuple[Tool, ...] = ()
    forced: str | None = None
    must: bool = False

    def calls(self, behaviour: Behaviour) -> list[ToolCall]:
        """Return the calls one answer makes."""
        return calls(self.tools, behaviour, self.forced, must=self.must)


NOTHING = Offer()


def offer(specs: Sequence[ToolSpec] | None, choice: str | Choice | None) -> Offer:
    """Return what a request offers: nothing where it says `none`."""
    if not specs or choice == "none":
        return NOTHING
    offered = tuple(
        Tool(one.function.name, one.function.parameters or {})
        for one in specs
        if one.function is not None
    )
    if isinstance(choice, Choice):
        return Offer(offered, choice.function.name if choice.function else None, must=True)
    return Offer(offered, must=choice == "required")


def whole(made: Sequence[ToolCall], prefix: str) -> bytes:
    """Return the `tool_calls` of a message; ids begin with `prefix`."""
    written = [
        {
            "id": f"{prefix}{index}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for index, call in enumerate(made)
    ]
    return msgspec.json.encode(written)


def deltas(call: ToolCall, index: int, prefix: str) -> Iterator[tuple[bytes, int]]:
    """Return the deltas that stream one call, with the tokens each is worth."""
    opening = {
        "index": index,
        "id": f"{prefix}{index}",
        "type": "function",
        "function": {"name": call.name, "arguments": ""},
    }
    yield msgspec.json.encode({"tool_calls": [opening]}), 0
    for piece, worth in call.pieces:
        delta = {"index": index, "function": {"arguments": piece}}
        yield msgspec.json.encode({"tool_calls": [delta]}), worth
