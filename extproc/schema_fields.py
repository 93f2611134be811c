"""What the sections of the written configuration are made of: durations, names, secrets' places.

Knows: pydantic. Must not know: any section.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9_-]{0,62}$"
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h|d)$")


def parse_duration(text: str) -> float:
    """Return seconds for `500ms`, `30s`, `15m`, `24h` or `90d`; raise ValueError otherwise."""
    found = _DURATION.match(text.strip())
    if found is None:
        raise ValueError("write a number and a unit: ms, s, m, h or d, for example 30s")
    return float(found[1]) * _UNITS_S[found[2]]


def _duration(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("write a duration such as 30s")  # noqa: TRY004 (pydantic's protocol)
    return parse_duration(value) if isinstance(value, str) else float(value)


Seconds = Annotated[float, BeforeValidator(_duration), Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SecretRef(Section):
    """Where a secret is: an environment variable or a file, never the secret itself."""

    env: str | None = None
    file: Path | None = None

    @model_validator(mode="after")
    def _one(self) -> SecretRef:
        if (self.env is None) == (self.file is None):
            raise ValueError("write exactly one of {env: NAME} and {file: PATH}")
        return self

    def read(self, env: Mapping[str, str]) -> str | None:
        """Return the secret, or None where the variable is unset or the file cannot be read."""
        if self.env is not None:
            return env.get(self.env) or None
        try:
            return (self.file or Path()).read_text().strip() or None
        except OSError:
            return None
