"""What a simulated model says when it calls a tool: which tools, with what arguments.

Knows JSON schemas as far as arguments are made up from them. Knows no dialect, no HTTP, no time.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from extproc.simulator import text
from extproc.simulator.behaviour import Behaviour

PIECE_CHARS = 7  # arguments are streamed in pieces that cut names, numbers and escapes
MAX_DEPTH = 4  # of made-up arguments: schemas may be recursive

_VALUES: Mapping[str, Any] = {
    "string": 'tok0 "é"\n',
    "integer": 7,
    "number": 1.5,
    "boolean": True,
    "null": None,
    "array": [],
}


class Tool(NamedTuple):
    """A tool as the caller described it."""

    name: str
    schema: Mapping[str, Any]


class ToolCall(NamedTuple):
    """One call the model makes; `arguments` is the text of a JSON object."""

    name: str
    arguments: str

    @property
    def tokens(self) -> int:
        """Return what the call costs: its arguments as text."""
        return text.count(self.arguments)

    @property
    def pieces(self) -> Iterator[tuple[str, int]]:
        """Return the arguments as they are streamed, with the tokens each piece is worth."""
        left = self.tokens
        for start in range(0, len(self.arguments), PIECE_CHARS):
            last = start + PIECE_CHARS >= len(self.arguments)
            worth = left if last else min(left, 1)
            left -= worth
            yield self.arguments[start : start + PIECE_CHARS], worth


def calls(
    tools: Sequence[Tool], behaviour: Behaviour, forced: str | None, *, must: bool
) -> list[ToolCall]:
    """Return the calls of an answer.

    `forced` names the one tool to call, `must` says that some call is made; else the behaviour
    decides. With `tool_calls` above 1 the calls are parallel, over the tools in turn.
    """
    chosen = [tool for tool in tools if forced is None or tool.name == forced]
    wanted = behaviour.tool_calls
    count = (1 if must else 0) if wanted is None else wanted
    if not chosen:
        return []
    turns = (chosen[index % len(chosen)] for index in range(count))
    return [ToolCall(tool.name, _arguments(tool.schema)) for tool in turns]


def _arguments(schema: Mapping[str, Any]) -> str:
    made = _value({**schema, "type": "object"}, MAX_DEPTH)
    return msgspec.json.encode(made).decode()


def _value(schema: Mapping[str, Any], depth: int) -> Any:
    enum = schema.get("enum")
    if isinstance(enum, list) and enum:
        return enum[0]
    kind = schema.get("type")
    if kind == "object":
        properties = schema.get("properties")
        if not isinstance(properties, dict) or not depth:
            return {}
        return {
            name: _value(inner, depth - 1)
            for name, inner in properties.items()
            if isinstance(inner, dict)
        }
    return _VALUES.get(kind, "tok0") if isinstance(kind, str) else "tok0"
