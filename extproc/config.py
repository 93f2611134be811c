"""Reading the written configuration: layers, variables and error messages.

Knows: YAML and the environment mapping it is given. Must not know: the runtime snapshot, Envoy or
the wire. Layers, later wins: packaged defaults, files in order, `LLM_AGENT__` variables.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from extproc.schema import Config
from extproc.schema_fields import NAME_PATTERN, parse_duration

__all__ = ["Config", "ConfigError", "load", "parse_duration"]

ENV_PREFIX: Final = "LLM_AGENT__"
DEFAULTS: Final = Path(__file__).with_name("defaults.yaml")
DEFAULT_FILE: Final = Path("llm-edge.yaml")


class ConfigError(Exception):
    """A configuration nobody can run. The text names file or variable, path and legal values."""


def load(paths: Sequence[Path] | None, env: Mapping[str, str]) -> Config:
    """Read, merge and validate; `paths` None means `llm-edge.yaml` here, where there is one.

    Raises ConfigError.
    """
    files = [DEFAULTS, *_files(paths, env)]
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for file in files:
        layer = _read(file)
        _note(layer, "", file.name if file == DEFAULTS else str(file), origin)
        merged = _merge(merged, layer)
    for name, value in sorted(env.items()):
        if name.startswith(ENV_PREFIX) and name != ENV_PREFIX + "ENVIRONMENT":
            layer = _from_variable(name, value)
            _note(layer, "", f"${name}", origin)
            merged = _merge(merged, layer)
    if not merged.get("providers"):
        merged = _merge(merged, _quickstart(env))
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        lines = [_explain(detail, origin) for detail in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _files(paths: Sequence[Path] | None, env: Mapping[str, str]) -> list[Path]:
    chosen = list(paths) if paths else [p for p in (DEFAULT_FILE,) if p.exists()]
    name = env.get(ENV_PREFIX + "ENVIRONMENT")
    if name:
        if not re.fullmatch(NAME_PATTERN, name):
            raise ConfigError(f"${ENV_PREFIX}ENVIRONMENT: letters, digits, - and _ only")
        chosen += [
            o for p in chosen[:1] if (o := p.with_name(f"{p.stem}.{name}{p.suffix}")).exists()
        ]
    return chosen


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        merges = key_node.tag == "tag:yaml.org,2002:merge"  # `<<` is no value, only a key
        key = key_node.value if merges else loader.construct_object(key_node)
        if isinstance(key, (dict, list, set)):
            raise yaml.MarkedYAMLError(
                problem="a key must be a plain value", problem_mark=key_node.start_mark
            )
        if key in seen:
            raise yaml.MarkedYAMLError(
                problem=f"key {key!r} stands twice", problem_mark=key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _read(file: Path) -> dict[str, Any]:
    try:
        loaded = yaml.load(file.read_text(), Loader=_Loader) or {}  # noqa: S506 (a SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: {error}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{file}: the top level must be a mapping")
    return loaded


def _from_variable(name: str, value: str) -> dict[str, Any]:
    try:
        layer: Any = yaml.load(value, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (ValueError, RecursionError, yaml.YAMLError):
        raise ConfigError(f"${name}: not a YAML value") from None
    for part in reversed(name.removeprefix(ENV_PREFIX).lower().split("__")):
        layer = {part: layer}
    return typing.cast("dict[str, Any]", layer)


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(typing.cast("dict[str, Any]", old), value) if both else value
    return merged


def _note(layer: Mapping[str, Any], prefix: str, source: str, origin: dict[str, str]) -> None:
    for key, value in layer.items():
        path = f"{prefix}{key}"
        origin[path] = source
        if isinstance(value, dict):
            _note(value, path + ".", source, origin)


def _explain(detail: Mapping[str, Any], origin: Mapping[str, str]) -> str:
    parts = [str(part) for part in detail["loc"] if part != "[key]"]  # pydantic's mark of a name
    path = ".".join(parts)
    source = next(
        (origin[p] for n in range(len(parts), 0, -1) if (p := ".".join(parts[:n])) in origin), None
    )
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        message = f"unknown key; legal: {', '.join(_legal(detail['loc'][:-1]))}"
    where = f"{source}: " if source else ""
    return f"{where}{path + ': ' if path else ''}{message}"


def _legal(location: Sequence[str | int]) -> list[str]:
    """Name the keys that may stand at a place in the schema."""
    here: Any = Config
    for part in location:
        if isinstance(here, type) and issubclass(here, BaseModel):
            here = _fields(here)[str(part)].annotation
        else:
            here = typing.get_args(here)[-1 if typing.get_origin(here) is dict else 0]
        while typing.get_origin(here) in {Annotated, typing.Union, types.UnionType}:
            here = next(a for a in typing.get_args(here) if a is not types.NoneType)
    return sorted(_fields(here))


def _fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a section by their written names."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _quickstart(env: Mapping[str, str]) -> dict[str, Any]:
    """Serve the usual models from OpenAI where its key is set, else from a simulated provider."""
    if env.get("OPENAI_API_KEY"):
        name = "openai"
        provider: dict[str, Any] = {
            "dialect": "openai",
            "endpoint": "https://api.openai.com/v1",
            "api_key": {"env": "OPENAI_API_KEY"},
        }
    else:
        name = "simulated"
        provider = {"dialect": "openai", "endpoint": "http://127.0.0.1:9101/v1", "simulated": True}
    prices = {
        "gpt-4o-mini": {"input": 0.15, "output": 0.60, "cached_input": 0.075},
        "gpt-4o": {"input": 2.50, "output": 10.00, "cached_input": 1.25},
        "text-embedding-3-small": {"input": 0.02},
    }
    models = {
        model: {"targets": [{"provider": name, "model": model, "usd_per_million": price}]}
        for model, price in prices.items()
    }
    return {"providers": {name: provider}, "models": models}
