"""Made-up tool calls: which are made, and that arguments follow the schema."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.simulator.behaviour import Behaviour
from extproc.simulator.tools import Tool, ToolCall, calls

TOOLS = [Tool("a", {}), Tool("b", {"properties": {"x": {"type": "boolean"}}})]


@pytest.mark.parametrize(
    ("tool_calls", "forced", "must", "names"),
    [
        pytest.param(None, None, False, [], id="nothing asked for"),
        pytest.param(None, None, True, ["a"], id="some call must be made"),
        pytest.param(None, "b", True, ["b"], id="the forced one"),
        pytest.param(3, None, False, ["a", "b", "a"], id="in turn"),
        pytest.param(2, "b", True, ["b", "b"], id="the forced one twice"),
        pytest.param(2, "c", True, [], id="one nobody offered"),
        pytest.param(0, None, True, [], id="a model that disobeys"),
    ],
)
def test_which_calls_are_made(tool_calls, forced, must, names) -> None:
    """The choice and the behaviour decide."""
    made = calls(TOOLS, Behaviour(tool_calls=tool_calls), forced, must=must)
    assert [call.name for call in made] == names


def test_a_recursive_schema_ends() -> None:
    """Arguments stop at a depth."""
    schema: dict[str, object] = {"type": "object", "properties": {}}
    schema["properties"] = {"again": schema}
    (call,) = calls([Tool("a", schema)], Behaviour(), None, must=True)
    assert json.loads(call.arguments)["again"]["again"]


@given(st.text(min_size=1))
def test_pieces_join_and_their_tokens_add_up(arguments: str) -> None:
    """Whatever the text, nothing of it and none of its tokens is lost."""
    call = ToolCall("a", arguments)
    assert "".join(piece for piece, _ in call.pieces) == arguments
    assert sum(worth for _, worth in call.pieces) == call.tokens
