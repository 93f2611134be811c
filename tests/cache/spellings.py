"""JSON values, and the many ways to write one: spaces, order, escapes, forms of numbers."""

from __future__ import annotations

import json
from decimal import Decimal
from random import Random
from typing import Any

from hypothesis import strategies as st

# No lone surrogate, which `dialects` refuses; all else that text may hold.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.one_of(
    st.integers(-(10**25), 10**25).map(Decimal),
    st.builds(
        lambda digits, power: Decimal(digits).scaleb(power),
        st.integers(-999, 999),
        st.integers(-12, 12),
    ),
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
# Names of the API's beside any others.
names = st.sampled_from(
    [
        "temperature",
        "top_p",
        "n",
        "stop",
        "messages",
        "tools",
        "tool_choice",
        "seed",
        "store",
        "input",
    ]
) | texts.filter(lambda name: name != "model")
bodies = st.dictionaries(names, values, max_size=6)


def spell(value: Any, draw: Random) -> str:
    """Write a value in one of the ways there are."""
    gap = draw.choice(["", "", " ", "\n", " \t\r\n"])
    if isinstance(value, dict):
        members = list(value.items())
        draw.shuffle(members)
        inside = ",".join(f"{spell(name, draw)}:{spell(one, draw)}" for name, one in members)
        return f"{gap}{{{inside}{gap}}}{gap}"
    if isinstance(value, list):
        return f"{gap}[{','.join(spell(one, draw) for one in value)}{gap}]"
    if isinstance(value, Decimal):
        return gap + _number(value, draw) + gap
    if isinstance(value, str):
        return gap + _text(value, draw) + gap
    return gap + json.dumps(value) + gap


def _number(value: Decimal, draw: Random) -> str:
    sign, digits, power = value.as_tuple()
    assert isinstance(power, int)
    text = "".join(map(str, digits))
    minus = "-" if sign else ""
    if draw.random() < 0.3:  # more zeros at the end, a lower power
        zeros = draw.randrange(4)
        text, power = text + "0" * zeros, power - zeros
    if draw.random() < 0.5:  # a point before the last digits
        point = draw.randrange(1, len(text) + 1)
        whole, fraction = text[:point], text[point:]
        power += len(fraction)
        mantissa = f"{whole}.{fraction}" if fraction else whole
    else:
        mantissa = text
    # JSON has no leading zeros.
    mantissa = mantissa.lstrip("0") or "0"
    mantissa = "0" + mantissa if mantissa.startswith(".") else mantissa
    if power == 0 and draw.random() < 0.7:
        return minus + mantissa
    shown = draw.choice(["e{}", "E{}", "e{:+}", "E{:+03}"]).format(power)
    return f"{minus}{mantissa}{shown}"


def _text(value: str, draw: Random) -> str:
    written = []
    for character in value:
        if draw.random() < 0.3:
            pair = character.encode("utf-16-be")
            units = [pair[at : at + 2].hex() for at in range(0, len(pair), 2)]
            written += [rf"\u{unit.upper() if draw.random() < 0.5 else unit}" for unit in units]
        elif character == "/" and draw.random() < 0.5:
            written.append(r"\/")
        else:
            written.append(json.dumps(character, ensure_ascii=draw.random() < 0.5)[1:-1])
    return '"' + "".join(written) + '"'
