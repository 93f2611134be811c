"""Write log records to stderr, one line each, without secrets.

Knows: stdlib logging and what keys look like. Must not know: who logs what. No code here or
elsewhere logs a credential; redaction is the second line of defence, for the day one does, and so
it works on the finished line: message, fields and trace alike.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

import msgspec

from extproc.redact import redact

# What LogRecord itself carries; everything else came through `extra`.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# Breaks a line for somebody: C0, DEL, C1 and Unicode's own separators.
_CONTROLS: Final = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
_ESCAPES: Final = {code: f"\\u{code:04x}" for code in _CONTROLS} | {10: "\\n", 13: "\\r", 9: "\\t"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Render a record."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = _fields(record)
        line.update((name, fields[name]) for name in fields if name not in line)
        trace = _trace(self, record)
        if trace:
            line["trace"] = trace
        return redact(_json(line).translate(_ESCAPES))  # the escapes are JSON's too


class TextFormatter(logging.Formatter):
    """One line for people: time, level, logger, message, then `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Render a record."""
        parts = [_time(record), f"{record.levelname:<7}", record.name, record.getMessage()]
        parts += [f"{name}={value}" for name, value in _fields(record).items()]
        trace = _trace(self, record)
        if trace:
            parts.append(trace)
        # Because a line break or an escape sequence in a value would forge or hide lines.
        return redact(" ".join(parts).translate(_ESCAPES))


class _Stderr(logging.StreamHandler[TextIO]):
    """The one handler of this module; its type is how a second `configure` finds it."""


def configure(level: str, fmt: Literal["json", "text"], worker: int | None = None) -> None:
    """Send records of `level` (debug, info, warning, error) and above to stderr.

    `worker` is in every record where this process is one of several. May be called again; replaces
    its own handler and leaves others. Raises ValueError for a level logging does not know.
    """
    root = logging.getLogger()
    root.setLevel(level.upper())
    handler = _Stderr(sys.stderr)
    handler.setFormatter(JsonFormatter() if fmt == "json" else TextFormatter())
    for old in [known for known in root.handlers if isinstance(known, _Stderr)]:
        root.removeHandler(old)
    if worker is not None:

        def numbered(record: logging.LogRecord) -> bool:
            record.worker = worker
            return True

        handler.addFilter(numbered)
    root.addHandler(handler)
    # Because its start and stop messages say nothing that ours do not.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info else []
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)


def _json(line: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(line, enc_hook=repr).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        # Because a lone surrogate or a circular field must not cost the whole line.
        plain = {name: _printable(value) for name, value in line.items()}
        return msgspec.json.encode(plain).decode()


def _printable(value: object) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()
