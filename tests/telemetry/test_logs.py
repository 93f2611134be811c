"""Logs: one line an event, and no key ever in it."""

import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.telemetry.logs import JsonFormatter, TextFormatter, configure

KEY = "sk_" + "aB3-_" * 8 + "xyz"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl-_"


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """Give a logger, and the root as it was afterwards."""
    root, uvicorn = logging.getLogger(), logging.getLogger("uvicorn")
    before = root.level, list(root.handlers), uvicorn.level
    yield logging.getLogger("extproc.test")
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    uvicorn.setLevel(before[2])


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"name": "extproc.x", "levelname": "INFO", "msg": message, "created": 1_735_689_599.9996}
    )
    vars(made).update(extra)
    return made


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
@given(prefix=st.text(), suffix=st.text(), where=st.sampled_from(["message", "field", "nested"]))
def test_no_key_is_printed(
    formatter: logging.Formatter, prefix: str, suffix: str, where: str
) -> None:
    """Wherever a key stands in a record, no line shows it."""
    secret = f"{prefix}{KEY} {suffix}"
    field = secret if where == "field" else [{"deep": secret}] if where == "nested" else None
    line = formatter.format(record(secret if where == "message" else "m", field=field))
    assert KEY[3:] not in line
    assert len(line.splitlines()) == 1
    if isinstance(formatter, JsonFormatter):
        json.loads(line)


def test_json_line() -> None:
    """A record is one object; fields cannot replace what is there already."""
    line = JsonFormatter().format(record("hello", port=9090, level="forged", where={1, 2}))
    assert json.loads(line) == {
        "time": "2024-12-31T23:59:59.999Z",
        "level": "info",
        "logger": "extproc.x",
        "message": "hello",
        "port": 9090,
        "where": [1, 2],
    }


def test_text_line() -> None:
    """A record is one line for people; control characters are written out."""
    line = TextFormatter().format(record("hel\nlo\x1b[31m", port=9090, note="a\u2028b"))
    assert line == (
        "2024-12-31T23:59:59.999Z INFO    extproc.x hel\\nlo\\u001b[31m port=9090 note=a\\u2028b"
    )


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("\ud800", id="a lone surrogate"),
        pytest.param(object(), id="any object"),
        pytest.param(2**200, id="a long number"),
        pytest.param(float("nan"), id="not a number"),
    ],
)
def test_any_field(value: object) -> None:
    """No field costs the line."""
    assert json.loads(JsonFormatter().format(record("m", field=value)))["message"] == "m"
    assert TextFormatter().format(record("m", field=value)).startswith("2024")


def test_a_circular_field() -> None:
    """A field that holds itself is written as Python writes it."""
    ring: list[object] = []
    ring.append(ring)
    assert json.loads(JsonFormatter().format(record("m", ring=ring)))["ring"] == "[[...]]"


@pytest.mark.parametrize("fmt", ["json", "text"])
def test_a_trace_is_in_the_line(
    log: logging.Logger, capsys: pytest.CaptureFixture[str], fmt: Literal["json", "text"]
) -> None:
    """An exception's trace, keys and all, stays in one line and loses the keys."""
    configure("info", fmt)
    try:
        int(KEY)
    except ValueError:
        log.exception("broken", extra={"port": 1}, stack_info=True)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "ValueError: invalid literal for int() with base 10: '[redacted]'" in err
    assert "Traceback" in err
    assert "Stack (most recent call last)" in err


def test_configure(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """A second call replaces the first: one line an event, of the level and above."""
    configure("debug", "text")
    configure("warning", "json")
    log.info("too quiet")
    log.warning("heard %s", "once", extra={"reason": "test"})
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "heard once"
    assert json.loads(line)["reason"] == "test"


def test_unknown_level() -> None:
    """A level that does not exist is an error of the caller."""
    with pytest.raises(ValueError, match="LOUD"):
        configure("loud", "json")
